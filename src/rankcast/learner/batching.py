"""Batches of similar length in a seeded order that can be continued anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.learner.answer_tokens import AnswerTokens, Marks, tokenise_answers
from rankcast.learner.text_complexity import TextComplexity, mean_stats
from rankcast.learner.texts import TextDataset
from rankcast.records import IntArray, TextStats

IGNORED = -100
"""Label of a token that no loss is computed for, as Transformers has it."""
MEGABATCH = 50
"""Batches that are sorted by length together; the order between them stays random."""


@dataclass(frozen=True)
class Batch:
    """Texts as the model takes them, S tokens long after padding on the right.

    Attributes:
        input_ids: (B, S) tokens.
        attention_mask: (B, S) 1 for a token, 0 for padding.
        labels: (B,) classes, or None without labels.
        text: how hard the batch is, over all processes.
        indices: (B,) positions in the data set.
        answers: (B, S) tokens of answers, `IGNORED` elsewhere; None if texts have no prompts.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    text: TextStats
    indices: IntArray
    answers: Tensor | None = None

    @property
    def wanted(self) -> Tensor:
        """(B, S) the tokens that a language model is to say: of answers, or all; else `IGNORED`."""
        if self.answers is not None:
            return self.answers
        return self.input_ids.masked_fill(~self.attention_mask.bool(), IGNORED)

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        answers = None if self.answers is None else self.answers.to(device)
        ids, mask = self.input_ids.to(device), self.attention_mask.to(device)
        return Batch(ids, mask, labels, self.text, self.indices, answers)


