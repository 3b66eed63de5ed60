"""Fig. 3: learning curves of the variants of Table III, and how soon they converge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from studies.harness.spec import (
    Claim,
    LineChart,
    Presentation,
    Result,
    Row,
    Series,
    Study,
)
from studies.shared.policies import EVALUATE_EVERY
from studies.shared.rewards import race, reward_series

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
    rows = {key: own for key, own in rows.items() if own}
    if not rows:
        return Presentation()
    shown = rows.get("airllm") or next(iter(rows.values()))
    longest = max(row.values["curve"][-1]["episode"] for row in shown)
    chart = LineChart(
        "Fig. 3: reward while learning",
        "episodes",
        "reward of the deployed policy",
        tuple(cut(reward_series(LABELS[key], own), longest) for key, own in rows.items()),
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
    raced = race(ours, theirs)
    if raced is None:
        return []
    missed = f"; {raced.missed} of {len(raced.seeds)} seeds never reached it" * bool(raced.missed)
    return [
        Claim(
            f"AirLLM needs at most 80 % of {name}'s episodes for {name}'s final reward.",
            "0.70 to 0.80",
            f"{'at least ' if raced.missed else ''}{raced.share.value:.2f}",
            raced.share.interval,
            raced.verdict(MOST),
            raced.seeds,
            f"Calibrated learner. Share of the episodes in which {name} itself first reaches its "
            f"final reward; of all that it was trained for: {raced.of_all:.2f}. Judged every "
            f"{EVALUATE_EVERY} episodes, so that nothing below can be seen{missed}."
            + raced.note_on_idle(name),
        )
    ]


STUDY = Study(
    name="fig3",
    title="Convergence",
    question="Does DDIM make PPO converge in 70 to 80 % of the episodes?",
    source="Fig. 3",
    present=present,
    needs=("table3",),
)
