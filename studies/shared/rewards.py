"""Rewards and regrets of policies that were trained on calibrated learners, and how soon they come.

Rewards are noise-free and those of the deployed policy, averaged over the judged links.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.records import FloatArray
from studies.harness.spec import Claim, HeatMap, Row, Series, Verdict
from studies.report.statistics import Estimate, paired_t, t_interval
from studies.surrogate.world import regret_unit

Rows = Mapping[str, Sequence[Row]]
"""Rows of each variant, by label."""


def regret(row: Row, episode: int | None = None, what: str = "deployed") -> float:
    """Return the regret after some episodes, or at the end."""
    curve = row.values["curve"]
    points = curve if episode is None else [p for p in curve if p["episode"] <= episode]
    return float(points[-1][what])


def reward(row: Row, episode: int | None = None, what: str = "deployed") -> float:
    """Return the noise-free reward after some episodes, or at the end."""
    return _reward_of(row, regret(row, episode, what))


def _reward_of(row: Row, value: float) -> float:
    oracle, uniform = row.values["oracle"], row.values["best_uniform"]
    return float(-(oracle + value * regret_unit(oracle, uniform)))


def reward_series(label: str, rows: Sequence[Row], what: str = "deployed") -> Series:
    """Return the learning curve of one variant: mean and t interval over seeds."""
    episodes = [p["episode"] for p in rows[0].values["curve"]]
    rewards = [[_reward_of(row, p[what]) for p in row.values["curve"]] for row in rows]
    return series_over_seeds(label, episodes, rewards)


def series_over_seeds(
    label: str, x: Sequence[float], values: Sequence[Sequence[float]] | FloatArray
) -> Series:
    """Return the mean of (S, C) values over seeds as a line, with the t interval as its band.

    A single seed has a band without width.
    """
    points = [t_interval(at) for at in zip(*values, strict=True)]
    bands = [p.interval or (p.value, p.value) for p in points]
    low, high = [low for low, _ in bands], [high for _, high in bands]
    return Series(label, list(x), [p.value for p in points], low, high)


def deployed_regret(label: str, rows: Sequence[Row]) -> Series:
    """Return the regret of the deployed policy as it learns, as far as the shortest of the rows."""
    length = min(len(row.values["curve"]) for row in rows)
    curves = [row.values["curve"][:length] for row in rows]
    episodes = [point["episode"] for point in curves[0]]
    regrets = [[point["deployed"] for point in curve] for curve in curves]
    return series_over_seeds(label, episodes, regrets)


def in_pairs(ours: Sequence[Row], theirs: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return the rows of the seeds that both have, seed by seed."""
    other = {row.job.seed: row for row in theirs}
    return [(row, other[row.job.seed]) for row in ours if row.job.seed in other]


def paired(ours: Sequence[Row], theirs: Sequence[Row]) -> Estimate:
    """Return the difference of final rewards, seed by seed.

    Raises:
        ConfigError: no seed in common.
    """
    both = in_pairs(ours, theirs)
    return paired_t([reward(row) for row, _ in both], [reward(row) for _, row in both])


def episodes_to(row: Row, target: float) -> float:
    """Return the first judged episode at which a reward is reached, or infinity."""
    for point in row.values["curve"]:
        if _reward_of(row, point["deployed"]) >= target:
            return float(point["episode"])
    return math.inf


@dataclass(frozen=True, slots=True)
class Race:
    """How soon one method reaches the final reward of another.

    Attributes:
        share: its episodes as a share of those that the other itself took to come as far; a seed
            that never did counts with all its episodes, which is too few.
        of_all: its episodes as a share of all that the other was trained for.
        missed: how many seeds never came as far.
        seeds: that both methods have.
        idle: in how many seeds the other stood at its final reward when it was first judged, no
            better than the best single rank. What learns nothing does not converge.
    """

    share: Estimate
    of_all: float
    missed: int
    seeds: tuple[int, ...]
    idle: int = 0

    def verdict(self, most: float) -> Verdict:
        """Return what it says of the claim that a share of the episodes is enough."""
        if 2 * self.idle > len(self.seeds):
            return "not testable here"
        if self.share.interval is None:
            return "not distinguishable"
        if self.share.low > most:
            return "opposite sign" if self.share.low > 1 else "smaller than claimed"
        enough = self.share.high <= most and not self.missed
        return "reproduced" if enough else "not distinguishable"

    def note_on_idle(self, name: str) -> str:
        """Return what a reader has to know if the other learned nothing; empty if it did."""
        if not self.idle:
            return ""
        return (
            f" In {self.idle} of {len(self.seeds)} seeds {name} stood at its final reward when "
            "first judged, no better than one rank for all: there is no convergence to be timed."
        )


def race(ours: Sequence[Row], theirs: Sequence[Row]) -> Race | None:
    """Compare when both first reach `theirs` final reward; None without a seed in common."""
    both = in_pairs(ours, theirs)
    if not both:
        return None
    reached = [episodes_to(mine, reward(other)) for mine, other in both]
    spent = [min(n, _episodes(mine)) for n, (mine, _) in zip(reached, both, strict=True)]
    needed = [episodes_to(other, reward(other)) for _, other in both]
    every = [_episodes(other) for _, other in both]
    return Race(
        t_interval(np.divide(spent, needed)),
        float(np.divide(spent, every).mean()),
        sum(math.isinf(n) for n in reached),
        tuple(mine.job.seed for mine, _ in both),
        sum(
            episode == other.values["curve"][0]["episode"] and regret(other) >= 1
            for episode, (_, other) in zip(needed, both, strict=True)
        ),
    )


def _episodes(row: Row) -> float:
    return float(row.values["curve"][-1]["episode"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much final reward one variant earns more than another, measured seed by seed.

    Attributes:
        claim: what a positive difference means, as a sentence.
        one: label of the variant from which the other is subtracted.
        other: label of the other.
        note: what a reader has to know to judge it.
    """

    claim: str
    one: str
    other: str
    note: str = "Calibrated learner, final reward."

    def claims(self, rows: Rows) -> list[Claim]:
        """Return the difference, if both variants have a seed in common."""
        both = in_pairs(rows.get(self.one, ()), rows.get(self.other, ()))
        if not both:
            return []
        difference = paired_t(
            [reward(one) for one, _ in both], [reward(other) for _, other in both]
        )
        seeds, ours = tuple(one.job.seed for one, _ in both), f"{difference.value:+.4f}"
        return [Claim(self.claim, "", ours, difference.interval, "measured", seeds, self.note)]


def plan_bits(rows: Sequence[Row], snr_db: float) -> FloatArray:
    """Return (S,) bits of each seed's plan for a link."""
    return np.array(
        [p["payload_bits"] for row in rows for p in row.values["plans"] if p["snr_db"] == snr_db]
    )


def rank_map(title: str, rows: Sequence[Row]) -> HeatMap:
    """Return mean ranks over seeds and links: layers across, kinds of projection down."""
    ranks = np.array([row.values["mean_ranks"] for row in rows], dtype=np.float64)  # (S, K, N)
    kinds = ("q", "k", "v", "o", "fc1", "fc2")
    table = ranks.mean(axis=0).mean(axis=0).reshape(-1, len(kinds)).T
    layers = tuple(f"layer {i + 1}" for i in range(table.shape[1]))
    return HeatMap(title, kinds, layers, table, "mean rank")
