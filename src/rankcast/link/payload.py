"""Parameters, bits, seconds and the link cost η of a rank vector (Eq. 6-8), as functions.

Shapes: `ranks` (..., N) with any leading batch axes; bits, rates and times broadcast together.

Differs from the paper: b_t, there the length of a codeword, is the number of bits that carry one
parameter, which is how Eq. 6 uses it and the only reading that gives seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Literal, get_args

import numpy as np

from rankcast.errors import ConfigError, LinkError, nearest
from rankcast.records import AdapterLayout, FloatArray, IntArray, Projection

Accounting = Literal["exact", "paper", "paper_with_singular_values"]
"""How many numbers one more rank of a projection costs.

- `exact`: d_in + d_out + 1, what is really sent.
- `paper`: 2·d_h for every projection, the convention of Table IV (OPT-1.3B at r = 8 is
  24·6·8·2·2048 = 4,718,592); it undercounts fc1 and fc2.
- `paper_with_singular_values`: 2·d_h + 1, as written in Eq. 2 and 6.
"""


def params_per_rank(layout: AdapterLayout, accounting: Accounting = "exact") -> IntArray:
    """Return (N,) parameters transmitted per unit of rank (the factor 2·d_h + 1 of Eq. 6).

    Differs from the paper: the default counts the true widths of each projection.

    Raises:
        ConfigError: unknown accounting.
    """
    known = get_args(Accounting)
    if accounting not in known:
        raise ConfigError(
            f"There is no payload accounting {accounting!r}{nearest(accounting, known)}. "
            f"Known: {', '.join(known)}."
        )
    if accounting == "exact":
        return layout.params_per_rank.copy()
    of_layer: defaultdict[int, list[Projection]] = defaultdict(list)
    for projection in layout.projections:
        of_layer[projection.layer].append(projection)
    hidden = {layer: _hidden_width(members) for layer, members in of_layer.items()}
    singular_values = int(accounting == "paper_with_singular_values")
    return np.array(
        [2 * hidden[p.layer] + singular_values for p in layout.projections], dtype=np.int64
    )


def payload_params(ranks: IntArray, params_per_rank: IntArray) -> IntArray:
    """Return (...) parameters to transmit: Σ r·(2·d_h + 1), the numerator of Eq. 8.

    Args:
        ranks: (..., N) ranks, at least 0.
        params_per_rank: (N,) parameters per unit of rank.

    Raises:
        ConfigError: ranks that are negative or not integers, or another N.
    """
    ranks = np.asarray(ranks)
    if not np.issubdtype(ranks.dtype, np.integer):
        raise ConfigError(f"Ranks must be integers, got {ranks.dtype}; round or decode them first.")
    if ranks.ndim == 0 or ranks.shape[-1] != len(params_per_rank):
        raise ConfigError(
            f"The last axis of ranks must have one entry for each of the {len(params_per_rank)} "
            f"projections, got shape {ranks.shape}."
        )
    if (ranks < 0).any():
        raise ConfigError(f"Ranks must be at least 0, got {ranks.min()}.")
    return ranks.astype(np.int64) @ params_per_rank


def payload_bits(
    ranks: IntArray, params_per_rank: IntArray, bits_per_param: float = 32.0
) -> FloatArray:
    """Return (...) bits on the air: the numerator of Eq. 8.

    Args:
        ranks: (..., N) ranks, at least 0.
        params_per_rank: (N,) parameters per unit of rank.
        bits_per_param: b_t, bits that carry one parameter; an average may be fractional.

    Raises:
        ConfigError: impossible ranks, or bits_per_param not positive and finite.
    """
    check_bits_per_param(bits_per_param)
    return payload_params(ranks, params_per_rank) * np.float64(bits_per_param)


def transmission_time_s(bits: FloatArray | float, rate_bps: FloatArray | float) -> FloatArray:
    """Return the time on the air [s] (Eq. 6).

    Raises:
        LinkError: negative bits; a rate that is not positive and finite.
    """
    _check("Payload [bits]", bits, zero_allowed=True)
    _check("Rate [bit/s]", rate_bps)
    return np.asarray(bits, dtype=np.float64) / rate_bps


def budget_bits(rate_bps: FloatArray | float, deadline_s: FloatArray | float) -> FloatArray:
    """Return C·T_max, the bits that arrive before the deadline (Eq. 7).

    Raises:
        LinkError: a rate or deadline that is not positive and finite.
    """
    _check("Rate [bit/s]", rate_bps)
    _check("Deadline [s]", deadline_s)
    return np.asarray(rate_bps, dtype=np.float64) * deadline_s


def link_cost(
    bits: FloatArray | float, rate_bps: FloatArray | float, deadline_s: FloatArray | float
) -> FloatArray:
    """Return η, the share of the budget that is used; at most 1 iff it arrives in time (Eq. 7, 8).

    Raises:
        LinkError: negative bits; a rate or deadline that is not positive and finite.
    """
    _check("Payload [bits]", bits, zero_allowed=True)
    return np.asarray(bits, dtype=np.float64) / budget_bits(rate_bps, deadline_s)


def _hidden_width(members: list[Projection]) -> int:
    """Return d_h of one layer: the input of its query, else its most common width.

    A tie goes to the narrower width, since feed-forward layers widen.
    """
    for projection in members:
        if projection.kind == "q":
            return projection.d_in
    counts = Counter(width for p in members for width in (p.d_in, p.d_out))
    return min(counts, key=lambda width: (-counts[width], width))


def check_bits_per_param(bits_per_param: float) -> None:
    """Refuse what cannot carry a parameter.

    Raises:
        ConfigError: not positive and finite.
    """
    if not (np.isfinite(bits_per_param) and bits_per_param > 0):
        raise ConfigError(f"bits_per_param must be positive and finite, got {bits_per_param}.")


def _check(name: str, value: FloatArray | float, *, zero_allowed: bool = False) -> None:
    """Refuse NaN, infinite and negative values, and zero unless it is allowed."""
    value = np.asarray(value, dtype=np.float64)
    in_range = value >= 0 if zero_allowed else value > 0
    if not (np.isfinite(value) & in_range).all():
        kind = "at least 0" if zero_allowed else "positive"
        raise LinkError(f"{name} must be {kind} and finite, got {value.tolist()}.")
