"""Present `byte_frontier`: accuracy against bytes, and one number beside each curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rankcast.records import IntArray
from studies.byte_frontier.codes import FAMILIES, PACK, REFERENCE, ROUNDED
from studies.byte_frontier.methods import METHODS
from studies.byte_frontier.ours import FEW_PACKETS, ONE_PACKET, WAYS
from studies.byte_frontier.rates import Point, bd_rate, bytes_at
from studies.harness.spec import Claim, LineChart, Presentation, Result, Row, Table
from studies.report.statistics import verdict_equivalent
from studies.shared.judging import (
    Answers,
    accuracy_series,
    percent,
    points_claim,
    unpack_groups,
)

HALF_A_POINT = 0.005
TASK_LABELS = {"sst2-frontier": "SST-2", "agnews-frontier": "AG News"}


@dataclass(frozen=True)
class Measured:
    """One code of one method, over seeds.

    Attributes:
        code: its name.
        bytes_of: bytes by seed.
        loss: mean over seeds [nats].
        answers: of each seed and text.
    """

    code: str
    bytes_of: Mapping[int, float]
    loss: float
    answers: Answers

    @property
    def n_bytes(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.bytes_of.values())))

    def at(self, seeds: Sequence[int] = ()) -> Point:
        """Return bytes and accuracy over some seeds; over all of them if none are named."""
        chosen = seeds or self.answers.seeds
        accuracy = np.mean([self.answers.of_seed(seed).mean() for seed in chosen])
        return float(np.mean([self.bytes_of[seed] for seed in chosen])), float(accuracy)


@dataclass(frozen=True)
class Curve:
    """The codes of one family for one method at one size.

    Attributes:
        method: name in `METHODS`, or one of ours.
        size: name of its size; empty for ours.
        family: of the codes.
        codes: from cheap to dear.
    """

    method: str
    size: str
    family: str
    codes: tuple[Measured, ...]

    @property
    def label(self) -> str:
        """What readers call it."""
        if self.method not in METHODS:
            return WAYS[self.method].label if self.method in WAYS else self.method
        return f"{method_label(self.method, self.size)}, {self.family}"

    def points(self, seeds: Sequence[int]) -> list[Point]:
        """Return bytes and accuracies over some seeds, of the codes that all were judged in."""
        return [m.at(seeds) for m in self.codes if set(seeds) <= set(m.answers.seeds)]

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds on which most of the codes were judged."""
        found = [seed for m in self.codes for seed in m.answers.seeds]
        most = len(self.codes) / 2
        return tuple(seed for seed in sorted(set(found)) if found.count(seed) >= most)


