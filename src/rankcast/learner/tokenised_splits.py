"""Splits as tokens, in passes that fit the memory of a device."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankcast.config.learner import FinetuneConfig
from rankcast.learner.batching import Batch, TokenisedDataset, tokenise
from rankcast.learner.memory import shortage_told
from rankcast.learner.texts import DatasetSplits
from rankcast.records import IntArray

PASS_TOKENS, PASS_TOKENS_GPU = 256, 16384
"""Tokens of a training pass of a causal model, on a CPU and elsewhere."""
_LOG = logging.getLogger(__name__)
_JUDGED = 8
"""Times as many as in training fit a pass of which no gradients are needed."""


class TokenisedSplits:
    """Tokenises each split of a data set the first time it is asked for.

    Args:
        config: sizes of batches and passes, and the longest text.
        data: the splits.
        tokenizer: of the base model.
        longest: tokens that the base model takes.
        device: where it runs.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: DatasetSplits,
        tokenizer: Any,
        longest: int,
        device: torch.device,
    ) -> None:
        self._config, self._data, self._tokenizer, self._device = config, data, tokenizer, device
        self._max_length = min(config.max_length, longest)
        self._found: dict[str, TokenisedDataset] = {}
        here = PASS_TOKENS if device.type == "cpu" else PASS_TOKENS_GPU
        self._is_causal = config.objective == "causal"
        # A classifier's batches stay whole.
        self._pass_tokens = (config.pass_tokens or here) if self._is_causal else None

    def __getitem__(self, split: str) -> TokenisedDataset:
        """Return a split.

        Raises:
            DataError: no such split.
        """
        if split not in self._found:
            found = tokenise(self._data[split], self._tokenizer, self._max_length)
            if found.n_cut:
                _LOG.warning(
                    "%d of %d answers (%s) have more than %d tokens and lose their end: raise "
                    "--max-length (finetune.max_length).",
                    found.n_cut, len(found), split, self._max_length,
                )  # fmt: skip
            self._found[split] = found
        return self._found[split]

    def training_parts(self, indices: IntArray, whole: IntArray | None = None) -> list[Batch]:
        """Return training texts in as many batches as passes are needed.

        Args:
            indices: (B,) the texts of this process.
            whole: the texts of all processes; `indices` for None.
        """
        tokens = self["train"]
        return [
            tokens.collate(part, whole).to(self._device)
            for part in tokens.parts(indices, self._pass_tokens)
        ]

    def to_judge(self, split: str, indices: IntArray | None = None) -> Iterator[IntArray]:
        """Yield the texts of each pass without gradients, of all texts or of some."""
        most = None if self._pass_tokens is None else _JUDGED * self._pass_tokens
        return self[split].in_order(self._config.eval_batch_size, indices, most)

    @contextmanager
    def memory_told(self) -> Iterator[None]:
        """Say which options to lower where memory is short.

        Raises:
            OutOfMemoryError: it is.
        """
        remedy = (
            f"Lower the batch size (--batch-size, finetune.batch_size: now "
            f"{self._config.batch_size}) or the longest text (--max-length, finetune.max_length: "
            f"now {self._max_length} tokens)"
        )
        if self._is_causal:
            remedy += f", or finetune.pass_tokens (now {self._pass_tokens})"
        with shortage_told(f"to run {self._config.model} on these texts", f"{remedy}."):
            yield
