"""How much each component of an adapter matters, read off a model instead of learned from losses.

Shapes: `N` projections, `R` = r_max. Every function that returns scores returns (N, R), larger for
what matters more; `studies.baselines.scored.ScoredAllocator` makes plans of them. Batches are
what the model takes: mappings of keyword arguments, with labels where a loss is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import DataError, ModelError
from rankcast.records import AdapterLayout, FloatArray
from studies.baselines.canonical import sorted_factors


def spectral_scores(
    adapter: ElasticAdapter, second_moments: Sequence[Tensor] | None = None
) -> FloatArray:
    """Return the (N, R) squared singular values of each projection's update s·P Λ Q.

    They belong to the components as `studies.baselines.canonical.canonicalise` sorts them with the
    same second moments: call it before a plan made from them is applied.

    Args:
        adapter: left as it is; all components take part, whatever ranks are active.
        second_moments: E[x xᵀ] of each projection's input, (d_in, d_in) or its diagonal (d_in,);
            None weighs all directions alike.

    Raises:
        ModelError: second moments that do not fit the projections.
    """
    rows: list[Tensor] = []
    for i, moment in enumerate(_checked_moments(adapter.layout, second_moments)):
        P, lam, Q = (part.double().cpu() for part in adapter.components(i))
        _, values, right = sorted_factors(P, lam, Q, moment)
        rows.append(_component_energies(values, right, moment))
    return adapter.scale**2 * torch.stack(rows).numpy()


def sensitivity_scores(
    adapter: ElasticAdapter, batches: Iterable[Mapping[str, Tensor]], *, vectors: bool = True
) -> FloatArray:
    """Return (N, R) |λ·∂U/∂λ| of each component at full rank, averaged over batches.

    To first order, what setting a component's λ to zero changes the loss by. With `vectors` the
    mean of |p·∂U/∂p| over its column of P and its row of Q is added, as in AdaLoRA's importance.

    Differs from AdaLoRA: plain means over batches of a model that is not being trained, instead of
    a running mean times a running uncertainty.

    Args:
        adapter: a trained one, left as it is; run in eval mode.
        batches: with labels.
        vectors: whether P and Q count.

    Raises:
        DataError: no batch.
        ModelError: all scores are zero, because the adapter does nothing yet.
    """
    n, r_max = adapter.layout.n_projections, adapter.layout.r_max
    sums, n_batches = torch.zeros(n, r_max, dtype=torch.float64), 0
    training = adapter.model.training
    adapter.model.eval()
    try:
        with adapter.at_ranks([r_max] * n), torch.enable_grad():
            for batch in batches:
                sums += _sensitivities(adapter, adapter.model(**batch).loss, vectors=vectors)
                n_batches += 1
    finally:
        adapter.model.train(training)
    if n_batches == 0:
        raise DataError("Sensitivities need at least one batch.")
    if not sums.any():
        raise ModelError(
            "Every sensitivity is zero: the adapter is fresh and does nothing. Train it first."
        )
    return (sums / n_batches).numpy()


def _sensitivities(adapter: ElasticAdapter, loss: Tensor, *, vectors: bool) -> Tensor:
    """Return (N, R) |λ·∂U/∂λ|, with the mean of |p·∂U/∂p| over P and Q added if they count."""
    parts = [part for factors in adapter.factors() for part in factors]
    touched = [
        (part * grad).detach().abs().double().cpu()
        for part, grad in zip(parts, torch.autograd.grad(loss, parts), strict=True)
    ]
    rows: list[Tensor] = []
    for Q, lam, P in zip(touched[::3], touched[1::3], touched[2::3], strict=True):
        rows.append(lam.view(-1) + (Q.mean(1) + P.mean(0) if vectors else 0.0))
    return torch.stack(rows)


def _component_energies(values: Tensor, right: Tensor, moment: Tensor | None) -> Tensor:
    """Return (R,) E‖P_i λ_i Q_i x‖² for orthonormal columns P_i."""
    if moment is None:
        return values.square()
    weighted = right * moment if moment.ndim == 1 else right @ moment
    return values.square() * (weighted * right).sum(1)


def _checked_moments(
    layout: AdapterLayout, second_moments: Sequence[Tensor] | None
) -> list[Tensor] | list[None]:
    """Return one moment, or None, for each projection.

    Raises:
        ModelError: moments that do not fit the projections.
    """
    if second_moments is None:
        return [None] * layout.n_projections
    widths = [p.d_in for p in layout.projections]
    shapes = [tuple(moment.shape) for moment in second_moments]
    allowed = [((width,), (width, width)) for width in widths]
    fits = len(shapes) == len(widths)
    if not fits or any(s not in a for s, a in zip(shapes, allowed, strict=True)):
        raise ModelError(
            f"Second moments must have shape (d_in,) or (d_in, d_in) for each of {len(widths)} "
            f"projections; collect them with this adapter."
        )
    return [moment.double().cpu() for moment in second_moments]