def method_label(method: str, size: str) -> str:
    """Return what readers call a method at a size."""
    return f"{METHODS[method].label} {'r ' if method.startswith('lora') else ''}{size}"


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Show each task: the numbers beside the curves, every code, and the curves."""
    del inputs
    claims, tables, charts = [], [], []
    for task, title in TASK_LABELS.items():
        curves = curves_of(result, task)
        best = reference_of(curves)
        if best is None:
            continue
        claims += _claims(curves, best, title)
        tables.append(_summary(curves, best, title))
        charts.append(_chart(curves, title))
    for task, title in TASK_LABELS.items():
        curves = curves_of(result, task)
        best = reference_of(curves)
        if best is not None:
            tables.append(_every_code(curves, best, title))
    tables += _tuning(result)
    return Presentation(tuple(claims), tuple(tables), tuple(charts), text=_text(result))


def curves_of(result: Result, task: str) -> list[Curve]:
    """Return every curve of a task; codes of which some seeds are missing have the others."""
    seen: dict[tuple[str, str, str], dict[str, list[tuple[int, Mapping]]]] = {}
    for row in result.select(task=task):
        s = row.job.settings
        if s["kind"] == "tuning":
            continue
        method, size = (s["method"], s["size"]) if "method" in s else (s["way"], "")
        for code in row.values["codes"]:
            codes = seen.setdefault((method, size, code["family"]), {})
            codes.setdefault(code["code"], []).append((row.job.seed, code))
    groups = _groups_of(result, task)
    return [Curve(*key, tuple(_measured(codes, groups))) for key, codes in seen.items()]


def _groups_of(result: Result, task: str) -> IntArray | None:
    """Return the group of each judged text of a task; None if no row has them."""
    for row in result.select(task=task, kind="method"):
        if "groups" in row.values:
            return unpack_groups(row.values["groups"], row.values["codes"][0]["n_texts"])
    return None


def _measured(
    codes: Mapping[str, list[tuple[int, Mapping]]], groups: IntArray | None
) -> list[Measured]:
    """Return codes from cheap to dear."""
    found = []
    for code, judged in codes.items():
        answers = Answers.of(judged, groups)
        assert answers is not None  # there is a judgement for each code
        loss = float(np.mean([c["loss"] for _, c in judged]))
        found.append(Measured(code, {seed: c["bytes"] for seed, c in judged}, loss, answers))
    return sorted(found, key=lambda m: m.n_bytes)


@dataclass(frozen=True)
class Reference:
    """The best float32 adapter of any rank.

    Attributes:
        size: its rank.
        measured: its answers.
    """

    size: str
    measured: Measured

    @property
    def answers(self) -> Answers:
        """Of each seed and text."""
        return self.measured.answers

    def accuracy_of(self, seeds: Sequence[int]) -> float:
        """Return its accuracy over some seeds."""
        return self.measured.at(seeds)[1]


def reference_of(curves: Sequence[Curve]) -> Reference | None:
    """Return the LoRA of the best mean accuracy in float32; None if none was judged.

    Ranks are compared over the seeds that all of them have, if there are any.
    """
    found = [
        Reference(curve.size, m)
        for curve in curves
        if curve.method in METHODS and METHODS[curve.method].is_lora
        for m in curve.codes
        if m.code == REFERENCE
    ]
    seeds = [set(r.answers.seeds) for r in found]
    common = sorted(set.intersection(*seeds)) if seeds else []
    return max(found, key=lambda r: r.accuracy_of(common), default=None)


def anchor_of(curves: Sequence[Curve]) -> Curve | None:
    """Return LoRA at rank 1, rounded, against which rates are compared."""
    found = (c for c in curves if (c.method, c.size, c.family) == ("lora", "1", ROUNDED))
    return next(found, None)


def _claims(curves: Sequence[Curve], best: Reference, title: str) -> list[Claim]:
    """Return parity of LoRA at rank 1 in 4 bits, which is the peer that anyone has at once."""
    claims = []
    for curve in curves:
        if (curve.method, curve.size) != ("lora", "1"):
            continue
        for m in curve.codes:
            if m.code not in ("int4", "int4 + entropy", "1 rms + entropy"):
                continue
            if not m.answers.shared(best.answers):
                continue
            difference = m.answers.minus(best.answers)
            claims.append(
                points_claim(
                    f"{title}: LoRA trained at rank 1, {m.code}, is within half a point of the "
                    f"best float32 adapter of any rank (r {best.size}).",
                    difference,
                    verdict_equivalent(difference, HALF_A_POINT),
                    m.answers.shared(best.answers),
                    f"{_pool(m.answers)}; numbers only, without a header.",
                    more=f" in {m.n_bytes:,.0f} bytes",
                )
            )
    return claims


def _pool(answers: Answers) -> str:
    """Say how many texts were judged, and how many are drawn for an interval."""
    n_texts = answers.correct.shape[1]
    n_groups = n_texts if answers.groups is None else len(np.unique(answers.groups))
    of = "" if n_groups == n_texts else f" of {n_groups:,} sentences, which are resampled whole"
    return f"{n_texts:,} texts{of}"


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
        f"Reference: LoRA r {best.size} in float32, {percent(best.answers.accuracy)}. BD rate: "
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
    return percent(measured.answers.minus(best.answers), sign=True)


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
    note = f"95 % intervals over seeds and texts: {_pool(best.answers)}."
    return Table(f"{title}: codes", columns, tuple(lines), note)


def _method_of(curve: Curve) -> str:
    known = curve.method in METHODS
    return method_label(curve.method, curve.size) if known else curve.label


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
    for row in result.select(kind="tuning"):
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
    return f"{TASK_LABELS[s['task']]}: {method_label(s['method'], s['size'])}"


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
