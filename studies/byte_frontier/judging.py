"""Judge adapters on a task's texts, merged into the base model, each once.

Every method and code is judged alike: as the weights that replace those of the base model. A text
is answered in bfloat16 where the processor computes in it, which takes a third of the time. The
texts whose two likeliest classes are closest are then answered again in float32: rounding moves
logits by about a hundredth of their spread, so that only close answers can change. Jobs of kind
`float32` count how often they do. Elsewhere every text is answered in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from rankcast.files import put_file
from rankcast.learner.batching import TokenisedDataset
from rankcast.records import IntArray
from studies.shared.judging import judgement
from studies.shared.precision import fast_type

AGAIN = 0.05
"""Share of the texts that are answered again in float32."""
BATCH = {torch.bfloat16: 64, torch.float32: 32}
"""Texts of a forward pass; the fastest of those tried."""

Weights = Mapping[str, Tensor]
"""Tensors that replace those of the same names in the base model."""


class Judge:
    """Answers texts with a base model in which an adapter has been merged.

    Args:
        model: the base model with a classifier, in float32; nothing else may use it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._own = {name: p.detach().clone() for name, p in model.state_dict().items()}

    @property
    def base(self) -> Weights:
        """The weights without any adapter."""
        return self._own

    def logits(self, tokens: TokenisedDataset, weights: Weights, again: float = AGAIN) -> Tensor:
        """Return (n, classes) logits.

        Args:
            tokens: n texts.
            weights: of the adapter.
            again: share of the texts that are answered again in float32.
        """
        with self._merged(weights):
            everything = np.arange(len(tokens))
            found = self._answer(tokens, everything, fast_type())
            if fast_type() is torch.float32:
                return found
            two = found.topk(2, dim=1).values
            closest = torch.argsort(two[:, 0] - two[:, 1], stable=True)
            chosen = np.sort(closest[: round(again * len(tokens))].numpy())
            if len(chosen):
                found[chosen] = self._answer(tokens, chosen, torch.float32)
        return found

    def judge(self, tokens: TokenisedDataset, weights: Weights) -> dict[str, Any]:
        """Return what a row keeps: accuracy, mean loss [nats] and a bit for each text."""
        logits, labels = self.logits(tokens, weights), torch.from_numpy(tokens.labels)
        loss = float(F.cross_entropy(logits, labels))
        return judgement((logits.argmax(1) == labels).numpy(), loss)

    def judge_once(
        self, tokens: TokenisedDataset, weights: Weights, folder: Path
    ) -> dict[str, Any]:
        """Return what `judge` does, from a file if the same weights were judged before."""
        file = folder / f"{digest(weights)}.json"
        if file.is_file():
            return json.loads(file.read_text("utf-8"))
        judged = self.judge(tokens, weights)
        put_file(file, json.dumps(judged).encode())
        return judged

    def _answer(self, tokens: TokenisedDataset, chosen: IntArray, dtype: torch.dtype) -> Tensor:
        """Return (len(chosen), classes) logits."""
        parts, order = [], []
        low = dtype is not torch.float32
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            for indices in tokens.in_order(BATCH[dtype], chosen):
                batch = tokens.collate(indices)
                output = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                parts.append(output.logits.float())
                order.append(indices)
        return torch.cat(parts)[np.argsort(np.concatenate(order), kind="stable")].clone()

    @contextmanager
    def _merged(self, weights: Weights) -> Iterator[None]:
        """Let the model have an adapter's weights meanwhile."""
        live = self._model.state_dict()
        try:
            for name, value in weights.items():
                live[name].copy_(value)
            yield
        finally:
            for name in weights:
                live[name].copy_(self._own[name])


def digest(weights: Weights) -> str:
    """Return a name for weights: equal to the last bit, equal names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(f"{name}{tuple(weights[name].shape)}".encode())
        found.update(weights[name].detach().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:24]
