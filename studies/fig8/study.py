"""Fig. 8: where ranks go under each noise schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from studies.harness.spec import Chart, Claim, Presentation, Result
from studies.report.statistics import paired_t, verdict
from studies.shared.rewards import rank_map
from studies.shared.sweeps import Order, Rows, Sweep, Variant, default_as


def heat_maps(rows: Rows) -> Sequence[Chart]:
    """Return the mean ranks of each schedule."""
    return [rank_map(f"Mean ranks, {label} schedule", own) for label, own in rows.items()]


SWEEP = Sweep(
    name="fig8",
    title="Ranks under each noise schedule",
    question="Does the noise schedule decide where ranks go, and is scaled-linear the best?",
    source="Fig. 8",
    variants=(
        Variant("cosine", "cosine", {"policy": {"diffusion": {"schedule": "cosine"}}}),
        Variant("linear", "linear", {"policy": {"diffusion": {"schedule": "linear"}}}),
        default_as("scaled-linear"),
    ),
    orders=(Order("scaled-linear", "cosine"), Order("scaled-linear", "linear")),
    live=False,
    more_charts=heat_maps,
)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Add what the paper says of layers and modules to the comparison of schedules."""
    shown, rows = SWEEP.present(result, inputs), SWEEP.rows(result, inputs).get("scaled-linear", ())
    if not rows:
        return shown
    maps = [rank_map("", [row]).values for row in rows]  # (6 kinds, L) a seed
    half = maps[0].shape[1] // 2
    lower = [m[:, :half].mean() for m in maps]
    upper = [m[:, half:].mean() for m in maps]
    favoured = [m[[3, 4]].mean() for m in maps]
    others = [m[[0, 1, 2, 5]].mean() for m in maps]
    facts = (
        ("Lower layers get higher mean ranks than upper ones.", paired_t(lower, upper)),
        ("The output projection and fc1 get higher ranks than the others.",
         paired_t(favoured, others)),
    )  # fmt: skip
    claims = tuple(
        Claim(
            words,
            "higher (no number)",
            f"{difference.value:+.2f} ranks",
            difference.interval,
            verdict(difference, float("inf")),
            tuple(row.job.seed for row in rows),
            "Calibrated learner of MiniLM, an encoder; the paper's model is a decoder.",
        )
        for words, difference in facts
    )
    return Presentation((*claims, *shown.claims), shown.tables, shown.charts)


STUDY = replace(SWEEP.study(), present=present)
