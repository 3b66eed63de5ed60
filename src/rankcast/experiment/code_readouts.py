"""Accuracy against coded bytes, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankcast.experiment.live import unpack
from rankcast.experiment.readouts import Answers, percent
from rankcast.experiment.spec import (
    Claim,
    LineChart,
    Presentation,
    Result,
    Row,
    Series,
    Table,
    Verdict,
)
from rankcast.statistics import equivalent

WAYS = ("nested", "lora", "adalora")
LABELS = {"nested": "nested SVD form", "lora": "PEFT LoRA", "adalora": "PEFT AdaLoRA"}
RELATIVE_STEPS = (1.0, 2.0, 3.0)
REFERENCE, ORDINARY = "fp32", "fp32, after as many ordinary steps"
OURS, SENSITIVE, FINISHED = "one step", "steps by sensitivity", "finished"
DISTILLED = "finished by distillation"
MARGIN = 0.005
_WHY = (
    "No finish, one step for all; shares of the sum of ‖p‖·‖q‖ over a projection's components, as "
    "coded."
)


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show accuracy against bytes, and how far coding goes at parity."""
    del inputs
    if not result.rows:
        return Presentation(())
    claims, tables, charts = [], [], []
    for task, way in dict.fromkeys((r.job.settings["task"], r.job.settings["way"])
                                   for r in result.rows
                                   if r.job.settings["way"] in WAYS):  # fmt: skip
        points = _points(result, task, way)
        title = f"{LABELS[way]}, {task.split('-')[0]}"
        claims += _claims(points, title)
        tables.append(_table(points, title))
        charts.append(_chart(points, title))
    found = [*tables, *_why(result)]
    return Presentation(tuple(claims), tuple(found), tuple(charts), text=_text(result))


def _text(result: Result) -> str:
    """Say how far coding goes on the main task, seed by seed."""
    if not result.select(task="sst2-codes", way="nested"):
        return ""
    points = _points(result, "sst2-codes", "nested")
    plain_bits, reference = points[REFERENCE]
    said = []
    for code, (bits, answers) in points.items():
        if not code.startswith((FINISHED, f"{OURS}, 2")):
            continue
        difference = answers.minus(reference).scaled(100)
        each = ", ".join(
            f"{100 * float((answers.of_seed(s) - reference.of_seed(s)).mean()):+.2f}"
            for s in answers.shared(reference)
        )
        interval = (
            ""
            if difference.interval is None
            else (f" ({difference.low:+.2f} to {difference.high:+.2f})")
        )
        said.append(
            f"{code}: {bits / 8e3:.1f} kB, {plain_bits / bits:.0f} times smaller, "
            f"{difference.value:+.2f} points{interval}, by seed {each}"
        )
    return (
        f"An adapter of {plain_bits / 32:,.0f} numbers, {plain_bits / 8e3:,.0f} kB in float32, "
        f"judged on {reference.correct.shape[1]:,} texts; "
        f"differences in accuracy to float32 as trained, paired by text and seed. "
        + "; ".join(said)
        + "."
    )


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
    found = []
    for row in rows:
        loss = {c["code"]: c["loss"] for c in row.values["codes"]}
        found.append({code: value - loss[REFERENCE] for code, value in loss.items()})
    return {code: float(np.mean([f[code] for f in found])) for code in found[0]}


def _points(result: Result, task: str, way: str) -> dict[str, tuple[float, Answers]]:
    """Return bits and answers of each code; of ComPEFT's, those with its α tuned if there are."""
    rows = result.select(task=task, way=way)
    tuned = result.select(task=task, way="compeft", of=way)
    names = [c["code"] for c in rows[0].values["codes"]]
    if tuned:
        names = [name for name in names if not name.startswith("ComPEFT")]
        names += [c["code"] for c in tuned[0].values["codes"]]
        rows = [*rows, *tuned]
    for more in ("distilled", "fitted"):
        found_so = result.select(task=task, way=more, of=way)
        names += [c["code"] for c in found_so[0].values["codes"]] if found_so else []
        rows = [*rows, *found_so]
    found = {}
    for code in names:
        seen = [(row.job.seed, c) for row in rows for c in row.values["codes"] if c["code"] == code]
        correct = [unpack(c["correct"], c["n_texts"]) for _, c in seen]
        answers = Answers(np.array(correct, dtype=np.float64), tuple(seed for seed, _ in seen))
        untuned = code.startswith("ComPEFT") and not tuned
        found[f"{code}, untuned" if untuned else code] = (
            float(np.mean([c["bits"] for _, c in seen])),
            answers,
        )
    return found


def _claims(points: Mapping[str, tuple[float, Answers]], title: str) -> list[Claim]:
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
    point: tuple[float, Answers],
    reference: str,
    against: tuple[float, Answers],
) -> Claim:
    """Return whether a code's accuracy is within half a point of a reference's."""
    (bits, answers), (plain_bits, theirs) = point, against
    difference = answers.minus(theirs)
    found: Verdict = "not resolved"
    if difference.interval is not None and (difference.high < -MARGIN or difference.low > MARGIN):
        found = "contradicted"
    elif equivalent(difference.interval, MARGIN):
        found = "reproduced"
    return Claim(
        f"{title}: {code} is within half a point of {reference}.",
        "",
        f"{100 * difference.value:+.2f} points at {plain_bits / bits:.0f} times fewer bits",
        difference.scaled(100).interval,
        found,
        answers.shared(theirs),
        f"{answers.correct.shape[1]:,} texts; bits of the whole file, header included.",
    )


def _table(points: Mapping[str, tuple[float, Answers]], title: str) -> Table:
    plain_bits, reference = points[REFERENCE]
    lines = tuple(
        (
            code,
            f"{bits / 8e3:,.1f}",
            f"{plain_bits / bits:.0f}",
            percent(answers.accuracy),
            percent(answers.minus(reference), sign=True),
        )
        for code, (bits, answers) in points.items()
    )
    columns = ("code", "kB", "times smaller", "accuracy", "difference to fp32")
    return Table(f"{title}: codes", columns, lines, "95 % intervals over seeds and texts.")


def _chart(points: Mapping[str, tuple[float, Answers]], title: str) -> LineChart:
    groups: dict[str, list[tuple[float, Answers]]] = {}
    for code, point in points.items():
        groups.setdefault(_family(code), []).append(point)
    series = []
    for name, found in groups.items():
        ordered = sorted(found, key=lambda point: point[0])
        accuracy = [answers.accuracy.scaled(100) for _, answers in ordered]
        series.append(
            Series(
                name,
                [bits / 8e3 for bits, _ in ordered],
                [a.value for a in accuracy],
                [a.low for a in accuracy],
                [a.high for a in accuracy],
            )
        )
    return LineChart(
        f"{title}: accuracy against bytes", "kB", "accuracy [%]", tuple(series), log_x=True,
        markers=True, note="Real model; bands: 95 % over seeds and texts.",
    )  # fmt: skip


def _family(code: str) -> str:
    """Return the line of the chart that a code belongs to."""
    ours = code.startswith((OURS, SENSITIVE, FINISHED, "ComPEFT", "LoRAQuant"))
    return code.rpartition(", ")[0] if ours else code