@dataclass(frozen=True)
class TokenisedDataset:
    """A data set tokenised once, with the statistics of every text.

    Attributes:
        tokens: one array of tokens a text, cut at the model's longest.
        labels: (n,) classes, or None.
        stats: (n,) entropies and OOV rates.
        pad_token_id: what fills up a batch.
        is_answer: which tokens of each text belong to an answer; None if texts have no prompts.
        n_cut: texts whose answer was longer than the limit and lost its end.
    """

    tokens: tuple[IntArray, ...]
    labels: IntArray | None
    stats: TextStats
    pad_token_id: int
    is_answer: tuple[Marks, ...] | None = None
    n_cut: int = 0

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.tokens)

    @property
    def lengths(self) -> IntArray:
        """(n,) number of tokens of each text."""
        return np.array([len(ids) for ids in self.tokens], dtype=np.int64)

    def text_stats(self, indices: IntArray) -> TextStats:
        """Return the mean statistics of some texts, of shape (1,)."""
        stats = self.stats
        return mean_stats(TextStats(stats.lexical_entropy[indices], stats.oov_rate[indices]))

    def collate(self, indices: IntArray, whole: IntArray | None = None) -> Batch:
        """Pad texts to the longest among them.

        Args:
            indices: (B,) the texts of this process.
            whole: the texts of all processes, which `Batch.text` describes; `indices` for None.
        """
        longest = max(len(self.tokens[i]) for i in indices)
        ids = np.full((len(indices), longest), self.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, index in enumerate(indices):
            tokens = self.tokens[index]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        labels = None if self.labels is None else torch.from_numpy(self.labels[indices])
        text = self.text_stats(indices if whole is None else whole)
        answers = None
        if self.is_answer is not None:
            marked = np.full_like(ids, IGNORED)
            for row, index in enumerate(indices):
                own = np.flatnonzero(self.is_answer[index])
                marked[row, own] = ids[row, own]
            answers = torch.from_numpy(marked)
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask), labels, text, indices, answers)

    def in_order(
        self, batch_size: int, indices: IntArray | None = None, most_tokens: int | None = None
    ) -> Iterator[IntArray]:
        """Yield positions in batches of similar length, each position once: for evaluation.

        Args:
            batch_size: texts of a batch.
            indices: positions to yield; None for all.
            most_tokens: of a batch, padding included, unless it is a single text.
        """
        chosen = np.arange(len(self)) if indices is None else indices
        order = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        for start in range(0, len(order), batch_size):
            yield from self.parts(order[start : start + batch_size], most_tokens)

    def parts(self, indices: IntArray, most_tokens: int | None) -> Iterator[IntArray]:
        """Yield texts in parts of similar size, each of at most so many tokens if it can be."""
        if most_tokens is None:
            yield indices
            return
        room = max(1, most_tokens // int(self.lengths[indices].max()))
        yield from np.array_split(indices, -(-len(indices) // room))


def tokenise(dataset: TextDataset, tokenizer: Any, max_length: int) -> TokenisedDataset:
    """Tokenise a data set once, cutting each text at `max_length` tokens; see `answer_tokens`.

    Raises:
        ConfigError: a maximum length below 2, or a tokenizer without a padding token.
        DataError: a text of which no token is left.
    """
    if max_length < 2:
        raise ConfigError(f"The maximum length must be at least 2 tokens, got {max_length}.")
    if tokenizer.pad_token_id is None:
        raise ConfigError("The tokenizer has no padding token: set tokenizer.pad_token.")
    stats = TextComplexity(tokenizer).per_sample(dataset.texts)
    if dataset.answered is not None:
        return _with_answers(
            tokenise_answers(dataset.answered, tokenizer, max_length), stats, tokenizer
        )
    encoded = tokenizer(
        list(dataset.texts), truncation=True, max_length=max_length, return_attention_mask=False
    )["input_ids"]
    tokens = tuple(np.asarray(ids, dtype=np.int64) for ids in encoded)
    empty = [i for i, ids in enumerate(tokens) if len(ids) == 0]
    if empty:
        raise DataError(f"Text {dataset.texts[empty[0]]!r} (row {empty[0]}) has no tokens.")
    labels = None if dataset.labels is None else np.array(dataset.labels, dtype=np.int64)
    return TokenisedDataset(tokens, labels, stats, int(tokenizer.pad_token_id))


def _with_answers(
    texts: Sequence[AnswerTokens], stats: TextStats, tokenizer: Any
) -> TokenisedDataset:
    """Return prompts with answers as a data set.

    Raises:
        DataError: nothing of any answer can be predicted, because nothing stands before it.
    """
    if not any(text.is_answer[1:].any() for text in texts):
        raise DataError("No answer has a token before it from which it could be predicted.")
    return TokenisedDataset(
        tuple(text.ids for text in texts),
        None,
        stats,
        int(tokenizer.pad_token_id),
        tuple(text.is_answer for text in texts),
        sum(text.cut_answer for text in texts),
    )


class BucketedBatches:
    """An endless stream of batches of fixed size, bucketed by length, new in every epoch.

    Every process walks the same batches and takes its own share of each, so that what is
    learned does not depend on how many processes there are.

    Args:
        lengths: (n,) tokens of each text.
        batch_size: texts a batch, over all processes; fewer if the data set is smaller.
        seed: of the order.
        process: index of this process.
        n_processes: how many share each batch.

    Raises:
        ConfigError: a batch size below one text a process.
        DataError: fewer texts than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | IntArray,
        batch_size: int,
        seed: int,
        process: int = 0,
        n_processes: int = 1,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if batch_size < n_processes or batch_size % n_processes:
            raise ConfigError(
                f"A batch of {batch_size} texts cannot be shared evenly by {n_processes} processes."
            )
        if len(self._lengths) < n_processes:
            raise DataError(
                f"{len(self._lengths)} training texts are too few for {n_processes} processes."
            )
        room = len(self._lengths) // n_processes * n_processes
        self.batch_size = min(batch_size, room)
        self._seed = seed
        self._process = process
        self._n_processes = n_processes
        self._epoch = 0
        self._position = 0
        self._order = self._shuffle(0)

    def peek(self) -> IntArray:
        """Return the texts of the next batch over all processes."""
        return self._order[self._position]

    def advance(self) -> None:
        """Move on to the batch after the next."""
        self._position += 1
        if self._position == len(self._order):
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._shuffle(self._epoch)

    def share(self, batch: IntArray) -> IntArray:
        """Return the part of a batch that this process computes."""
        return batch[self._process :: self._n_processes]

    def _shuffle(self, epoch: int) -> list[IntArray]:
        """Return the batches of an epoch: sorted within shuffled megabatches, then shuffled.

        A remainder that fills no batch is left out, another one in each epoch.
        """
        rng = np.random.default_rng([self._seed, epoch])
        n, size = len(self._lengths), self.batch_size
        order = rng.permutation(n)[: n // size * size]
        batches: list[IntArray] = []
        for start in range(0, len(order), MEGABATCH * size):
            mega = order[start : start + MEGABATCH * size]
            mega = mega[np.argsort(self._lengths[mega], kind="stable")]
            batches.extend(mega.reshape(-1, size))
        return [batches[i] for i in rng.permutation(len(batches))]

    def state_dict(self) -> dict[str, int]:
        """Return the place in the stream and what the stream was made of."""
        return self._identity() | {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state_dict()`.

        Raises:
            CheckpointError: the state is of another data set, batch size or seed.
        """
        mine = self._identity()
        other = {key: state.get(key) for key in mine}
        if other != mine:
            raise CheckpointError(
                f"The checkpoint walked through other batches: {other}, but this run has {mine}. "
                f"Continue with the same data, batch size and seed."
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = self._shuffle(self._epoch)

    def _identity(self) -> dict[str, int]:
        """Return what has to be equal for a place in the stream to mean the same."""
        return {"n_texts": len(self._lengths), "batch_size": self.batch_size, "seed": self._seed}
