"""Present `codec`: accuracy against coded bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from studies.harness.spec import Claim, LineChart, Presentation, Result, Row, Table
from studies.report.statistics import verdict_equivalent
from studies.shared.judging import Answers, accuracy_series, percent, points_claim

WAYS = ("nested", "lora", "adalora")
LABELS = {"nested": "nested SVD form", "lora": "PEFT LoRA", "adalora": "PEFT AdaLoRA"}
RELATIVE_STEPS = (1.0, 2.0, 3.0)
REFERENCE, ORDINARY = "fp32", "fp32, after as many ordinary steps"
OURS, SENSITIVE, FINISHED = "one step", "steps by sensitivity", "finished"
DISTILLED = "finished by distillation"
ROUNDED = ("fp32", "fp16", "int8", "int4")
"""Names of codes in rows; `shown` words them."""
MARGIN = 0.005
_WHY = (
    "No QAT, one step for all; shares of the sum of ‖p‖·‖q‖ over a projection's components, as "
    "coded."
)

Point = tuple[float, Answers]  # bits, answers
Points = Mapping[str, Point]


def shown(code: str) -> str:
    """Return what readers call a code; rows call quantization-aware training `finished`."""
    return code.replace("finished", "QAT")


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show accuracy against bytes, and how far coding goes at parity."""
    del inputs
    if not result.rows:
        return Presentation()
    claims, tables, charts = [], [], []
    for task, way in dict.fromkeys((r.job.settings["task"], r.job.settings["way"])
                                   for r in result.rows
                                   if r.job.settings["way"] in WAYS):  # fmt: skip
        points = _points(result, task, way)
        title = f"{LABELS[way]}, {task.split('-')[0]}"
        claims += _claims(points, title)
        tables.append(_table(points, title))
        charts.append(_chart(points, title))
    return Presentation(tuple(claims), (*tables, *_why(result)), tuple(charts), *_summary(result))


def _summary(result: Result) -> tuple[str, Table | None]:
    """Say how far coding goes on the main task, and show it seed by seed."""
    if not result.select(task="sst2-codes", way="nested"):
        return "", None
    points = _points(result, "sst2-codes", "nested")
    plain_bits, reference = points[REFERENCE]
    lines = []
    for code, (bits, answers) in points.items():
        if not code.startswith((FINISHED, f"{OURS}, 2")):
            continue
        difference = answers.minus(reference).scaled(100)
        each = ", ".join(
            f"{100 * float((answers.of_seed(s) - reference.of_seed(s)).mean()):+.2f}"
            for s in answers.shared(reference)
        )
        lines.append(
            (
                shown(code),
                f"{bits / 8e3:.1f}",
                f"{plain_bits / bits:.0f}",
                f"{difference.value:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})",
                each,
            )
        )
    text = (
        f"An adapter of {plain_bits / 32:,.0f} numbers takes {plain_bits / 8e3:,.0f} kB in "
        f"float32. It was judged on {reference.correct.shape[1]:,} texts. Differences in accuracy "
        f"are to float32 as trained, in points, paired by text and seed, with 95 % intervals."
    )
    columns = ("code", "kB", "times smaller", "difference to float32", "by seed")
    return text, Table("How far coding goes", columns, tuple(lines))


def _why(result: Result) -> list[Table]:
    """Show what makes one way of training cheaper to code than another."""
    lines = []
    for way in WAYS:
        rows = result.select(task="sst2-codes", way=way)
        if not rows:
            continue
        shares = np.mean([row.values["energy_shares"][:8] for row in rows], axis=0)
        points = _points(result, "sst2-codes", way)
        plain_bits, _ = points[REFERENCE]
        losses = _losses(rows)
        lines.append(
            (
                LABELS[way],
                f"{plain_bits / 32:,.0f}",
                f"{shares[0]:.0%}",
                f"{shares[:2].sum():.0%}",
                *(f"{plain_bits / points[f'{OURS}, {s:g}'][0]:.0f}" for s in RELATIVE_STEPS),
                *(f"{losses[f'{OURS}, {s:g}']:+.4f}" for s in RELATIVE_STEPS),
            )
        )
    if not lines:
        return []
    columns = (
        "training", "numbers", "share of the strongest component", "of the two strongest",
        *(f"times smaller at {s:g} rms" for s in RELATIVE_STEPS),
        *(f"loss added at {s:g} rms [nats]" for s in RELATIVE_STEPS),
    )  # fmt: skip
    return [Table("What makes an adapter cheap to code", columns, tuple(lines), _WHY)]


