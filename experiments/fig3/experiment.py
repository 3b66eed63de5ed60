"""Fig. 3: learning curves of the variants of Table III, and how soon they converge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rankcast.experiment.borrowed import no_jobs, nothing
from rankcast.experiment.readouts import episodes_to, reward, reward_series
from rankcast.experiment.spec import (
    Claim,
    Experiment,
    LineChart,
    Presentation,
    Result,
    Row,
    Series,
)
from rankcast.statistics import t_interval

LABELS = {
    "airllm": "PPO + DDIM, MLP",
    "unet": "PPO + DDIM, U-Net",
    "ppo-ddpm": "PPO + DDPM",
    "ddim": "DDIM",
    "ppo": "PPO",
    "reward-weighted": "Eq. 19 literal",
    "guided": "Eq. 19 differentiated",
}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show the curves, and episodes until a reward that both methods reach."""
    del result
    table3 = inputs["table3"]
    rows = {key: table3.select(variant=key) for key in LABELS}
    rows = {key: found for key, found in rows.items() if found}
    if not rows:
        return Presentation(())
    longest = max(row.values["curve"][-1]["episode"] for row in rows.get("airllm", ()))
    chart = LineChart(
        "Fig. 3: reward while learning",
        "episodes",
        "reward of the deployed policy",
        tuple(cut(reward_series(LABELS[key], found), longest) for key, found in rows.items()),
        note="Calibrated learner, noise-free, mean over links; bands: 95 % over seeds.",
    )
    claims = []
    if "airllm" in rows and "ppo" in rows:
        claims.append(convergence(rows["airllm"], rows["ppo"], "PPO"))
    if "airllm" in rows and "ppo-ddpm" in rows:
        claims.append(convergence(rows["airllm"], rows["ppo-ddpm"], "PPO + DDPM"))
    return Presentation(tuple(claims), (), (chart,))


def cut(series: Series, longest: float) -> Series:
    """Return a curve up to an episode."""
    n = sum(x <= longest for x in series.x)
    return replace(
        series,
        x=series.x[:n],
        y=series.y[:n],
        low=None if series.low is None else series.low[:n],
        high=None if series.high is None else series.high[:n],
    )


def convergence(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> Claim:
    """Compare episodes until the other method's final reward."""
    other = {row.job.seed: row for row in theirs}
    shares = [
        episodes_to(row, reward(other[row.job.seed]))
        / float(other[row.job.seed].values["curve"][-1]["episode"])
        for row in ours
        if row.job.seed in other
    ]
    reached = [share for share in shares if math.isfinite(share)]
    estimate = t_interval(reached) if reached else None
    missed = len(shares) - len(reached)
    interval = None if estimate is None else estimate.interval
    within = interval is not None and interval[1] <= 0.8 and not missed
    return Claim(
        f"AirLLM needs 70 to 80 % of {name}'s episodes for {name}'s final reward.",
        "0.70 to 0.80",
        "never reached" if estimate is None else f"at most {np.mean(reached):.2f}",
        interval,
        "reproduced" if within else "not resolved" if missed < len(shares) else "contradicted",
        tuple(row.job.seed for row in ours),
        "Share of episodes; judged every 10 episodes, so that 10 is the least that can be seen"
        + (f"; {missed} of {len(shares)} seeds never reached it" if missed else ""),
    )


EXPERIMENT = Experiment(
    name="fig3",
    title="Convergence",
    question="Does DDIM make PPO converge in 70 to 80 % of the episodes?",
    source="Fig. 3",
    jobs=no_jobs,
    run=nothing,
    present=present,
    needs=("table3",),
)
