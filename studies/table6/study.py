"""Table VI: what inference steps cost in training time; the rows are those of Fig. 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from studies.harness.spec import Claim, Presentation, Result, Row, Study, Table
from studies.report.statistics import t_interval, verdict
from studies.shared.rewards import in_pairs

PAPER_S = {30: 907, 50: 1037, 100: 1101}
EPISODES = 1000


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show processor time for 1,000 episodes, as the paper does."""
    del result
    rows = {n: inputs["fig7"].select(variant=f"T600-{n}") for n in PAPER_S}
    if not all(rows.values()):
        return Presentation()
    times = {
        n: [row.cpu_s / row.job.settings["episodes"] * EPISODES for row in own]
        for n, own in rows.items()
    }
    lines = tuple(
        ("600", str(n), f"{PAPER_S[n]:,}", f"{t_interval(times[n]):.0f}", str(len(times[n])))
        for n in PAPER_S
    )
    table = Table(
        "Time for 1,000 episodes",
        ("training steps", "inference steps", "paper [s]", "ours [CPU s]", "seeds"),
        lines,
        f"Extrapolated from {_episodes(rows[30])} episodes, setting up and judging included, on "
        "one core of a shared machine; the paper's includes its language model.",
    )
    return Presentation(_growth(rows[100], rows[30]), (table,))


def _episodes(rows: Sequence[Row]) -> int:
    return rows[0].job.settings["episodes"]


def _growth(many: Sequence[Row], few: Sequence[Row]) -> tuple[Claim, ...]:
    """Return the claim that 100 steps take longer than 30, if any seed has both."""
    both = in_pairs(many, few)
    if not both:
        return ()
    growth = t_interval([a.cpu_s / b.cpu_s - 1 for a, b in both])
    claimed = PAPER_S[100] / PAPER_S[30] - 1
    return (
        Claim(
            "Training time grows significantly with the inference steps, 30 to 100.",
            f"{claimed:+.0%}",
            f"{growth.value:+.0%}",
            growth.scaled(100).interval,
            verdict(growth, claimed),
            tuple(row.job.seed for row, _ in both),
            "Interval in percent. Processor time of whole jobs; our sampler is folded, which makes "
            "steps cheap.",
        ),
    )


STUDY = Study(
    name="table6",
    title="Time of inference steps",
    question="How much longer does training take with more inference steps?",
    source="Table VI",
    present=present,
    needs=("fig7",),
)
