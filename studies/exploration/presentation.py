"""Tables, curves and claims: regret of the policy, of its teacher, and of solvers on its belief."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from studies.exploration.learners import LEARNERS, LEVEL_MDPS, RANK_MDPS, TEACHER, Learner, Mdp
from studies.harness.spec import Claim, LineChart, Presentation, Result, Row, Table
from studies.report.statistics import t_interval
from studies.shared.rewards import deployed_regret

CHECKPOINTS = (100, 300, 1000)
HEADS = tuple(f"after {episode:,}" for episode in CHECKPOINTS)
_TEACHER = (TEACHER, 1.0)
CLAIMED = (("airllm", 0.9), ("airllm", 0.0))
"""Learners of which claims are made."""


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return regrets, differences to the teacher, and spreads."""
    del inputs
    tables: list[Table] = []
    charts: list[LineChart] = []
    for mdp in (*RANK_MDPS, *LEVEL_MDPS):
        tables += [
            _regret_table(result, mdp, f"Regret, {mdp.words}"),
            _difference_table(result, mdp, f"Regret minus the teacher's, {mdp.words}"),
            _copying_table(result, mdp, f"How well the teacher is copied, {mdp.words}"),
        ]
        charts.append(_chart(result, mdp, f"Regret of the deployed policy, {mdp.words}"))
    return Presentation(
        _claims(result),
        tuple(table for table in tables if table.rows),
        tuple(chart for chart in charts if chart.series),
    )


def _claims(result: Result) -> tuple[Claim, ...]:
    """Return AirLLM's distance to its teacher, and to the exact solver on its own belief."""
    claims = []
    for mdp in (*RANK_MDPS, *LEVEL_MDPS):
        for learner in CLAIMED:
            who = f"Regret after 300 episodes: {LEARNERS[learner]}, minus"
            for pairs, rival in (
                (_differences(result, learner, mdp, 300), "the teacher's"),
                (_copying(result, learner, mdp, 300), "the exact solver's on the same belief"),
            ):
                if pairs:
                    claims.append(_claim(f"{who} {rival}; {mdp.words}", pairs))
    return tuple(claims)


def _claim(text: str, pairs: Mapping[int, float]) -> Claim:
    estimate = t_interval(list(pairs.values()))
    return Claim(
        text, "", f"{estimate.value:+.3f}", estimate.interval, "measured",
        tuple(sorted(pairs)), "t interval over draws of the utility",
    )  # fmt: skip


def _regret_table(result: Result, mdp: Mdp, title: str) -> Table:
    rows = []
    for learner, label in mdp.learners.items():
        own = _rows(result, learner, mdp)
        if own:
            cells = [_cell(_regrets(result, learner, mdp, at)) for at in CHECKPOINTS]
            rows.append((label, *cells, *_seeds(result, learner, mdp)))
    known = {row.job.seed: row.values.get("by_energy") for row in _rows(result, _TEACHER, mdp)}
    by_energy = {seed: regret for seed, regret in known.items() if regret is not None}
    if by_energy:
        cells = [_cell(by_energy)] * len(CHECKPOINTS)
        rows.append(("plans by energy, nothing learned", *cells, *_seeds(result, _TEACHER, mdp)))
    note = "Mean ± half-width of the 95 % t interval over seeds, whose number stands at the end."
    return Table(title, ("while learning", *HEADS, "seeds", "at 1,000"), tuple(rows), note)


def _difference_table(result: Result, mdp: Mdp, title: str) -> Table:
    rows = []
    for learner, label in mdp.learners.items():
        cells = [_cell(_differences(result, learner, mdp, at), "+.3f") for at in CHECKPOINTS]
        if learner[0] != TEACHER and any(cell != "–" for cell in cells):
            rows.append((label, *cells))
    note = "Paired by seed: the same utility, other draws and other noise."
    return Table(title, ("while learning", *HEADS), tuple(rows), note)


def _copying_table(result: Result, mdp: Mdp, title: str) -> Table:
    """Return what the network adds to the regret of its own belief, and how it spreads."""
    rows = []
    for learner, label in mdp.learners.items():
        own = [row for row in _rows(result, learner, mdp) if row.values["spread"]]
        if not own:
            continue
        cells = [_cell(_copying(result, learner, mdp, at), "+.3f") for at in CHECKPOINTS]
        ratios = [
            f"{np.mean([r.values['spread'][f'{x}_sampled'] for r in own]):.2f} / "
            f"{np.mean([r.values['spread'][f'{x}_drawn'] for r in own]):.2f}"
            for x in ("rank", "sum")
        ]
        rows.append((label, *cells, *ratios))
    note = (
        "Regret of the deployed policy minus that of the exact solver on the policy's own belief; "
        "standard deviation at the end of training of a projection's rank and of the sum of ranks, "
        "of plans that the policy samples / of plans solved from draws of the belief."
    )
    return Table(title, ("while learning", *HEADS, "rank", "sum of ranks"), tuple(rows), note)


def _chart(result: Result, mdp: Mdp, title: str) -> LineChart:
    series = []
    for learner, label in mdp.learners.items():
        own = _rows(result, learner, mdp)
        if own:
            series.append(deployed_regret(label, own))
    return LineChart(
        title, "episodes of 15 steps", "regret (0 = optimum, 1 = best uniform plan)",
        tuple(series), note="Bands: 95 % t interval over seeds.",
    )  # fmt: skip


def _rows(result: Result, learner: Learner, mdp: Mdp) -> tuple[Row, ...]:
    """Return the longest row of each seed; a longer one begins as a shorter one does."""
    variant, teacher_share = learner
    rows = result.select(
        variant=variant,
        teacher_share=teacher_share,
        interaction_share=mdp.interaction_share,
        levels=mdp.levels or None,  # only rows of levels say so
    )
    ordered = sorted(rows, key=lambda row: row.job.settings["episodes"])
    return tuple({row.job.seed: row for row in ordered}.values())


def _regrets(result: Result, learner: Learner, mdp: Mdp, at: int) -> dict[int, float]:
    """Return the deployed regret of each seed that got that far."""
    points = {row.job.seed: _point(row, at) for row in _rows(result, learner, mdp)}
    return {seed: point["deployed"] for seed, point in points.items() if point}


def _seeds(result: Result, learner: Learner, mdp: Mdp) -> tuple[str, str]:
    """Return how many seeds there are after 300 and after 1,000 episodes."""
    few, many = (len(_regrets(result, learner, mdp, at)) for at in CHECKPOINTS[1:])
    return str(few), str(many)


def _differences(result: Result, learner: Learner, mdp: Mdp, at: int) -> dict[int, float]:
    """Return the regret of each seed minus the teacher's."""
    theirs = _regrets(result, _TEACHER, mdp, at)
    ours = _regrets(result, learner, mdp, at)
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def _copying(result: Result, learner: Learner, mdp: Mdp, at: int) -> dict[int, float]:
    """Return the regret of each seed minus that of the exact solver on the same belief."""
    points = {row.job.seed: _point(row, at) for row in _rows(result, learner, mdp)}
    return {s: p["deployed"] - p["solver_on_its_belief"] for s, p in points.items() if p}


def _point(row: Row, episode: int) -> Mapping[str, float] | None:
    return next((p for p in row.values["curve"] if p["episode"] == episode), None)


def _cell(values: Mapping[int, float], spec: str = ".3f") -> str:
    return f"{t_interval(list(values.values())):{spec}}" if values else "–"
