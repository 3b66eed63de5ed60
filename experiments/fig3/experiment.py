"""Fig. 3: learning curves of the variants of Table III, and how soon they converge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankcast.experiment.borrowed import no_jobs, nothing
from rankcast.experiment.policies import EVALUATE_EVERY
from rankcast.experiment.readouts import race, reward_series, words_of_idle
from rankcast.experiment.spec import (
    Claim,
    Experiment,
    LineChart,
    Presentation,
    Result,
    Row,
    Series,
)

MOST = 0.8
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
    shown = rows.get("airllm") or next(iter(rows.values()))
    longest = max(row.values["curve"][-1]["episode"] for row in shown)
    chart = LineChart(
        "Fig. 3: reward while learning",
        "episodes",
        "reward of the deployed policy",
        tuple(cut(reward_series(LABELS[key], found), longest) for key, found in rows.items()),
        note="Calibrated learner, noise-free, mean over links; bands: 95 % over seeds.",
    )
    claims = [
        claim
        for key in ("ppo", "ppo-ddpm")
        for claim in convergence(rows.get("airllm", ()), rows.get(key, ()), LABELS[key])
    ]
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


def convergence(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> list[Claim]:
    """Compare episodes until the other method's final reward, if any seed has both."""
    found = race(ours, theirs)
    if found is None:
        return []
    missed = f"; {found.missed} of {len(found.seeds)} seeds never reached it" * bool(found.missed)
    return [
        Claim(
            f"AirLLM needs at most 80 % of {name}'s episodes for {name}'s final reward.",
            "0.70 to 0.80",
            f"{'at least ' if found.missed else ''}{found.share.value:.2f}",
            found.share.interval,
            found.verdict(MOST),
            found.seeds,
            f"Calibrated learner. Share of the episodes in which {name} itself first reaches its "
            f"final reward; of all that it was trained for: {found.of_all:.2f}. Judged every "
            f"{EVALUATE_EVERY} episodes, so that nothing below can be seen{missed}."
            + words_of_idle(found, name),
        )
    ]


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
