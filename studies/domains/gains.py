"""What levels are worth to each domain, and the plans that follow.

Shapes: `D` domains, `n` texts of each, `N` projections, `K` levels beside nothing, `B` budgets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rankcast.allocation.knapsack import knapsack
from rankcast.allocation.level_problem import LevelProblem
from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel
from rankcast.codec.levels import Levels, file_of
from rankcast.codec.packing import Source
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import InfeasibleSizeError
from rankcast.link.capacity import Awgn
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState

_TRIES = 30


def source_of(tensors: AdapterTensors) -> Source:
    """Return an adapter to pack without its classifier, which is the same in every file."""
    name = "sentence-transformers/all-MiniLM-L6-v2"
    alone = replace(tensors, modules={}, carriage={})
    return Source(alone, BaseModel(name, "0123456789abcdef" * 4), {"task_type": "SEQ_CLS"})


def problem_of(source: Source, levels: Levels) -> LevelProblem:
    """Return the choice of levels where the deadline alone limits it."""
    layout = AdapterLayout(source.tensors.projections, levels.n_levels)
    return LevelProblem.of(levels, layout, Awgn(), link_weight=0.0)


@dataclass(frozen=True)
class Gains:
    """Gains as they were measured, text by text.

    Attributes:
        of_texts: (D, n, N, K + 1) what each level brings to each text over nothing, all other
            projections at one plan [nats].
    """

    of_texts: FloatArray

    @property
    def mean(self) -> FloatArray:
        """(D, N, K + 1) gains of each domain."""
        return self.of_texts.mean(axis=1)

    @property
    def variance(self) -> FloatArray:
        """(D, N, K + 1) squared standard error of `mean`."""
        return self.of_texts.var(axis=1, ddof=1) / self.of_texts.shape[1]

    @property
    def shares(self) -> FloatArray:
        """(D,) how much of a domain's deviation from the mean of domains is no error of measuring.

        A domain's deviation times this share is its best estimate: what is not sure counts less.
        """
        mean, n = self.mean, len(self.of_texts)
        squares = np.square(mean - mean.mean(axis=0)).sum(axis=(1, 2))
        own = self.variance.sum(axis=(1, 2))
        errors = own * (1 - 2 / n) + own.sum() / n**2
        return np.clip(1 - errors / np.maximum(squares, 1e-30), 0.0, 1.0)

    @property
    def expected(self) -> FloatArray:
        """(D, N, K + 1) gains of each domain, drawn towards the mean of domains by `shares`."""
        mean = self.mean.mean(axis=0)
        return mean + self.shares[:, None, None] * (self.mean - mean)

    def correlations(self) -> tuple[FloatArray, FloatArray]:
        """Return (D, D) correlations of gains over levels: as measured, and without its errors.

        Errors lower correlations. They are taken out by measuring each domain's variance as the
        covariance of two halves of its texts; NaN where that is not positive.
        """
        halves = self.of_texts[:, ::2].mean(axis=1), self.of_texts[:, 1::2].mean(axis=1)
        one, other = (half[:, :, 1:].reshape(len(half), -1) for half in halves)
        whole = self.mean[:, :, 1:].reshape(len(one), -1)
        n, covariance = len(one), np.cov(whole)
        own = np.array([np.cov(a, b)[0, 1] for a, b in zip(one, other, strict=True)])
        sizes = np.sqrt(np.where(own > 0, own, np.nan))
        without = covariance / np.outer(sizes, sizes)
        without[np.arange(n), np.arange(n)] = 1.0
        return np.asarray(np.corrcoef(whole)), without


def links(snrs_db: tuple[float, ...], bandwidths_hz: tuple[float, ...]) -> LinkState:
    """Return the B links with a deadline of one second, all SNRs at each bandwidth."""
    snr = np.tile(np.array(snrs_db), len(bandwidths_hz))
    bandwidth = np.repeat(np.array(bandwidths_hz), len(snrs_db))
    return LinkState(snr, bandwidth, np.ones(len(snr)))


def planned(
    source: Source, problem: LevelProblem, gains: FloatArray, budget_bits: float
) -> tuple[IntArray, Container]:
    """Return the (N,) levels that gain most of those whose file arrives, and that file.

    The exact solver counts coded bits as levels have them. Where a file takes more, it is asked
    again for as much less.

    Args:
        source: the adapter.
        problem: its levels.
        gains: (N, K + 1) of each level over nothing.
        budget_bits: of the whole file.

    Raises:
        InfeasibleSizeError: not even a file of nothing arrives.
    """
    room, n_bits = budget_bits, 0.0
    for _ in range(_TRIES):
        link = LinkState(np.zeros(1), np.array([room]), np.ones(1))  # a bit a second at 0 dB
        if not problem.arrivable(link).all():
            break
        plan = knapsack(gains, problem, link)[0]
        file = file_of(source, problem.levels, plan)
        n_bits = float(file.n_bits)
        if n_bits <= budget_bits:
            return plan, file
        room *= 0.995 * budget_bits / n_bits
    smallest = max(int(problem.levels.overhead_bits // 8), 1)
    raise InfeasibleSizeError(smallest, int(budget_bits // 8), trainable=False)


def worth(gains: FloatArray, plan: IntArray) -> float:
    """Return what an (N,) plan brings by (N, K + 1) gains that add up [nats]."""
    return float(gains[np.arange(len(plan)), plan].sum())
