"""What a model with an adapter answers, and how far that is from what it answers with another.

The adapter is merged into the base model's weights. Where only one projection differs, the layers
before it are not run again: their outputs are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.base_models import load_model
from rankcast.learner.batching import TokenisedDataset, tokenise
from rankcast.learner.objectives import SequenceClassification, divergence_of
from rankcast.learner.texts import DatasetSplits, TextDataset
from studies.byte_frontier.adapters import merged
from studies.shared.layer_inputs import recorded

BATCH = 64


@dataclass(frozen=True)
class Judged:
    """How an adapter answers some texts.

    Attributes:
        divergence: KL(adapter as trained ‖ this one), mean over texts [nats].
        loss: mean over texts [nats].
        accuracy: a share.
    """

    divergence: float
    loss: float
    accuracy: float


class Answers:
    """Answers texts with an adapter merged into its base model, the classifier as trained.

    Args:
        config: names the base model.
        splits: texts; their classes make the classifier.
        whole: the adapter as it was trained.
    """

    def __init__(
        self, config: FinetuneConfig, splits: DatasetSplits, whole: AdapterTensors
    ) -> None:
        objective = SequenceClassification(splits.train.n_labels)
        base = load_model(config.model, objective, config.seed, train_texts=splits.train.texts)
        self.model: Any = base.model.eval().requires_grad_(requires_grad=False)
        self._tokenizer, self._max_length = base.tokenizer, config.max_length
        live = self.model.state_dict()
        for name, values in whole.modules.items():
            live[name].copy_(torch.from_numpy(values))
        self._own = {n: p.detach().clone() for n, p in live.items()}
        self.projections = whole.projections
        self.layers = list(self.model.base_model.encoder.layer)
        self._put(whole)
        self._whole = whole

    def weight_norms(self) -> list[float]:
        """Return (N,) Frobenius norms of the frozen weights."""
        return [float(self._own[f"{p.name}.weight"].norm()) for p in self.projections]

    def texts(self, texts: TextDataset) -> Asked:
        """Return texts with what the adapter as trained answers to them."""
        return Asked(self, tokenise(texts, self._tokenizer, self._max_length))

    def judge(self, asked: Asked, tensors: AdapterTensors) -> Judged:
        """Return how another version of the adapter answers; its classifier is left out."""
        self._put(tensors)
        try:
            logits = torch.cat([self.model(**inputs).logits for inputs in asked.inputs])
        finally:
            self._put(self._whole)
        return asked.judged(logits)

    @contextmanager
    def changed(self, index: int, factors: Factors) -> Iterator[Any]:
        """Let one projection have other factors; yield the layers from its own on."""
        projection = self.projections[index]
        weight = self.model.get_parameter(f"{projection.name}.weight")
        kept = weight.detach().clone()
        delta = torch.from_numpy(factors.delta_weight())
        weight.copy_(self._own[f"{projection.name}.weight"] + delta)
        try:
            yield self.layers[projection.layer :]
        finally:
            weight.copy_(kept)

    def _put(self, tensors: AdapterTensors) -> None:
        live = self.model.state_dict()
        for name, value in merged(tensors, self._own).items():
            live[name].copy_(value)


class Asked:
    """Texts with the answers of the adapter as trained, and what came into every layer.

    Args:
        answers: of the adapter.
        tokens: of the texts.
    """

    def __init__(self, answers: Answers, tokens: TokenisedDataset) -> None:
        self._answers, model = answers, answers.model
        order, self.inputs, self._into, parts = [], [], [], []
        for chosen in tokens.in_order(BATCH):
            batch = tokens.collate(chosen)
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            with recorded(answers.layers) as into, torch.no_grad():
                parts.append(model(**inputs).logits)
            order.append(chosen)
            self.inputs.append(inputs)
            self._into.append(into)
        self.wanted = torch.cat(parts)
        assert tokens.labels is not None, "the texts of this study have labels"
        self.labels = torch.from_numpy(tokens.labels[np.concatenate(order)])

    @torch.no_grad()
    def divergence_with(self, index: int, factors: Factors) -> float:
        """Return KL(as trained ‖ with other factors of one projection), mean over texts [nats]."""
        model: Any = self._answers.model
        logits = []
        with self._answers.changed(index, factors) as layers:
            first = self._answers.projections[index].layer
            for into in self._into:
                states, args, kwargs = into[first]
                for layer in layers:
                    out = layer(states, *args, **kwargs)
                    states = out if isinstance(out, Tensor) else out[0]
                pooled = model.base_model.pooler(states)
                logits.append(model.classifier(pooled))
        return self.judged(torch.cat(logits)).divergence

    def judged(self, logits: Tensor) -> Judged:
        """Return how (n, classes) logits compare with those of the adapter as trained."""
        divergence = float(divergence_of(logits.double(), self.wanted.double()).mean())
        right = (logits.argmax(1) == self.labels).double().mean()
        loss = float(F.cross_entropy(logits, self.labels))
        return Judged(max(divergence, 0.0), loss, float(right))