def _losses(rows: Sequence[Row]) -> Mapping[str, float]:
    """Return by how much each code raises the loss over float32, mean over seeds."""
    added = []
    for row in rows:
        loss = {c["code"]: c["loss"] for c in row.values["codes"]}
        added.append({code: value - loss[REFERENCE] for code, value in loss.items()})
    return {code: float(np.mean([a[code] for a in added])) for code in added[0]}


def _points(result: Result, task: str, way: str) -> dict[str, Point]:
    """Return bits and answers of each code; of ComPEFT's, those with its α tuned if there are."""
    rows = result.select(task=task, way=way)
    tuned = result.select(task=task, way="compeft", of=way)
    names = [c["code"] for c in rows[0].values["codes"]]
    if tuned:
        names = [name for name in names if not name.startswith("ComPEFT")]
        names += [c["code"] for c in tuned[0].values["codes"]]
        rows = [*rows, *tuned]
    for kind in ("distilled", "fitted"):
        more = result.select(task=task, way=kind, of=way)
        names += [c["code"] for c in more[0].values["codes"]] if more else []
        rows = [*rows, *more]
    points = {}
    for code in names:
        seen = [(row.job.seed, c) for row in rows for c in row.values["codes"] if c["code"] == code]
        answers = Answers.of(seen)
        assert answers is not None  # the names were taken from these rows
        untuned = code.startswith("ComPEFT") and not tuned
        points[f"{code}, untuned" if untuned else code] = (
            float(np.mean([c["bits"] for _, c in seen])),
            answers,
        )
    return points


def _claims(points: Points, title: str) -> list[Claim]:
    """Return parity of each of our codes with float32, as trained and after as many steps."""
    claims = []
    for code, point in points.items():
        if not code.startswith((OURS, SENSITIVE, FINISHED)):
            continue
        references = (REFERENCE, ORDINARY) if code.startswith(FINISHED) else (REFERENCE,)
        claims += [_parity(title, code, point, name, points[name]) for name in references]
    return claims


def _parity(
    title: str,
    code: str,
    point: Point,
    reference: str,
    against: Point,
) -> Claim:
    """Return whether a code's accuracy is within half a point of a reference's."""
    (bits, answers), (plain_bits, theirs) = point, against
    difference = answers.minus(theirs)
    return points_claim(
        f"{title}: {shown(code)} is within half a point of {reference}.",
        difference,
        verdict_equivalent(difference, MARGIN),
        answers.shared(theirs),
        f"{answers.correct.shape[1]:,} texts; bits of the whole file, header included.",
        more=f" at {plain_bits / bits:.0f} times fewer bits",
    )


def _table(points: Points, title: str) -> Table:
    plain_bits, reference = points[REFERENCE]
    lines = tuple(
        (
            shown(code),
            f"{bits / 8e3:,.1f}",
            f"{plain_bits / bits:.0f}",
            percent(answers.accuracy),
            percent(answers.minus(reference), sign=True),
        )
        for code, (bits, answers) in points.items()
    )
    columns = ("code", "kB", "times smaller", "accuracy", "difference to fp32")
    return Table(f"{title}: codes", columns, lines, "95 % intervals over seeds and texts.")


def _chart(points: Points, title: str) -> LineChart:
    lines: dict[str, list[Point]] = {}
    for code, (bits, answers) in points.items():
        lines.setdefault(_line(code), []).append((bits / 8e3, answers))
    series = tuple(accuracy_series(shown(name), line) for name, line in lines.items())
    return LineChart(
        f"{title}: accuracy against bytes", "kB", "accuracy [%]", series, log_x=True,
        markers=True, note="Real model; bands: 95 % over seeds and texts.",
    )  # fmt: skip


def _line(code: str) -> str:
    """Return the line of the chart that a code belongs to."""
    if code in ROUNDED:
        return "rounded"
    if code.startswith("ComPEFT"):
        return "ComPEFT"
    ours = code.startswith((OURS, SENSITIVE, FINISHED, "LoRAQuant"))
    return code.rpartition(", ")[0] if ours else code
