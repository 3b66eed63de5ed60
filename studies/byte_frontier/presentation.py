"""Present `byte_frontier`: accuracy against bytes, and one number beside each curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from studies.byte_frontier.claims import HALF_A_POINT, beginnings_table, claims_of, pool
from studies.byte_frontier.codes import FAMILIES, PACK
from studies.byte_frontier.curves import (
    Curve,
    Measured,
    Reference,
    anchor_of,
    curves_of,
    method_label,
    reference_of,
)
from studies.byte_frontier.methods import METHODS
from studies.byte_frontier.ours import FEW_PACKETS, ONE_PACKET, WAYS
from studies.harness.spec import LineChart, Presentation, Result, Row, Table
from studies.shared.judging import accuracy_series, percent, points
from studies.shared.rates import bd_rate, bytes_at

TASK_LABELS = {"sst2-frontier": "SST-2", "agnews-frontier": "AG News"}


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show each task: the numbers beside the curves, every code, and the curves."""
    del inputs
    claims, tables, charts = [], [], []
    for task, title in TASK_LABELS.items():
        curves = curves_of(result, task)
        best = reference_of(curves)
        if best is None:
            continue
        claims += claims_of(curves, best, title)
        tables.append(_summary(curves, best, title))
        if (begun := beginnings_table(curves, title)) is not None:
            tables.append(begun)
        charts.append(_chart(curves, title))
    for task, title in TASK_LABELS.items():
        curves = curves_of(result, task)
        best = reference_of(curves)
        if best is not None:
            tables.append(_every_code(curves, best, title))
            tables += _worth_of_a_bit(result, task, title)
    tables += _tuning(result)
    return Presentation(tuple(claims), tuple(tables), tuple(charts), text=_text(result))


def _summary(curves: Sequence[Curve], best: Reference, title: str) -> Table:
    """Return the numbers beside each curve."""
    anchor = anchor_of(curves)
    lines = [
        (
            curve.label,
            _rate(curve, anchor),
            _bytes_at_half_a_point(curve, best),
            _best_within(curve, best, ONE_PACKET),
            _best_within(curve, best, FEW_PACKETS),
            _best_within(curve, best, 2 * FEW_PACKETS),
            _seeds(curve.seeds),
        )
        for curve in curves
    ]
    columns = (
        "curve", "BD rate", "bytes at -0.5 points", f"within {ONE_PACKET:,} bytes",
        f"within {FEW_PACKETS:,} bytes", f"within {2 * FEW_PACKETS:,} bytes", "seeds",
    )  # fmt: skip
    note = (
        f"Reference: {best.label} in float32, {percent(best.answers.accuracy)}. BD rate: "
        f"Bjøntegaard delta rate against LoRA r 1, rounded. Bytes at half a point below the "
        f"reference, on the upper hull of a curve over the logarithm of the bytes: of the mean "
        f"over seeds, and from least to most of the seeds that get there. "
        f"Within so many bytes: the best code's difference to the reference in points."
    )
    return Table(f"{title}: curves", columns, tuple(lines), note)


def _rate(curve: Curve, anchor: Curve | None) -> str:
    """Return the Bjøntegaard delta rate against the anchor."""
    if anchor is None or curve is anchor:
        return "–"
    seeds = [seed for seed in curve.seeds if seed in anchor.seeds]
    if not seeds:
        return "–"
    rate = bd_rate(curve.points(seeds), anchor.points(seeds))
    return "no overlap" if rate is None else f"{100 * rate:+.0f} %"


def _bytes_at_half_a_point(curve: Curve, best: Reference) -> str:
    """Return the bytes at half a point below the reference, with the range over seeds."""

    def over(seeds: Sequence[int]) -> float | None:
        return bytes_at(curve.points(seeds), best.accuracy_of(seeds) - HALF_A_POINT)

    shared = [seed for seed in curve.seeds if seed in best.answers.seeds]
    if not shared:
        return "–"
    whole = over(shared)
    if whole is None:
        return "not reached"
    each = [found for seed in shared if (found := over([seed])) is not None]
    spread = f" ({min(each):,.0f} to {max(each):,.0f})" if len(each) > 1 else ""
    return f"{whole:,.0f}{spread}"


def _best_within(curve: Curve, best: Reference, most: float) -> str:
    """Return the difference to the reference of the best code of at most so many bytes."""
    found = [m for m in curve.codes if m.n_bytes <= most]
    if not found:
        return "–"
    return _difference(max(found, key=lambda m: m.at()[1]), best)


def _difference(measured: Measured, best: Reference) -> str:
    """Return the difference to the reference, paired by seed and text."""
    if not measured.answers.shared(best.answers):
        return "–"
    return points(measured.answers.minus(best.answers))


def _every_code(curves: Sequence[Curve], best: Reference, title: str) -> Table:
    """Return a line for each method and code."""
    lines = [
        (
            _method_of(curve),
            m.code,
            f"{m.n_bytes:,.0f}",
            percent(m.answers.accuracy),
            _difference(m, best),
            f"{m.loss:.4f}",
            _seeds(m.answers.seeds),
        )
        for curve in curves
        for m in curve.codes
    ]
    columns = (
        "method", "code", "bytes", "accuracy", "difference to the reference", "loss [nats]",
        "seeds",
    )  # fmt: skip
    note = f"95 % intervals over seeds and texts: {pool(best.answers)}."
    return Table(f"{title}: codes", columns, tuple(lines), note)


