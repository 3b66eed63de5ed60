"""Judge adapters by the loss of answers, beside what the float32 adapter answers.

An adapter is what a decoder has: factors of every linear map, in float32 beside the frozen base, as
an engine runs them. Each token of an answer is predicted from those before it, and logits are
computed for these alone (`rankcast.learner.answer_head`). The states that the reference's logits
are made of are kept, so that they are computed once for all codes.

Shapes: n answers, T tokens of answers, H hidden size, V words.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ModelError
from rankcast.files import put_file
from rankcast.learner.answer_head import AnswerHead
from rankcast.learner.batching import IGNORED, Batch, TokenisedDataset
from rankcast.learner.objectives import divergence_of
from rankcast.records import FloatArray, IntArray
from studies.llm.base import lowered, round_frozen
from studies.llm.texts import pack_numbers

BATCH, PASS_TOKENS, SLICE = 64, 4096, 128
"""Texts and tokens of a forward pass; tokens whose logits are in memory at once."""
COMPARED = 4
"""Every fourth batch is compared with the reference: logits of both take twice the time."""


@dataclass(frozen=True)
class Answered:
    """What was measured of each answer.

    Attributes:
        loss: (n,) summed over its tokens [nats].
        right: (n,) tokens that were the likeliest.
        count: (n,) tokens.
        divergence: KL(reference ‖ adapter) of the answers that were compared [nats per token];
            None without a reference.
        agreement: share of their tokens of which both have the same likeliest.
    """

    loss: FloatArray
    right: IntArray
    count: IntArray
    divergence: float | None = None
    agreement: float | None = None

    @property
    def mean_loss(self) -> float:
        """Nats per token."""
        return float(self.loss.sum() / self.count.sum())

    def to_plain(self) -> dict[str, Any]:
        """Return what a row keeps: per answer only the losses and whether all was right."""
        plain = {
            "loss": self.mean_loss,
            "token_accuracy": float(self.right.sum() / self.count.sum()),
            "exact_match": float((self.right == self.count).mean()),
            "losses": pack_numbers(self.loss),
            "n_answers": len(self.loss),
        }
        if self.divergence is not None:
            plain |= {"divergence": self.divergence, "agreement": self.agreement}
        return plain


class AnswerJudge:
    """Answers texts with a base model and an adapter beside it.

    Args:
        model: the frozen base model in float32; nothing else may use it.
        tokens: n texts with answers.
    """

    def __init__(self, model: Any, tokens: TokenisedDataset) -> None:
        round_frozen(model)
        self._model, self._tokens = model.eval(), tokens
        self._head = _Comparing(model, lowered)
        self._batches = list(tokens.in_order(BATCH, most_tokens=PASS_TOKENS))
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._maps = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        for name, module in self._maps.items():
            module.register_forward_hook(partial(self._beside, name))

    def _beside(self, name: str, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Any:
        """Add what the adapter does beside a linear map, in float32."""
        del module
        if name not in self._factors:
            return None
        left, right = self._factors[name]
        with torch.autocast("cpu", enabled=False):
            return out + (given[0].float() @ right.T) @ left.T

    def use(self, adapter: AdapterTensors | None) -> None:
        """Answer with an adapter from now on; with the base model alone for None.

        Raises:
            ModelError: the model has no linear map of a name.
        """
        self._factors = {}
        if adapter is None:
            return
        for projection, factors in zip(adapter.projections, adapter.factors, strict=True):
            if projection.name not in self._maps:
                raise ModelError(f"The base model has no linear map {projection.name}.")
            if factors.rank:
                pair = torch.from_numpy(factors.left), torch.from_numpy(factors.right)
                self._factors[projection.name] = pair

    @torch.inference_mode()
    def states(self, adapter: AdapterTensors | None) -> list[Tensor | None]:
        """Return (T, H) states of each batch that is compared, None for the others."""
        self.use(adapter)
        found: list[Tensor | None] = []
        for number, indices in enumerate(self._batches):
            compared = number % COMPARED == 0
            found.append(self._states(self._tokens.collate(indices)) if compared else None)
        return found

    @torch.inference_mode()
    def judge(
        self, adapter: AdapterTensors | None, reference: list[Tensor | None] | None = None
    ) -> Answered:
        """Return how an adapter does.

        Args:
            adapter: what a decoder has; None for the base model alone.
            reference: from `states`; None compares nothing.
        """
        self.use(adapter)
        n = len(self._tokens)
        loss = np.zeros(n)
        right, count = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        divergence, agreed, n_compared = 0.0, 0, 0
        for number, indices in enumerate(self._batches):
            batch = self._tokens.collate(indices)
            other = None if reference is None else reference[number]
            found = self._head.compare(self._states(batch), other, batch)
            rows = (batch.wanted[:, 1:] != IGNORED).nonzero()[:, 0].numpy()
            size = len(indices)
            loss[indices] = np.bincount(rows, found.loss.double().numpy(), size)
            right[indices] = np.bincount(rows, found.right.numpy(), size).astype(np.int64)
            count[indices] = np.bincount(rows, minlength=size)
            if other is not None:
                divergence += float(found.divergence.double().sum())
                agreed += int(found.agrees.sum())
                n_compared += len(rows)
        if not n_compared:
            return Answered(loss, right, count)
        return Answered(loss, right, count, divergence / n_compared, agreed / n_compared)

    def judge_once(
        self, adapter: AdapterTensors | None, reference: list[Tensor | None] | None, folder: Path
    ) -> dict[str, Any]:
        """Return what a row keeps of `judge`, from a file if it was judged before."""
        file = folder / f"{digest(adapter)}-{'kl' if reference is not None else 'loss'}.json"
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
        judged = self.judge(adapter, reference).to_plain()
        file.parent.mkdir(parents=True, exist_ok=True)
        put_file(file, json.dumps(judged).encode())
        return judged

    @property
    def counts(self) -> IntArray:
        """(n,) tokens of each answer."""
        marks: Any = self._tokens.is_answer
        return np.array([int(mark[1:].sum()) for mark in marks])

    def _states(self, batch: Batch) -> Tensor:
        tokens = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with lowered():
            return self._head.states(partial(self._model, **tokens), batch)


@dataclass(frozen=True)
class _Compared:
    """(T,) of each token of an answer; divergence and agreement are of no token without others."""

    loss: Tensor
    right: Tensor
    divergence: Tensor
    agrees: Tensor


class _Comparing(AnswerHead):
    """A model's head that compares two ways of answering, in slices."""

    def compare(self, states: Tensor, others: Tensor | None, batch: Batch) -> _Compared:
        """Return losses of (T, H) states, and how far they are from others."""
        wanted = batch.wanted[:, 1:]
        target = wanted[wanted != IGNORED]
        parts = []
        for start in range(0, len(states), SLICE):
            rows = slice(start, start + SLICE)
            logits = self._logits(states[rows])
            best = logits.argmax(-1)
            loss = F.cross_entropy(logits, target[rows], reduction="none")
            divergence, agrees = loss[:0], best[:0] == best[:0]
            if others is not None:
                theirs = self._logits(others[rows])
                divergence, agrees = divergence_of(logits, theirs), best == theirs.argmax(-1)
            parts.append((loss, best == target[rows], divergence, agrees))
        return _Compared(*(torch.cat(column) for column in zip(*parts, strict=True)))


def digest(adapter: AdapterTensors | None) -> str:
    """Return a name for an adapter: equal to the last bit, equal names."""
    found = hashlib.sha256()
    pairs = () if adapter is None else zip(adapter.projections, adapter.factors, strict=True)
    for projection, factors in pairs:
        shapes = factors.left.shape, factors.right.shape
        found.update(f"{projection.name}{shapes}".encode())
        for part in (factors.left, factors.right):
            found.update(np.ascontiguousarray(part, np.float32).tobytes())
    return found.hexdigest()[:24]
