"""Sort components so that the first r of them are the best version of rank r (Eckart–Young)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import ModelError


@torch.no_grad()
def canonicalise(adapter: ElasticAdapter, second_moments: Sequence[Tensor] | None = None) -> None:
    """Rewrite every P Λ Q, unchanged as a product, so that each prefix is its best truncation.

    Best means least ‖ΔW − ΔW_r‖_F, or, given C = E[x xᵀ] of each projection's input, least
    E‖(ΔW − ΔW_r) x‖². P gets orthonormal columns and Λ falls without C. With C the rows of Q have
    unit length and are not orthogonal. An optimiser's moments no longer fit afterwards: call
    `PrefixAdamW.reset_state()`.

    Args:
        adapter: changed in place; all `r_max` components take part, whatever ranks are active.
        second_moments: N tensors, (d_in, d_in) or the diagonal (d_in,); None weighs all alike.

    Raises:
        ModelError: second moments that do not fit the projections.
    """
    if second_moments is not None:
        _check_moments(adapter, second_moments)
    for i, (Q, lam, P) in enumerate(adapter.factors()):
        moment = None if second_moments is None else second_moments[i].to(Q.device, torch.float64)
        left, values, right = sorted_factors(P.double(), lam.double().view(-1), Q.double(), moment)
        P.copy_(left)
        lam.copy_(values[:, None])
        Q.copy_(right)


@torch.no_grad()
def balance(adapter: ElasticAdapter) -> None:
    """Sort the components as `canonicalise` does and rewrite them as U√S and √S·V.

    P's columns and Q's rows then have equal norms, and s·Λ is 1: the form in which an adapter is
    coded, because one quantiser step fits both factors. An optimiser's moments no longer fit.
    """
    canonicalise(adapter)
    for Q, lam, P in adapter.factors():
        root = (adapter.scale * lam.view(-1)).sqrt()
        P.mul_(root)
        Q.mul_(root[:, None])
        lam.fill_(1.0 / adapter.scale)


def sorted_factors(
    P: Tensor, lam: Tensor, Q: Tensor, second_moment: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return P', Λ', Q' with P'Λ'Q' = PΛQ whose every prefix is the best truncation.

    With U the left singular vectors of PΛQ C^½, the best rank-r version is U_r U_rᵀ PΛQ: a
    projection, which needs no inverse of C. The matrix of (d_out, d_in) is never formed.

    Args:
        P: (d_out, r).
        lam: (r,).
        Q: (r, d_in).
        second_moment: C, (d_in, d_in) or its diagonal (d_in,); None stands for the identity.
    """
    r = len(lam)
    basis_out, core_out = torch.linalg.qr(P * lam)  # (d_out, k), (k, r)
    if second_moment is None:
        core = core_out @ torch.linalg.qr(Q.mT).R.mT
    else:
        weighted = Q * second_moment if second_moment.ndim == 1 else Q @ second_moment
        core = core_out @ _square_root(weighted @ Q.mT)
    U = torch.linalg.svd(core, full_matrices=True).U  # (k, k)
    rows = U.mT @ core_out @ Q
    values = torch.linalg.vector_norm(rows, dim=1)
    alive = values > 1e-12 * values.max().clamp_min(1e-30)
    right = torch.where(alive[:, None], rows / values.clamp_min(1e-30)[:, None], 0.0)
    values = torch.where(alive, values, 0.0)
    right = _fill(right, alive, Q)
    pad = r - len(values)  # d_out below r: the rest stays zero
    left = torch.nn.functional.pad(basis_out @ U, (0, pad))
    return left, torch.nn.functional.pad(values, (0, pad)), _pad_rows(right, pad)


def _check_moments(adapter: ElasticAdapter, moments: Sequence[Tensor]) -> None:
    """Raise unless there is one moment of the right width for each projection."""
    projections = adapter.layout.projections
    if len(moments) != len(projections):
        raise ModelError(
            f"There are {len(projections)} projections but {len(moments)} second moments; "
            f"collect them with this adapter."
        )
    for p, moment in zip(projections, moments, strict=True):
        if tuple(moment.shape) not in ((p.d_in,), (p.d_in, p.d_in)):
            raise ModelError(
                f"{p.name} takes {p.d_in} inputs, so its second moment has shape ({p.d_in},) or "
                f"({p.d_in}, {p.d_in}), not {tuple(moment.shape)}."
            )


def _square_root(matrix: Tensor) -> Tensor:
    """Return B with B Bᵀ = matrix for a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return vectors * values.clamp_min(0).sqrt()


def _fill(right: Tensor, alive: Tensor, Q: Tensor) -> Tensor:
    """Give each component of value zero a unit row, so that training can bring it to life.

    The rows are orthogonal to those of the living components and within the span of the old Q as
    far as that goes.
    """
    n_dead = int((~alive).sum())
    if not n_dead:
        return right
    living = right[alive]
    basis = torch.linalg.qr(torch.cat([living, Q]).mT).Q.mT
    spare = basis[len(living) : len(living) + n_dead]
    filled = right.clone()
    filled[~alive] = _pad_rows(spare, n_dead - len(spare))
    return filled


def _pad_rows(rows: Tensor, count: int) -> Tensor:
    """Append `count` rows of zeros."""
    return torch.nn.functional.pad(rows, (0, 0, 0, count))
