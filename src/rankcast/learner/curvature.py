"""How much errors of an adapter's update cost: the curvature of the loss, from texts.

The loss of a text depends on an error E of a projection's update through Σ g·E·x over its tokens,
where x is what goes into the projection and g the gradient of the loss at what comes out. The
curvature is the mean of its square: a matrix with d_out·d_in rows, of which two small ones stand
for outputs and inputs (Kronecker factors, as in K-FAC: Martens and Grosse 2015). K-FAC takes both
means over all tokens alike. Here a token counts for the inputs by how much the loss depends on what
the adapter does there, and for the outputs by how much the adapter does there: the first token of a
text often has huge inputs, and no effect.

The matrices of wide projections are blocks along the diagonal, so that memory grows with the width
and not with its square; those of large models are of narrower blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankcast.adapters.arrays import tensors_of
from rankcast.codec.feedback import Curvature, Matrix
from rankcast.errors import DataError
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import IntArray, Projection

BLOCK, NARROWEST = 1_024, 16
"""Widest block of a matrix, and the narrowest to which `MOST_NUMBERS` cuts it."""
MOST_NUMBERS, MOST_AT_ONCE = 2**28, 2**26
"""In all matrices of an adapter, and in those that are measured at once: 256 MiB."""


class _Sums:
    """Sums over tokens for one projection."""

    def __init__(self, left: Tensor, right: Tensor, widest: int) -> None:
        self._left, self._right = left, right
        self._outputs = [left.new_zeros(n, n) for n in _widths(len(left), widest)]
        self._inputs = [right.new_zeros(n, n) for n in _widths(right.shape[1], widest)]
        self._both = 0.0

    def add(self, x: Tensor, g: Tensor) -> None:
        """Count (tokens, d_in) inputs and (tokens, d_out) gradients."""
        x, g = x.reshape(-1, x.shape[-1]).float(), g.reshape(-1, g.shape[-1]).float()
        of_inputs = (g @ self._left).square().sum(1)
        of_outputs = (x @ self._right.T).square().sum(1)
        for sums, values, weights in (
            (self._inputs, x, of_inputs),
            (self._outputs, g, of_outputs),
        ):
            scaled, start = values * weights.sqrt()[:, None], 0
            for block in sums:
                part = scaled[:, start : start + len(block)]
                block.addmm_(part.T, part)
                start += len(block)
        self._both += float((x.square().sum(1) * g.square().sum(1)).sum())

    def curvature(self, n_texts: int) -> Curvature:
        """Return the two matrices, whose traces multiply to E[|g|²·|x|²]."""
        root = (self._both / n_texts) ** 0.5
        sides: list[tuple[Matrix, ...]] = []
        for sums in (self._outputs, self._inputs):
            total = max(sum(float(block.trace()) for block in sums), 1e-300)
            sides.append(tuple(block.mul_(root / total).numpy(force=True) for block in sums))
        return Curvature(*sides)


def _widths(n: int, widest: int) -> list[int]:
    """Return the widths of blocks of about the same size."""
    return [len(part) for part in np.array_split(np.arange(n), -(-n // widest))]


def _widest(projections: Sequence[Projection]) -> int:
    """Return the width of blocks at which the matrices have at most `MOST_NUMBERS`."""
    total = sum(p.d_in + p.d_out for p in projections)
    return min(BLOCK, max(MOST_NUMBERS // max(total, 1), NARROWEST))


def _groups(projections: Sequence[Projection], widest: int) -> list[range]:
    """Return which projections are measured at once."""
    groups, start, held = [], 0, 0
    for i, p in enumerate(projections):
        own = sum(n * n for d in (p.d_out, p.d_in) for n in _widths(d, widest))
        if i > start and held + own > MOST_AT_ONCE:
            groups.append(range(start, i))
            start, held = i, 0
        held += own
    return [*groups, range(start, len(projections))]


def curvatures_of(
    learner: TransformerLearner,
    n_texts: int,
    on_text: Callable[[int, int], None] | None = None,
) -> Iterator[Curvature]:
    """Return the curvature of one projection after the other, as the learner holds the adapter.

    The mean is over random training texts and what they are to be answered with (empirical Fisher
    information). Takes a forward and a backward pass over them for `MOST_AT_ONCE` numbers of the
    matrices, when the first of them is asked for.

    Args:
        learner: left as it is; must not change before the last curvature.
        n_texts: texts; all if there are fewer.
        on_text: told how many texts were passed, and of how many.

    Raises:
        DataError: fewer than one text.
    """
    n_known = len(learner.data.train)
    n_texts = min(n_texts, n_known)
    if n_texts < 1:
        raise DataError("Curvature is measured on at least one text.")
    texts = np.random.default_rng(0).permutation(n_known)[:n_texts]
    projections = learner.layout.projections
    widest = _widest(projections)
    groups = _groups(projections, widest)

    def every() -> Iterator[Curvature]:
        for number, group in enumerate(groups):
            sums = _measured(learner, texts, group, widest, partial(told, number * n_texts))
            while sums:
                yield sums.pop(0).curvature(n_texts)

    def told(before: int, done: int) -> None:
        if on_text is not None:
            on_text(before + done, len(groups) * n_texts)

    return every()


def _measured(
    learner: TransformerLearner,
    texts: IntArray,
    group: range,
    widest: int,
    on_text: Callable[[int], None],
) -> list[_Sums]:
    """Return the sums over texts of some projections."""
    adapter, size = learner.adapter, learner.config.batch_size
    device = next(adapter.model.parameters()).device
    own = tensors_of(adapter).factors[group.start : group.stop]
    sums = [
        _Sums(torch.from_numpy(f.left).to(device), torch.from_numpy(f.right).to(device), widest)
        for f in own
    ]
    layers = [adapter.layers[i] for i in group]
    parameters = [part for i in group for part in adapter.factors()[i][::2]]
    training = adapter.model.training
    adapter.model.eval()
    try:
        with _watched(layers, sums), torch.enable_grad():
            for start in range(0, len(texts), size):
                batch = texts[start : start + size]
                for loss in learner.loss_parts(batch):
                    torch.autograd.grad(loss * len(batch), parameters)
                on_text(start + len(batch))
    finally:
        adapter.model.train(training)
    return sums


@contextmanager
def _watched(layers: Sequence[nn.Module], sums: list[_Sums]) -> Iterator[None]:
    """Count what goes into layers, and the gradients that come back, while this is open."""

    def seen(own: _Sums, _: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        out.register_hook(partial(_count, own, given[0].detach()))

    hooks = [
        layer.register_forward_hook(partial(seen, own))
        for layer, own in zip(layers, sums, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _count(own: _Sums, x: Tensor, gradient: Tensor) -> None:
    with torch.no_grad():
        own.add(x, gradient)
