"""Any updates of the projections as ordered components, such as those of a full fine-tuning.

Shapes: `N` projections, `R` = r_max.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rankcast.adapters.canonical import sorted_factors
from rankcast.adapters.svd import ElasticAdapter
from rankcast.errors import ModelError
from rankcast.records import AdapterLayout, FloatArray


@dataclass(frozen=True, eq=False)
class Components:
    """Updates in ordered components, ΔW ≈ P Λ Q for each projection.

    Attributes:
        factors: P (d_out, R), the diagonal of Λ (R,) and Q (R, d_in) of each projection.
        scores: (N, R) what each component adds to ‖ΔW‖_F², or to E‖ΔW x‖² where activations count.
    """

    factors: tuple[tuple[Tensor, Tensor, Tensor], ...]
    scores: FloatArray


def truncate_dense(
    deltas: Mapping[str, Tensor],
    layout: AdapterLayout,
    second_moments: Sequence[Tensor] | None = None,
) -> Components:
    """Return the R best components of the weight differences that a full fine-tuning made.

    Args:
        deltas: ΔW (d_out, d_in) by name of projection; `dense_deltas` makes them.
        layout: the projections and r_max.
        second_moments: as for `spectral_scores`.

    Raises:
        ModelError: a difference that is missing or of another shape, or moments that do not fit.
    """
    factors: list[tuple[Tensor, Tensor, Tensor]] = []
    rows: list[Tensor] = []
    for p, moment in zip(layout.projections, checked_moments(layout, second_moments), strict=True):
        delta = deltas.get(p.name)
        if delta is None or delta.shape != (p.d_out, p.d_in):
            shape = None if delta is None else tuple(delta.shape)
            raise ModelError(
                f"The weight difference of {p.name} must have shape (d_out, d_in) = "
                f"({p.d_out}, {p.d_in}), got {shape}; make them with dense_deltas."
            )
        P, lam, Q = _truncated(delta.detach().double().cpu(), layout.r_max, moment)
        factors.append((P, lam, Q))
        rows.append(component_energies(lam, Q, moment))
    return Components(tuple(factors), torch.stack(rows).numpy())


def dense_deltas(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], adapter: ElasticAdapter
) -> dict[str, Tensor]:
    """Return ΔW (d_out, d_in) of each projection from two state dictionaries of the base model.

    Args:
        before: the base model's, such as `model.state_dict()` before an adapter was attached.
        after: that of the same model, fine-tuned in full.
        adapter: of the same architecture; it knows which layers store their weight input-first.

    Raises:
        ModelError: a projection's weight is missing.
    """
    deltas: dict[str, Tensor] = {}
    for p, layer in zip(adapter.layout.projections, adapter.layers, strict=True):
        key = f"{p.name}.weight"
        if key not in before or key not in after:
            raise ModelError(f"The weights lack {key!r}; give the base model's own state_dict().")
        delta = after[key].detach().double() - before[key].detach().double()
        deltas[p.name] = delta.mT if layer.fan_in_fan_out else delta
    return deltas


@torch.no_grad()
def load_components(adapter: ElasticAdapter, components: Components) -> None:
    """Copy components into an adapter, so that its update at full rank is theirs, P Λ Q.

    A head that was trained with them is not part of them: copy it into `extra_modules()`.

    Raises:
        ModelError: components of another layout; nothing is changed.
    """
    shapes = [(p.d_out, p.d_in) for p in adapter.layout.projections]
    found = [(len(P), Q.shape[1]) for P, _, Q in components.factors]
    if found != shapes or any(len(lam) != adapter.layout.r_max for _, lam, _ in components.factors):
        raise ModelError(
            "The components belong to another layout: truncate with this adapter's layout."
        )
    for mine, (P, lam, Q) in zip(adapter.factors(), components.factors, strict=True):
        mine[0].copy_(Q)
        mine[1].copy_(lam[:, None] / adapter.scale)
        mine[2].copy_(P)


def component_energies(values: Tensor, right: Tensor, moment: Tensor | None) -> Tensor:
    """Return (R,) E‖P_i λ_i Q_i x‖² for orthonormal columns P_i."""
    if moment is None:
        return values.square()
    weighted = right * moment if moment.ndim == 1 else right @ moment
    return values.square() * (weighted * right).sum(1)


def checked_moments(
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


def _truncated(delta: Tensor, r_max: int, moment: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return P (d_out, R), λ (R,) and Q (R, d_in) of a dense difference, padded with zeros."""
    d_out, d_in = delta.shape
    ones = delta.new_ones(min(d_out, d_in))
    identity = torch.diag(ones)
    left, right = (identity, delta) if d_out <= d_in else (delta, identity)
    P, lam, Q = sorted_factors(left, ones, right, moment)
    missing = max(r_max - len(lam), 0)
    P, lam, Q = P[:, :r_max], lam[:r_max], Q[:r_max]
    return pad(P, (0, missing)), pad(lam, (0, missing)), pad(Q, (0, 0, 0, missing))
