"""What experiments read out of rows: rewards, regrets, accuracies on the real model, verdicts.

Rewards are noise-free and those of the deployed policy, averaged over the judged links.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.errors import ConfigError
from rankcast.experiment.live import unpack
from rankcast.experiment.spec import HeatMap, Row, Series, Verdict
from rankcast.experiment.world import regret_unit
from rankcast.records import FloatArray
from rankcast.statistics import Estimate, paired_t, pooled_bootstrap, t_interval


def verdict(difference: Estimate, claimed: float) -> Verdict:
    """Return what a difference, positive where the paper claims so, says of the paper's.

    `reproduced`: our interval is above 0, whatever the size. `contradicted`: it reaches 0 or below
    and excludes the paper's size. `not resolved`: it holds both, or there is no interval.

    Args:
        difference: ours.
        claimed: the paper's size; infinite where it only says which is better, and then an
            interval has to lie below 0 to contradict it.
    """
    if difference.interval is None:
        return "not resolved"
    if difference.low > 0:
        return "reproduced"
    size = claimed if math.isfinite(claimed) else 0.0
    return "contradicted" if difference.high < size else "not resolved"


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
    points = [t_interval(at) for at in zip(*rewards, strict=True)]
    bands = [p.interval or (p.value, p.value) for p in points]
    return Series(
        label,
        episodes,
        [p.value for p in points],
        [low for low, _ in bands],
        [high for _, high in bands],
    )


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
            return "not resolved"
        if self.share.low > most:
            return "contradicted"
        return "reproduced" if self.share.high <= most and not self.missed else "not resolved"


def race(ours: Sequence[Row], theirs: Sequence[Row]) -> Race | None:
    """Compare when both first reach `theirs` final reward; None without a seed in common."""
    both = in_pairs(ours, theirs)
    if not both:
        return None
    found = [episodes_to(mine, reward(other)) for mine, other in both]
    spent = [min(n, _episodes(mine)) for n, (mine, _) in zip(found, both, strict=True)]
    needed = [episodes_to(other, reward(other)) for _, other in both]
    every = [_episodes(other) for _, other in both]
    return Race(
        t_interval(np.divide(spent, needed)),
        float(np.divide(spent, every).mean()),
        sum(math.isinf(n) for n in found),
        tuple(mine.job.seed for mine, _ in both),
        sum(
            episode == other.values["curve"][0]["episode"] and regret(other) >= 1
            for episode, (_, other) in zip(needed, both, strict=True)
        ),
    )


def words_of_idle(found: Race, name: str) -> str:
    """Return what a reader has to know of a method that learned nothing; empty if it did."""
    if not found.idle:
        return ""
    return (
        f" In {found.idle} of {len(found.seeds)} seeds {name} stood at its final reward when "
        "first judged, no better than one rank for all: there is no convergence to be timed."
    )


def _episodes(row: Row) -> float:
    return float(row.values["curve"][-1]["episode"])


@dataclass(frozen=True)
class Answers:
    """Who answered which judged text rightly, seed by seed.

    Attributes:
        correct: (S, n) of S seeds and n texts.
        seeds: S seeds.
    """

    correct: FloatArray
    seeds: tuple[int, ...]

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers, resampling seeds and texts."""
        return pooled_bootstrap(self.correct, 0)

    def shared(self, other: Answers) -> tuple[int, ...]:
        """Return the seeds that both have; none where they were asked different texts."""
        if self.correct.shape[1] != other.correct.shape[1]:
            return ()
        return tuple(seed for seed in self.seeds if seed in other.seeds)

    def of_seed(self, seed: int) -> FloatArray:
        """Return the (n,) answers of one seed."""
        return self.correct[self.seeds.index(seed)]

    def minus(self, other: Answers) -> Estimate:
        """Return the paired difference over the seeds and texts that both have.

        Raises:
            ConfigError: no seed in common, or other texts.
        """
        both = self.shared(other)
        if not both:
            raise ConfigError(
                f"Seeds {self.seeds} on {self.correct.shape[1]} texts cannot be paired with seeds "
                f"{other.seeds} on {other.correct.shape[1]}. Judge both on the same texts."
            )
        mine = self.correct[[self.seeds.index(seed) for seed in both]]
        theirs = other.correct[[other.seeds.index(seed) for seed in both]]
        return pooled_bootstrap(mine - theirs, 0)


def live_answers(rows: Sequence[Row], snr_db: float) -> Answers | None:
    """Return the answers under the plans for one link, of the rows that were judged live."""
    found, seeds = [], []
    for row in rows:
        for seen in row.values["live"]:
            if seen["snr_db"] == snr_db:
                found.append(unpack(seen["correct"], seen["n_texts"]))
                seeds.append(row.job.seed)
    return Answers(np.array(found, dtype=np.float64), tuple(seeds)) if found else None


def direct_answers(rows: Sequence[Row]) -> Answers | None:
    """Return the answers of rows that hold one plan each, such as AdaLoRA's."""
    if not rows:
        return None
    found = [unpack(row.values["correct"], row.values["n_texts"]) for row in rows]
    return Answers(np.array(found, dtype=np.float64), tuple(row.job.seed for row in rows))


def percent(estimate: Estimate | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return a share as percent with its interval, or a dash."""
    return "–" if estimate is None else f"{estimate.scaled(100):{'+' if sign else ''}.{digits}f} %"


def plan_bits(rows: Sequence[Row], snr_db: float) -> FloatArray:
    """Return (S,) bits of each seed's plan for a link."""
    return np.array(
        [p["payload_bits"] for row in rows for p in row.values["plans"] if p["snr_db"] == snr_db]
    )


def rank_map(title: str, rows: Sequence[Row], snr_index: int | None = None) -> HeatMap:
    """Return mean ranks over seeds and links: layers across, kinds of projection down."""
    ranks = np.array([row.values["mean_ranks"] for row in rows], dtype=np.float64)  # (S, K, N)
    mean = ranks.mean(axis=0)
    mean = mean.mean(axis=0) if snr_index is None else mean[snr_index]
    kinds = ("q", "k", "v", "o", "fc1", "fc2")
    table = mean.reshape(-1, len(kinds)).T
    layers = tuple(f"layer {i + 1}" for i in range(table.shape[1]))
    return HeatMap(title, kinds, layers, table, "mean rank")
