"""Table VI: what inference steps cost in training time; the rows are those of Fig. 7."""

from __future__ import annotations

from collections.abc import Mapping

from rankcast.experiment.borrowed import no_jobs, nothing
from rankcast.experiment.spec import Claim, Experiment, Presentation, Result, Table
from rankcast.statistics import paired_t, t_interval

PAPER_S = {30: 907, 50: 1037, 100: 1101}
EPISODES = 1000


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show processor time for 1,000 episodes, as the paper does."""
    del result
    rows = {n: inputs["fig7"].select(variant=f"T600-{n}") for n in PAPER_S}
    if not all(rows.values()):
        return Presentation(())
    times = {
        n: [row.cpu_s / row.job.settings["episodes"] * EPISODES for row in found]
        for n, found in rows.items()
    }
    lines = tuple(
        ("600", str(n), f"{PAPER_S[n]:,}", f"{t_interval(times[n]):.0f}", str(len(times[n])))
        for n in PAPER_S
    )
    table = Table(
        "Time for 1,000 episodes",
        ("training steps", "inference steps", "paper [s]", "ours [CPU s]", "seeds"),
        lines,
        "Extrapolated from 60 episodes, with judging every 10, on one core of a shared machine; "
        "the paper's includes its language model.",
    )
    growth = paired_t(times[100], times[30]).scaled(1 / (sum(times[30]) / len(times[30])))
    claim = Claim(
        "Training time grows significantly with the inference steps, 30 to 100.",
        f"{PAPER_S[100] / PAPER_S[30] - 1:+.0%}",
        f"{growth.value:+.0%}",
        growth.scaled(100).interval,
        "not resolved"
        if growth.interval is None or growth.low <= 0 <= growth.high
        else "reproduced"
        if growth.low > 0
        else "contradicted",
        tuple(row.job.seed for row in rows[30]),
        "Interval in percent. Folding the sampler makes steps cheap; most of the time is training.",
    )
    return Presentation((claim,), (table,))


EXPERIMENT = Experiment(
    name="table6",
    title="Time of inference steps",
    question="How much longer does training take with more inference steps?",
    source="Table VI",
    jobs=no_jobs,
    run=nothing,
    present=present,
    needs=("fig7",),
)
