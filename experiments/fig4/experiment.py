"""Fig. 4: accuracy at each SNR, AirLLM beside AdaLoRA; the rows are those of `rate_accuracy`."""

from __future__ import annotations

from collections.abc import Mapping

from rankcast.experiment.borrowed import no_jobs, nothing
from rankcast.experiment.rates import LABELS, against_adalora, points_of
from rankcast.experiment.spec import Experiment, LineChart, Presentation, Result, Series

SHOWN = ("airllm", "airllm-0", "adalora")


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Draw accuracy against SNR; the claims are the paired differences at each SNR."""
    del result
    points = points_of(inputs["rate_accuracy"], inputs["adalora"])
    if not points:
        return Presentation(())
    series = []
    for name in SHOWN:
        at = points.get(name, {})
        accuracy = [at[snr][1].accuracy.scaled(100) for snr in sorted(at)]
        series.append(
            Series(
                LABELS[name],
                sorted(at),
                [a.value for a in accuracy],
                [a.low for a in accuracy],
                [a.high for a in accuracy],
            )
        )
    chart = LineChart(
        "Fig. 4: accuracy at each SNR",
        "SNR [dB]",
        "accuracy [%]",
        tuple(s for s in series if s.x),
        markers=True,
        note="Real model, MiniLM on SST-2; bands: 95 % over seeds and texts.",
    )
    return Presentation(tuple(against_adalora(points, better=True)), (), (chart,))


EXPERIMENT = Experiment(
    name="fig4",
    title="Accuracy at each SNR",
    question="Is AirLLM more accurate than AdaLoRA on every link?",
    source="Fig. 4",
    jobs=no_jobs,
    run=nothing,
    present=present,
    needs=("adalora", "rate_accuracy"),
)
