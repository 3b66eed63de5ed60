"""Made-up results that have everything a report must show."""

from __future__ import annotations

from typing import get_args

import numpy as np

from studies.harness.spec import (
    Claim,
    HeatMap,
    Job,
    LineChart,
    Presentation,
    Result,
    Row,
    Series,
    Study,
    Table,
    Verdict,
)
from studies.report.scoreboard import Presented

NASTY = '<script>alert("1 < 2 & 3")</script>'
VERSIONS = {"rankcast": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.6"}


def presented(
    name: str,
    presentation: Presentation,
    *,
    title: str = "",
    source: str = "ours",
    missing: tuple[str, ...] = (),
    wall_s: float = 4000.0,
) -> Presented:
    study = Study(
        name,
        title or name,
        f"What does {name} show?",
        source,
        lambda result, inputs: presentation,
    )
    rows = tuple(
        Row(Job(f"job-{seed}", seed), {}, wall_s, 30.5, "CPU, x86_64, one thread a run", VERSIONS)
        for seed in (0, 1, 2, 7)
    )
    command = f"python3 dev.py study run {name}"
    return Presented(study, Result(name, "default", command, rows, missing), presentation)


def line_chart(n_series: int = 4, *, log_x: bool = True, markers: bool = False) -> LineChart:
    x = [2.0e5 * 2.0**k for k in range(7)]
    series = []
    for number in range(n_series):
        y = [0.9 - 0.15 * np.exp(-k / (1.0 + number)) for k in range(7)]
        series.append(
            Series(f"allocator number {number}", x, y, [v - 0.01 for v in y], [v + 0.01 for v in y])
        )
    return LineChart(
        "Accuracy against transmitted bits", "payload [bit]", "accuracy [share]", tuple(series),
        log_x=log_x, markers=markers, note="Bands: 95 % interval over texts and seeds.",
    )  # fmt: skip


def heat_map(columns: int = 24) -> HeatMap:
    values = np.add.outer(np.arange(6.0), np.linspace(0.0, 3.0, columns))
    values[2, 3] = np.nan
    kinds = ("q", "k", "v", "o", "fc1", "fc2")
    layers = tuple(str(layer) for layer in range(columns))
    return HeatMap(
        "Mean ranks, cosine schedule", kinds, layers, values, "rank",
        "Layers across; grey: no such projection.",
    )  # fmt: skip


def everything() -> tuple[Presented, ...]:
    """Return three studies with all verdicts, long tables, charts and a hostile text."""
    verdicts = [
        Claim(
            f"Claim that is {verdict}, worded at some length so that it has to wrap",
            "+0.69 points", "+0.12 points", (-0.3123, 0.5456), verdict, (0, 1, 2, 7),
            f"Note on `{verdict}`.",
        )
        for verdict in get_args(Verdict)
    ]  # fmt: skip
    wide = Table(
        "Every allocator at every link",
        ("allocator", *(f"accuracy at {snr} dB [%]" for snr in (-5, 0, 5, 10, 15)), "seeds"),
        tuple(
            (f"allocator {k}", *(f"{80 + k / 3 + j:.1f} ± 0.{k % 10}" for j in range(5)), "5")
            for k in range(30)
        ),
        "Mean ± half-width of the 95 % t interval over seeds.",
    )
    hostile = Table(NASTY, ("a|b", NASTY), ((NASTY, "x | y"),), NASTY)
    return (
        presented(
            "table3",
            Presentation(tuple(verdicts), (wide,), (line_chart(), line_chart(8, markers=True))),
            title="AirLLM beside AdaLoRA",
            source="Table III",
            missing=("live-sst2-3", "live-sst2-4"),
        ),
        presented(
            "fig8",
            Presentation(
                (Claim(NASTY, NASTY, NASTY, None, "measured", (), NASTY),),
                (hostile,),
                (heat_map(),),
                f"First paragraph with *emphasis* and `code`.\n\nSecond: {NASTY}",
            ),
            title="Ranks per noise schedule",
            source="Fig. 8",
            wall_s=0.0,
        ),
        presented(
            "rate_accuracy",
            Presentation(
                (
                    Claim(
                        "Area under the curve", "", "0.871", (0.868, 0.874), "measured", (0, 1, 2)
                    ),
                ),
                charts=(line_chart(3, log_x=False),),
                text="Use the exact solver on the learned utility.",
                summary=Table(
                    "Allocators",
                    ("allocator", "accuracy [%]"),
                    (("exact solver", "83.9"), ("uniform", "82.5")),
                ),
            ),
            title="Accuracy for bits",
        ),
    )
