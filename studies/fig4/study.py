"""Fig. 4: accuracy at each SNR, AirLLM beside AdaLoRA; the rows are those of `rate_accuracy`."""

from __future__ import annotations

from collections.abc import Mapping

from studies.harness.spec import LineChart, Presentation, Result, Study
from studies.rate_accuracy.presentation import LABELS, against_adalora, points_of
from studies.shared.judging import accuracy_series

SHOWN = ("airllm", "airllm-0", "adalora")


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Draw accuracy against SNR; the claims are the paired differences at each SNR."""
    del result
    points = points_of(inputs["rate_accuracy"], inputs["adalora"])
    if not points:
        return Presentation()
    series = (
        accuracy_series(LABELS[name], [(snr_db, answers) for snr_db, (_, answers) in at.items()])
        for name in SHOWN
        if (at := points.get(name))
    )
    chart = LineChart(
        "Fig. 4: accuracy at each SNR",
        "SNR [dB]",
        "accuracy [%]",
        tuple(series),
        markers=True,
        note="Real model, MiniLM on SST-2; bands: 95 % over seeds and texts.",
    )
    return Presentation(tuple(against_adalora(points, better=True)), (), (chart,))


STUDY = Study(
    name="fig4",
    title="Accuracy at each SNR",
    question="Is AirLLM more accurate than AdaLoRA on every link?",
    source="Fig. 4",
    present=present,
    needs=("adalora", "rate_accuracy"),
)
