"""How many times the bytes of ours the best peer takes, at nearly the loss of float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.records import FloatArray
from rankcast.statistics import TAILS
from studies.harness.spec import Claim, Verdict
from studies.llm.codes import CURVED, PACK, QAT, SIZED
from studies.llm.curves import Curve, Measured, TaskCurves
from studies.shared.rates import bytes_at

RISE = 0.005
"""Of the answers' loss over the float32 adapter that is allowed [nats per token]."""
RESAMPLES = 500
WAYS = {
    "without training on rounded weights": ((PACK, CURVED), 2.0, "half"),
    "with training on rounded weights": ((QAT, SIZED), 4.0, "a quarter"),
}
"""Families of ours, and how many times their bytes the best peer is said to take at least."""
ANY = ""
"""Stands for the best of any rank."""


@dataclass(frozen=True)
class Reached:
    """Where ours and the best peer reach a loss.

    Attributes:
        theirs: bytes of the best peer; infinite where none gets there.
        peer: label of its curve; empty where none gets there.
        ours: bytes of ours; infinite where none gets there.
        mine: label of our best curve; empty where none gets there.
    """

    theirs: float
    peer: str
    ours: float
    mine: str

    @property
    def times(self) -> float:
        """Bytes of the peer over ours; 0 where ours do not get there."""
        return self.theirs / self.ours if math.isfinite(self.ours) else 0.0


@dataclass(frozen=True)
class Ahead:
    """How far the best peer is behind ours.

    Attributes:
        reached: on all answers.
        low: lower end of the interval of `reached.times`, over groups of answers.
        high: upper end; infinite where the peers do not get there.
        seeds: over which all of it is a mean.
    """

    reached: Reached
    low: float
    high: float
    seeds: tuple[int, ...]

    def verdict(self, times: float) -> Verdict:
        """Return what this says of a claim that the best peer takes so many times the bytes."""
        if self.low >= times:
            return "reproduced"
        if math.isinf(self.reached.ours):
            return "not met"
        if self.high < 1:
            return "opposite sign"
        return "smaller than claimed" if self.high < times else "not distinguishable"


@dataclass(frozen=True)
class _Compared:
    """Curves and references as sums over groups of answers.

    Attributes:
        curves: label, (C,) bytes and (C, G) losses of each curve; peers first.
        n_peers: how many are of peers.
        exact: (E, G) losses of the float32 adapters.
        counts: (G,) tokens.
    """

    curves: tuple[tuple[str, FloatArray, FloatArray], ...]
    n_peers: int
    exact: FloatArray
    counts: FloatArray

    def reach(self, drawn: FloatArray) -> Reached:
        """Return where a loss is reached if group g was drawn `drawn[g]` times."""
        n_tokens = self.counts @ drawn
        level = float((self.exact @ drawn).min() / n_tokens) + RISE
        found = []
        for label, sizes, losses in self.curves:
            points = list(zip(sizes.tolist(), (-(losses @ drawn) / n_tokens).tolist(), strict=True))
            at = bytes_at(points, -level)
            found.append((math.inf, "") if at is None else (at, label))
        nobody = (math.inf, "")
        theirs, peer = min(found[: self.n_peers], default=nobody)
        ours, mine = min(found[self.n_peers :], default=nobody)
        return Reached(theirs, peer, ours, mine)


def ahead(found: TaskCurves, families: Sequence[str], source: str) -> Ahead | None:
    """Return how far ahead ours are at `RISE` above the float32 adapter.

    Whole groups of answers are resampled, the same for all codes, and the best peer, our best curve
    and the best float32 adapter are chosen anew in each resample.

    Args:
        found: of a task.
        families: of ours.
        source: rank of the float32 adapter, whose codes alone are compared; `ANY` for the best of
            any rank, and codes of all ranks.

    Returns:
        None where peers, ours and the reference were not judged with a seed in common.
    """
    peers = [c for c in found.peers if source in (ANY, c.source)]
    ours = [c for c in found.ours(*families) if source in (ANY, c.source)]
    exact = [m for s, m in found.exact.items() if source in (ANY, s)]
    sets = [{seed for one in group for seed in one.seeds} for group in (peers, ours, exact)]
    seeds = tuple(sorted(set.intersection(*sets)))
    if not seeds:
        return None
    compared = _compared(found, peers, ours, exact, seeds)
    n_groups = len(compared.counts)
    draws = np.random.default_rng(0).multinomial(
        n_groups, np.full(n_groups, 1 / n_groups), size=RESAMPLES
    )
    times = [compared.reach(drawn.astype(np.float64)).times for drawn in draws]
    low, high = np.quantile(times, TAILS, method="nearest")
    return Ahead(compared.reach(np.ones(n_groups)), float(low), float(high), seeds)


def _compared(
    found: TaskCurves,
    peers: Sequence[Curve],
    ours: Sequence[Curve],
    exact: Sequence[Measured],
    seeds: Sequence[int],
) -> _Compared:
    """Return what has all seeds, summed over groups."""
    _, labels = np.unique(found.texts.groups, return_inverse=True)

    def of_groups(values: FloatArray) -> FloatArray:
        return np.bincount(labels, values).astype(np.float64)

    def summed(m: Measured) -> FloatArray:
        return of_groups(np.mean([m.losses[seed] for seed in seeds], axis=0))

    def whole(group: Sequence[Curve]) -> list[tuple[str, FloatArray, FloatArray]]:
        return [
            (
                curve.label,
                np.array([m.n_bytes(seeds) for m in codes]),
                np.array([summed(m) for m in codes]),
            )
            for curve in group
            if (codes := [m for m in curve.codes if set(seeds) <= set(m.seeds)])
        ]

    of_peers = whole(peers)
    references = np.array([summed(m) for m in exact if set(seeds) <= set(m.seeds)])
    counts = of_groups(found.texts.counts)
    return _Compared((*of_peers, *whole(ours)), len(of_peers), references, counts)


def claims_of(found: TaskCurves, title: str) -> Iterator[Claim]:
    """Yield the claims of a task: over the best of any rank, then at equal ranks."""
    for how, (families, times, share) in WAYS.items():
        for source in (ANY, *found.exact):
            reached = ahead(found, families, source)
            if reached is not None:
                of = f"LoRA r {source}" if source else "the best adapter of any rank"
                yield _claim(
                    f"{title}: {RISE} nats per token above {of} in float32, a file of ours {how} "
                    f"takes at most {share} of the best peer's bytes.",
                    reached,
                    times,
                )


def _claim(claim: str, found: Ahead, times: float) -> Claim:
    """Return a claim that the best peer takes so many times the bytes of ours."""
    r = found.reached
    interval = (found.low, found.high) if math.isfinite(found.high) else None
    ours = f"{times_words(r.times)}: {size_words(r.theirs)} and {size_words(r.ours)} bytes"
    note = (
        f"Best peer: {r.peer or 'none gets there'}, numbers only. Ours: "
        f"{r.mine or 'none gets there'}, header included. Interval over groups of answers."
    )
    return Claim(claim, "", ours, interval, found.verdict(times), found.seeds, note)


def times_words(times: float) -> str:
    """Return a ratio for readers."""
    return f"{times:.1f} times" if math.isfinite(times) and times else "out of reach"


def size_words(n_bytes: float) -> str:
    """Return bytes for readers."""
    return f"{n_bytes:,.0f}" if math.isfinite(n_bytes) else "no"
