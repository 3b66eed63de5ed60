"""How a model answers texts with versions of an adapter, text by text.

The adapter is merged into the base model's weights; the classifier stays as it was trained. Where
only one projection differs from a version, the layers before it are not run again: their outputs
are kept.

Shapes: `n` texts, `C` classes, `N` projections, `K` levels beside nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankcast.codec.levels import Levels
from rankcast.codec.quantiser import step_of
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.base_models import load_model
from rankcast.learner.batching import TokenisedDataset, tokenise
from rankcast.learner.objectives import SequenceClassification
from rankcast.learner.texts import TextDataset
from rankcast.records import FloatArray, IntArray
from studies.domains.mixture import Mixture
from studies.shared.layer_inputs import Inputs, recorded

BATCH = 64
_RULED_OUT = -1e4  # a logit whose probability is 0, and whose logarithm is finite


@dataclass(frozen=True)
class PerText:
    """How texts are answered.

    Attributes:
        loss: (n,) cross-entropy of each text [nats].
        correct: (n,) whether each was answered correctly.
    """

    loss: FloatArray
    correct: NDArray[np.bool_]


class MergedModel:
    """A base model with versions of an adapter merged into it.

    Args:
        config: names the base model.
        mixture: texts; the classes of all domains make the classifier.
        whole: the adapter as it was trained, with its classifier.
        dtype: in which the model computes.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        mixture: Mixture,
        whole: AdapterTensors,
        dtype: torch.dtype,
    ) -> None:
        splits, self._domain_of_class = mixture.splits, torch.from_numpy(mixture.class_domains)
        objective = SequenceClassification(splits.train.n_labels)
        base = load_model(config.model, objective, config.seed, train_texts=splits.train.texts)
        self._model: Any = base.model.eval().requires_grad_(requires_grad=False)
        self._tokenizer, self._max_length, self._dtype = base.tokenizer, config.max_length, dtype
        live = self._model.state_dict()
        for name, values in whole.modules.items():
            live[name].copy_(torch.from_numpy(values))
        self._layers = list(self._model.base_model.encoder.layer)
        self._projections = whole.projections
        self._own = {p.name: self._weight(p.name).clone() for p in whole.projections}

    def tokens(self, texts: TextDataset) -> TokenisedDataset:
        """Return texts as tokens, with their statistics."""
        return tokenise(texts, self._tokenizer, self._max_length)

    @torch.no_grad()
    def answers(self, tokens: TokenisedDataset, tensors: AdapterTensors) -> Tensor:
        """Return (n, C) logits under a version of the adapter, those of other domains ruled out."""
        self._put(tensors)
        order, parts = [], []
        with self._autocast():
            for chosen, inputs in _batches(tokens):
                order.append(chosen)
                parts.append(self._model(**inputs).logits.float())
        return self._own_classes(_in_order(order, parts), tokens)

    def judge(self, tokens: TokenisedDataset, tensors: AdapterTensors) -> PerText:
        """Return how texts are answered under a version of the adapter."""
        return per_text(self.answers(tokens, tensors), tokens)

    @torch.no_grad()
    def each_level(
        self,
        tokens: TokenisedDataset,
        tensors: AdapterTensors,
        levels: Levels,
        at: IntArray,
        asked: Sequence[int],
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield projections, and (n, C) logits with each of them at each of its levels.

        Until the last one, nothing else may be asked of the model.

        Args:
            tokens: the texts.
            tensors: the adapter as it was trained.
            levels: of it.
            at: (N,) levels of all other projections.
            asked: which projections.
        """
        self._put(at_levels(tensors, levels, at))
        order, into, parts = [], [], []
        for chosen, inputs in _batches(tokens):
            with recorded(self._layers) as states, self._autocast():
                parts.append(self._model(**inputs).logits.float())
            order.append(chosen)
            into.append(states)
        as_before = self._own_classes(_in_order(order, parts), tokens)
        for i in asked:
            found = []
            for level in range(levels.n_levels + 1):
                if level == at[i]:
                    found.append(as_before)
                    continue
                with self._changed(i, one_level(tensors.factors[i], levels, i, level)):
                    logits = _in_order(order, [self._from_layer(i, s) for s in into])
                    found.append(self._own_classes(logits, tokens))
            yield i, found

    def _own_classes(self, logits: Tensor, tokens: TokenisedDataset) -> Tensor:
        """Return (n, C) logits with the classes of other domains than the text's ruled out."""
        own = self._domain_of_class[labels_of(tokens)]
        return logits.masked_fill(self._domain_of_class != own[:, None], _RULED_OUT)

    def _from_layer(self, index: int, into: Inputs) -> Tensor:
        """Return logits, of a batch that was run before up to the layer of a projection."""
        first = self._projections[index].layer
        states, _, _ = into[first]
        with self._autocast():
            for layer, (_, args, kwargs) in zip(self._layers[first:], into[first:], strict=True):
                out = layer(states, *args, **kwargs)
                states = out if isinstance(out, Tensor) else out[0]
            pooled = self._model.base_model.pooler(states)
            return self._model.classifier(pooled).float()

    @contextmanager
    def _changed(self, index: int, factors: Factors) -> Iterator[None]:
        """Let one projection have other factors."""
        name = self._projections[index].name
        kept = self._weight(name).clone()
        self._merge(name, factors)
        try:
            yield
        finally:
            self._weight(name).copy_(kept)

    def _put(self, tensors: AdapterTensors) -> None:
        for name, own in self._own.items():
            self._weight(name).copy_(own)
        for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
            self._merge(projection.name, factors)

    def _merge(self, name: str, factors: Factors) -> None:
        self._weight(name).copy_(self._own[name] + torch.from_numpy(factors.delta_weight()))

    def _weight(self, name: str) -> Tensor:
        return self._model.get_parameter(f"{name}.weight")

    def _autocast(self) -> Any:
        return torch.autocast("cpu", self._dtype, enabled=self._dtype is not torch.float32)


def one_level(factors: Factors, levels: Levels, index: int, level: int) -> Factors:
    """Return a projection's factors as a device gets them at a level."""
    rank, step = int(levels.ranks[index, level]), step_of(int(levels.exponents[index, level]))
    left, right = factors.left[:, :rank], factors.right[:rank]
    rounded = ((np.rint(x / step) * step).astype(np.float32) for x in (left, right))
    return Factors(*rounded)


def at_levels(tensors: AdapterTensors, levels: Levels, plan: IntArray) -> AdapterTensors:
    """Return an adapter at an (N,) plan of levels, without the tensors beside it."""
    factors = tuple(one_level(f, levels, i, int(plan[i])) for i, f in enumerate(tensors.factors))
    return AdapterTensors(tensors.projections, factors, {}, {})


def per_text(logits: Tensor, tokens: TokenisedDataset) -> PerText:
    """Return loss and right answers of (n, C) logits."""
    labels = labels_of(tokens)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return PerText(loss.double().numpy(), (logits.argmax(1) == labels).numpy())


def labels_of(tokens: TokenisedDataset) -> Tensor:
    """Return (n,) classes of texts."""
    assert tokens.labels is not None, "the texts of this study have labels"
    return torch.from_numpy(tokens.labels)


def _batches(tokens: TokenisedDataset) -> Iterator[tuple[IntArray, Mapping[str, Tensor]]]:
    for chosen in tokens.in_order(BATCH):
        batch = tokens.collate(chosen)
        yield chosen, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _in_order(order: list[IntArray], parts: list[Tensor]) -> Tensor:
    """Return (n, C) rows of batches in the order of the texts."""
    places = torch.from_numpy(np.concatenate(order))
    rows = torch.cat(parts)
    found = torch.empty_like(rows)
    found[places] = rows
    return found