def _method_of(curve: Curve) -> str:
    known = curve.method in METHODS
    return method_label(curve.method, curve.size) if known else curve.label


def _worth_of_a_bit(result: Result, task: str, title: str) -> list[Table]:
    """Return what a bit more gains by the price at the end of training, and as measured."""
    found: dict[str, dict[float, list[Mapping]]] = {}
    for row in result.select(task=task, kind="ours"):
        code = row.values["codes"][-1]
        if "price_nats_per_bit" in code:
            sizes = found.setdefault(row.job.settings["way"], {})
            sizes.setdefault(row.job.settings["sizes"][-1], []).append(code)
    lines = [
        line for way, sizes in found.items() for line in _worth_lines(WAYS[way].label, sizes)
    ]  # fmt: skip
    columns = ("way", "bytes", "loss [nats]", "price [nats/bit]", "measured [nats/bit]", "files")
    note = (
        "Price: by the training itself at its end, with the loss on training texts. Measured: "
        "how much less loss the next larger files have on judged texts, for each bit more."
    )
    return [Table(f"{title}: what a bit is worth", columns, tuple(lines), note)] if lines else []


def _worth_lines(label: str, sizes: Mapping[float, Sequence[Mapping]]) -> list[tuple[str, ...]]:
    """Return a line for each size of one way, from small to large."""
    means = [
        tuple(float(np.mean([code[key] for code in sizes[size]])) for key in
              ("bytes", "loss", "price_nats_per_bit"))
        for size in sorted(sizes)
    ]  # fmt: skip
    lines = []
    for i, (n_bytes, loss, price) in enumerate(means):
        measured = "–"
        if i + 1 < len(means):
            more_bytes, less_loss, _ = means[i + 1]
            measured = f"{(loss - less_loss) / (8 * (more_bytes - n_bytes)):.1e}"
        files = str(len(sizes[sorted(sizes)[i]]))
        lines.append((label, f"{n_bytes:,.0f}", f"{loss:.4f}", f"{price:.1e}", measured, files))
    return lines


def _chart(curves: Sequence[Curve], title: str) -> LineChart:
    """Return accuracy against bytes: every family of LoRA r 1, and the best of each other."""
    shown = [c for c in curves if c.method not in METHODS or _is_drawn(c)]
    order = {family: i for i, family in enumerate(FAMILIES)}
    shown.sort(key=lambda c: order.get(c.family, -1))
    series = tuple(
        accuracy_series(c.label, [(m.n_bytes, m.answers) for m in c.codes]) for c in shown
    )
    return LineChart(
        f"{title}: accuracy against bytes", "bytes", "accuracy [%]", series, log_x=True,
        markers=True, note="Real model; bands: 95 % over seeds and texts.",
    )  # fmt: skip


def _is_drawn(curve: Curve) -> bool:
    """Whether a chart of everything can bear a curve: all of rank 1, one of each other method."""
    if (curve.method, curve.size) == ("lora", "1"):
        return True
    first = next(iter(METHODS[curve.method].sizes))
    return curve.method != "lora" and curve.size == first and curve.family == PACK


def _tuning(result: Result) -> list[Table]:
    """Return what tuning tried, with the winner of each method and size."""
    lines = []
    for row in (*result.select(kind="tuning"), *result.select(kind="tuning_ours")):
        tried = row.values["candidates"]
        best = min(tried, key=lambda c: c["loss"])
        lines.append((_tuned(row), *(_settings(best, tried))))
    if not lines:
        return []
    columns = ("method", "learning rate", "alpha / r", "loss [nats]", "accuracy", "tried")
    note = "Chosen by the loss on texts for tuning, with a seed that no result has."
    return [Table("Tuning", columns, tuple(lines), note)]


def _tuned(row: Row) -> str:
    s = row.job.settings
    ours = s["kind"] == "tuning_ours"
    label = "ours, without rounding" if ours else method_label(s["method"], s["size"])
    return f"{TASK_LABELS[s['task']]}: {label}"


def _settings(best: Mapping, tried: Sequence[Mapping]) -> tuple[str, ...]:
    lrs = ", ".join(f"{lr:.2g}" for lr in sorted({c["lr"] for c in tried}))
    scale = f"{best['scale']:g}" if "scale" in best else "–"
    return f"{best['lr']:.2g}", scale, f"{best['loss']:.4f}", f"{best['accuracy']:.2%}", lrs


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _text(result: Result) -> str:
    """Say whether quick judging changes answers, and which codes are missing."""
    sentences = []
    if rows := [row for row in result.select(kind="float32") if row.values["n_texts"]]:
        texts, changed, low = (
            sum(row.values[key] for row in rows) for key in ("n_texts", "changed", "in_bfloat16")
        )
        sentences.append(
            f"Of {texts:,} answers of {len(rows)} adapters, {low} are others in bfloat16 than in "
            f"float32, and {changed} as texts are judged here."
        )
    missing = sorted({name for row in result.rows for name in row.values.get("missing", ())})
    if missing:
        sentences.append(
            f"Some rows lack {', '.join(missing)}, which was not installed where they were made."
        )
    return " ".join(sentences)
