"""Gains that make an additive problem of a saturating one."""

from __future__ import annotations

import numpy as np

from rankcast.allocation.base import AllocationProblem
from rankcast.records import FloatArray, IntArray, LinkState

_TINY, _MARGIN = 1e-300, 1e-9
_LEAST_FACTOR = 1e-100  # without a price everything is worth sending, however little is left


def marginal_gains(
    gains: FloatArray, amplitude: FloatArray, problem: AllocationProblem, link: LinkState
) -> FloatArray:
    """Return gains that make an additive problem of a saturating one, with the same best plan.

    Components enter in order of gain per bit, after those of the minimum rank. The best plan is the
    prefix k of that order with the least A·exp(-s) + λη. The factor that is returned on g lies
    between the prices per gain of the components k and k + 1, so that water-filling stops there;
    where many are equal, as within a bin, those sent are lifted above their price and the others
    held below it.

    Args:
        gains: (B, N, R) g, decreasing along R.
        amplitude: (B,) A.
        problem: λ, minimum rank and link costs.
        link: B links.

    Returns:
        (B, N, R) m·g with one m for each link, but for components of equal price per gain.
    """
    prices = problem.link_weight * problem.component_costs(link)
    priority = gains / np.maximum(prices, _TINY)
    priority[:, :, : problem.min_rank] = np.inf
    prices, flat = (x.reshape(len(gains), -1) for x in (prices, gains))
    order = np.argsort(-priority.reshape(flat.shape), axis=1, kind="stable")
    g = np.take_along_axis(flat, order, axis=1)
    c = np.take_along_axis(prices, order, axis=1)
    left, k = _best_prefix(g, c, amplitude, gains.shape[1] * problem.min_rank)
    ratio = c / np.maximum(g, _TINY)  # m above it: the component is sent
    position = np.arange(g.shape[1])
    last, following = (position == at[:, None] for at in (k - 1, k))
    free = position >= gains.shape[1] * problem.min_rank
    below = np.where(last & free, ratio, 0.0).max(axis=1)
    above = np.where(following & (c > 0), ratio, np.inf).min(axis=1)
    factor = np.clip(left, below * (1 + _MARGIN), above * (1 - _MARGIN))
    worth = np.maximum(factor, _LEAST_FACTOR)[:, None] * flat
    sent = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(sent, order, position < k[:, None], axis=1)
    lifted = np.maximum(worth, prices * (1 + _MARGIN))
    held = np.where(prices > 0, np.minimum(worth, prices * (1 - _MARGIN)), worth)
    return np.where(sent, lifted, held).reshape(gains.shape)


def _best_prefix(
    g: FloatArray, c: FloatArray, amplitude: FloatArray, least: int
) -> tuple[FloatArray, IntArray]:
    """Return (B,) A·exp(-s) at the best prefix of (B, N·R) components in order, and its length."""
    none = np.zeros((len(g), 1))
    total = np.concatenate([none, g.cumsum(axis=1)], axis=1)
    left = amplitude[:, None] * np.exp(-total)
    spent = np.concatenate([none, c.cumsum(axis=1)], axis=1)
    k = (left + spent)[:, least:].argmin(axis=1) + least
    return left[np.arange(len(g)), k], k
