"""Studies that vary one setting of the policy and compare what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from studies.harness.spec import (
    Chart,
    Claim,
    Job,
    LineChart,
    Presentation,
    Result,
    Row,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import t_interval, verdict
from studies.shared.judging import live_answers, percent, points_claim
from studies.shared.policies import (
    CALIBRATION,
    EPISODES,
    JUDGED_DB,
    SEEDS,
    episodes_of,
    judged_links,
    policy_job,
    run_policy_job,
    seeds_of,
)
from studies.shared.rewards import Comparison, Rows, paired, regret, reward, reward_series


@dataclass(frozen=True)
class Variant:
    """One setting.

    Attributes:
        label: in tables.
        key: in names of jobs.
        settings: `policy`, `training` and `world` settings that differ, see `policy_job`.
        paper: the paper's accuracy [%], if it has one.
        episodes: to train for.
        rows_of: study whose rows of this key serve, so that nothing is run twice.
    """

    label: str
    key: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None
    episodes: int = EPISODES
    rows_of: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """The paper's claim that one variant is better than another.

    Attributes:
        better: label of the variant that is claimed to be better.
        worse: label of the other.
        words: what the paper says, if it is not a difference of the accuracies.
    """

    better: str
    worse: str
    words: str = ""


@dataclass(frozen=True)
class Sweep:
    """A study over variants.

    Attributes:
        name: of the study's folder.
        title: a few words.
        question: what it asks.
        source: where the paper makes the claim.
        variants: what is compared.
        orders: what the paper claims about them.
        comparisons: what we ask about them.
        seeds: of every variant.
        live: whether plans are judged on the real model.
        more_charts: further charts from the rows.
        note: under the table.
    """

    name: str
    title: str
    question: str
    source: str
    variants: tuple[Variant, ...]
    orders: tuple[Order, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    live: bool = True
    more_charts: Callable[[Rows], Sequence[Chart]] | None = None
    note: str = ""

    def study(self) -> Study:
        """Return the study."""
        others = {v.rows_of for v in self.variants if v.rows_of}
        return Study(
            self.name,
            self.title,
            self.question,
            self.source,
            self.present,
            self.jobs,
            run_policy_job,
            needs=(CALIBRATION,) if any(v.rows_of is None for v in self.variants) else (),
            also_shows=tuple(sorted(others)),
        )

    def jobs(self, scale: Scale) -> Sequence[Job]:
        """Return every variant with every seed."""
        return [
            policy_job(
                variant.key,
                seed,
                episodes=episodes_of(scale, variant.episodes),
                judge_db=judged_links(scale, seed) if self.live else (),
                **variant.settings,
            )
            for variant in self.variants
            if variant.rows_of is None
            for seed in seeds_of(scale, self.seeds)
        ]

    def rows(self, result: Result, inputs: Mapping[str, Result]) -> Rows:
        """Return the rows of each variant that has any, by label."""
        rows: dict[str, tuple[Row, ...]] = {}
        for variant in self.variants:
            source = inputs.get(variant.rows_of) if variant.rows_of else result
            every = source.select(variant=variant.key) if source else ()
            rows[variant.label] = tuple(row for row in every if row.job.seed in self.seeds)
        return {label: own for label, own in rows.items() if own}

    def present(self, result: Result, inputs: Mapping[str, Result]) -> Presentation:
        """Return a table, learning curves and a verdict on every order."""
        rows = self.rows(result, inputs)
        claims = [claim for order in self.orders for claim in self._claims(order, rows)]
        claims += [claim for asked in self.comparisons for claim in asked.claims(rows)]
        if not rows:
            return Presentation()
        curves = LineChart(
            f"{self.title if self.source == 'ours' else self.source}: reward while learning",
            "episodes",
            "reward of the deployed policy",
            tuple(reward_series(label, own) for label, own in rows.items()),
            note="Calibrated learner, noise-free, mean over links; bands: 95 % over seeds.",
        )
        more = tuple(self.more_charts(rows)) if self.more_charts else ()
        return Presentation(tuple(claims), (self._table(rows),), (curves, *more))

    def _table(self, rows: Rows) -> Table:
        labels = {v.label: v for v in self.variants}
        lines = []
        for label, own in rows.items():
            paper, answers = labels[label].paper, live_answers(own, JUDGED_DB)
            lines.append(
                (
                    label,
                    "–" if paper is None else f"{paper:.2f} %",
                    percent(None if answers is None else answers.accuracy),
                    f"{t_interval([reward(row) for row in own]):.4f}",
                    f"{t_interval([regret(row) for row in own]):.3f}",
                    str(len(own)),
                )
            )
        columns = (
            "setting", "paper: accuracy", f"accuracy at {JUDGED_DB:g} dB, real model",
            "final reward, calibrated learner", "regret", "seeds",
        )  # fmt: skip
        kept = [i for i in range(len(columns)) if any(line[i] != "–" for line in lines)]
        return Table(
            self.title,
            tuple(columns[i] for i in kept),
            tuple(tuple(line[i] for i in kept) for line in lines),
            self.note,
        )

    def _claims(self, order: Order, rows: Rows) -> list[Claim]:
        """Return the verdict by accuracy on the real model, and by reward."""
        better, worse = rows.get(order.better), rows.get(order.worse)
        if not better or not worse:
            return []
        papers = {v.label: v.paper for v in self.variants}
        a, b = papers[order.better], papers[order.worse]
        claims = []
        mine, theirs = live_answers(better, JUDGED_DB), live_answers(worse, JUDGED_DB)
        if mine is not None and theirs is not None and a is not None and b is not None:
            difference = mine.minus(theirs)
            claims.append(
                points_claim(
                    f"{order.better} is more accurate than {order.worse}.",
                    difference,
                    verdict(difference, (a - b) / 100),
                    mine.seeds,
                    f"Real model, plans for {JUDGED_DB:g} dB.",
                    paper=f"{a - b:+.2f} points",
                )
            )
        difference = paired(better, worse)
        claims.append(
            Claim(
                f"{order.better} earns a higher final reward than {order.worse}.",
                order.words or "higher (no number)",
                f"{difference.value:+.4f}",
                difference.interval,
                verdict(difference),
                tuple(row.job.seed for row in better),
                "Calibrated learner.",
            )
        )
        return claims


AIRLLM = Variant("AirLLM", "airllm", rows_of="table3")
"""The default policy, as trained for Table III."""


def default_as(label: str, paper: float | None = None) -> Variant:
    """Return AirLLM's default under the name that it has in a sweep."""
    return replace(AIRLLM, label=label, paper=paper)
