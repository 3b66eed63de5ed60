"""Make the three lines of numbers at the top of the README from committed results.

`render()` is called by `python3 dev.py study report --update README.md`, and by the test that
compares the README with the results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from studies.byte_frontier.claims import CLAIMED
from studies.byte_frontier.curves import Curve, Measured, Reference, curves_of, reference_of
from studies.byte_frontier.ours import FEW_PACKETS, ONE_PACKET
from studies.harness.catalogue import load_study
from studies.harness.spec import Result, Row
from studies.harness.store import Store
from studies.shared.judging import Answers

STUDIES = Path(__file__).resolve().parents[1]
LOSSY_LINK = STUDIES.parent / "benchmarks" / "results" / "lossy_link.json"
FRONTIER_TASK, CODEC_TASK = "sst2-frontier", "sst2-codes"
FITTED = "finished by distillation, fitted to a budget"
COLUMNS = ("what", "beside", "result, with its 95 % interval", "repeated", "source")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Line:
    """A number, what it is compared with, and how often it was measured."""

    what: str
    beside: str
    result: str
    repeated: str
    source: str

    def markdown(self) -> str:
        """Return a row of the table."""
        cells = (self.what, self.beside, self.result, self.repeated, self.source)
        return f"| {' | '.join(cells)} |"


def render() -> str:
    """Return the table."""
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    return "\n".join([head, *(line.markdown() for line in lines())])


def lines() -> Iterator[Line]:
    """Yield the numbers that there are results for."""
    curves = curves_of(_result("byte_frontier"), FRONTIER_TASK)
    for size in (FEW_PACKETS, ONE_PACKET):
        frontier = frontier_line(curves, size)
        if frontier is not None:
            yield frontier
    yield codec_line(_result("codec"))
    yield link_line()


def frontier_line(curves: Sequence[Curve], size: int = FEW_PACKETS) -> Line | None:
    """Return how far a file of a given size is behind the best adapter; None before it is judged.

    Args:
        curves: of one task of `byte_frontier`.
        size: for which the file was trained [bytes].
    """
    best, ours = reference_of(curves), _of_size(curves, size)
    if best is None or ours is None or not (seeds := ours.answers.shared(best.answers)):
        return None
    return Line(
        f"a file that was trained for {size:,} bytes{', a packet' if size == ONE_PACKET else ''}: "
        f"{ours.n_bytes:,.0f} with its header",
        f"the most accurate float32 LoRA of any rank ({_rank(best)}): "
        f"{best.measured.n_bytes:,.0f} bytes",
        _points(ours.answers, best.answers),
        f"{_count(len(seeds), 'seed')}{' so far' if len(seeds) < 3 else ''}",
        "[byte_frontier](studies/byte_frontier/README.md)",
    )


def _of_size(curves: Sequence[Curve], size: int) -> Measured | None:
    """Return our file of a size, of the best way of making it that was judged."""
    found = {
        curve.method: m
        for curve in curves
        if curve.method in CLAIMED
        for m in curve.codes
        if m.code == f"{size:,} bytes"
    }
    return next((found[way] for way in reversed(CLAIMED) if way in found), None)


def _rank(best: Reference) -> str:
    """Return its rank in words, and how it was trained if not as all others."""
    return f"rank {best.size}" + ("" if "steps" not in best.label else ", trained for longer")


def codec_line(result: Result) -> Line:
    """Return what an adapter of rank 8 loses that was trained on and packed into a budget."""
    rows = [*result.select(task=CODEC_TASK, way="nested")]
    for way in ("distilled", "fitted"):  # their rows have seeds of their own, with the reference
        rows += result.select(task=CODEC_TASK, way=way, of="nested")
    (plain_bits, reference), (bits, answers) = _coded(rows, "fp32"), _coded(rows, FITTED)
    return Line(
        f"a file of {bits / 8e3:.1f} kB, after quantization-aware training",
        f"the same adapter in float32 at rank 8: {plain_bits / 8e3:,.0f} kB, "
        f"{plain_bits / bits:.0f} times as much",
        _points(answers, reference),
        _count(len(answers.shared(reference)), "seed"),
        "[codec](studies/codec/README.md)",
    )


def _coded(rows: Sequence[Row], code: str) -> tuple[float, Answers]:
    """Return the mean bits and the answers of an adapter in a code."""
    seen = [(row.job.seed, c) for row in rows for c in row.values["codes"] if c["code"] == code]
    answers = Answers.of(seen)
    assert answers is not None  # the result is committed and complete
    return float(np.mean([c["bits"] for _, c in seen])), answers


def link_line() -> Line:
    """Return how much sooner a coded file arrives over a slow link that loses packets."""
    measured = json.loads(LOSSY_LINK.read_text("utf-8"))
    times, low, high = measured["times_faster"]
    link = measured["link"]
    return Line(
        f"{measured['coded_bytes']:,} bytes over {link['rate_bps'] / 1e6:g} Mbit/s, "
        f"{link['loss']:.0%} of the packets lost",
        f"the adapter's float32 file, {measured['float32_bytes']:,} bytes, by one HTTP request",
        f"arrives {times:.0f} times sooner ({low:.0f} to {high:.0f})",
        _count(len(measured["rounds"]), "round"),
        "[lossy_link.json](benchmarks/results/lossy_link.json)",
    )


def _points(ours: Answers, theirs: Answers) -> str:
    """Return the difference in accuracy [points]."""
    d = ours.minus(theirs).scaled(100)
    return f"{d.value:+.2f} points of accuracy ({d.low:+.2f} to {d.high:+.2f})"


def _count(n: int, of: str) -> str:
    number = _NUMBERS[n] if n < len(_NUMBERS) else str(n)
    return f"{number} {of}{'' if n == 1 else 's'}"


def _result(name: str) -> Result:
    """Return the committed rows of a study."""
    nowhere = STUDIES / "no-rows-of-this-machine"
    return Store(STUDIES, nowhere).collect(load_study(STUDIES, name))
