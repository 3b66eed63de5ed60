"""What `byte_frontier` claims of a task: parity in few bytes, and how far ahead of every peer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from studies.byte_frontier.codes import PACK
from studies.byte_frontier.curves import Curve, Measured, Reference
from studies.byte_frontier.methods import METHODS
from studies.byte_frontier.ours import FEW_PACKETS, FEWEST, ONE_PACKET, STREAM, WAYS
from studies.harness.spec import Claim, Table
from studies.report.statistics import verdict_equivalent, verdict_not_worse
from studies.shared.judging import Answers, points, points_claim
from studies.shared.rates import Point, bytes_at

HALF_A_POINT, A_POINT = 0.005, 0.01
TIMES_AHEAD = 8
STREAM_MARGIN = 0.15
"""Share of bytes that a beginning may take beyond those of a file made for its size."""
MARGINS = {FEW_PACKETS: (HALF_A_POINT, "half a point"), ONE_PACKET: (A_POINT, "a point")}
CLAIMED = ("trained", "trained_long", "taught")
"""Ways of ours whose files claim parity."""
PEERS = ("int4", "int4 + entropy", "1 rms + entropy")
"""Codes of LoRA at rank 1 of which parity is asked, too: what anyone has at once."""


def claims_of(curves: Sequence[Curve], best: Reference, title: str) -> list[Claim]:
    """Return the claims of a task, ours first.

    Args:
        curves: of the task.
        best: the best float32 adapter of any rank.
        title: of the task.
    """
    return [
        *_parity_of_ours(curves, best, title),
        *_ahead_of_peers(curves, best, title),
        *_stream_claims(curves, title),
        *_parity_of_peers(curves, best, title),
    ]


def pool(answers: Answers) -> str:
    """Say how many texts were judged, and how many are drawn for an interval."""
    n_texts = answers.correct.shape[1]
    n_groups = n_texts if answers.groups is None else len(np.unique(answers.groups))
    of = "" if n_groups == n_texts else f" of {n_groups:,} sentences, which are resampled whole"
    return f"{n_texts:,} texts{of}"


def _parity_of_ours(curves: Sequence[Curve], best: Reference, title: str) -> Iterator[Claim]:
    """Yield for each way and size how far its files are from the reference."""
    for way in CLAIMED:
        for size, (margin, words) in MARGINS.items():
            measured = _of_size(curves, way, size)
            if measured is None or not (seeds := measured.answers.shared(best.answers)):
                continue
            difference = measured.answers.minus(best.answers)
            yield points_claim(
                f"{title}: a whole file of at most {size:,} bytes ({WAYS[way].label}) is not more "
                f"than {words} behind the best float32 adapter of any rank ({best.label}).",
                difference,
                verdict_not_worse(difference, margin),
                seeds,
                f"{pool(measured.answers)}; the header is counted.",
                more=f" in {measured.n_bytes:,.0f} bytes",
            )


def _of_size(curves: Sequence[Curve], way: str, size: int) -> Measured | None:
    """Return what a way made for a size."""
    for curve in curves:
        for measured in curve.codes if curve.method == way else ():
            if measured.code == f"{size:,} bytes":
                return measured
    return None


@dataclass(frozen=True)
class Ahead:
    """How far the best peer is behind ours.

    Attributes:
        label: of the peer.
        ours: bytes of ours, mean over seeds.
        theirs: bytes of the peer; infinite where it does not get there.
        by_seed: bytes of the peer as a multiple of ours, by seed.
    """

    label: str
    ours: float
    theirs: float
    by_seed: dict[int, float]


def ahead_of_peers(curves: Sequence[Curve], best: Reference) -> Ahead | None:
    """Return how far ahead our files with teachers are of the best peer, half a point down.

    Where our cheapest file is better than that already, its bytes count.
    """
    ours = next((c for c in curves if c.method == "taught"), None)
    if ours is None:
        return None
    peers = [c for c in curves if c.method in METHODS and c.family != PACK]
    seeds = [seed for seed in ours.seeds if seed in best.answers.seeds]
    mine = _bytes_down(ours, best, seeds)
    compared = [(_bytes_down(peer, best, _common(peer, seeds)), peer) for peer in peers]
    if not math.isfinite(mine) or not compared:
        return None
    theirs, peer = min(compared, key=lambda pair: pair[0])
    by_seed = {s: _bytes_down(peer, best, [s]) / _bytes_down(ours, best, [s])
               for s in _common(peer, seeds)
               if math.isfinite(_bytes_down(ours, best, [s]))}  # fmt: skip
    return Ahead(peer.label, mine, theirs, by_seed)


def _common(curve: Curve, seeds: Sequence[int]) -> list[int]:
    return [seed for seed in seeds if seed in curve.seeds]


def _bytes_down(curve: Curve, best: Reference, seeds: Sequence[int]) -> float:
    """Return the bytes at half a point below the reference; infinite where a curve ends before."""
    if not seeds:
        return math.inf
    found = bytes_at(curve.points(seeds), best.accuracy_of(seeds) - HALF_A_POINT)
    return math.inf if found is None else found


def _ahead_of_peers(curves: Sequence[Curve], best: Reference, title: str) -> Iterator[Claim]:
    """Yield how many times the bytes of ours the best peer takes."""
    ahead = ahead_of_peers(curves, best)
    if ahead is None or not ahead.by_seed:
        return
    least, most = min(ahead.by_seed.values()), max(ahead.by_seed.values())
    times = ahead.theirs / ahead.ours
    enough = times >= TIMES_AHEAD and least >= TIMES_AHEAD
    fewer = "opposite sign" if most < 1 else "smaller than claimed"
    verdict = "reproduced" if enough else fewer if most < TIMES_AHEAD else "not distinguishable"
    spread = f"{_times(least)} to {_times(most)} by seed"
    yield Claim(
        f"{title}: half a point below the best float32 adapter, the best peer takes at least "
        f"{TIMES_AHEAD} times the bytes of our files with teachers.",
        "",
        f"{_times(times)} times: {ahead.theirs:,.0f} and {ahead.ours:,.0f} bytes",
        None,
        verdict,
        tuple(ahead.by_seed),
        f"Best peer: {ahead.label}, numbers only; {spread}. Ours with header.",
    )


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if math.isfinite(ratio) else "out of reach"


@dataclass(frozen=True)
class Beginning:
    """The beginning of a file beside a file that was made for its size alone.

    Attributes:
        size: bytes that were asked for.
        begun: the beginning.
        alone: the other file.
        share: bytes of the beginning beyond those that files of one size alone take at its loss,
            as a share; None where the cheapest of them has less loss already.
    """

    size: int
    begun: Measured
    alone: Measured
    share: float | None


def beginnings(curves: Sequence[Curve]) -> list[Beginning]:
    """Return every size at which a file's beginning and a file alone were judged."""
    made = {n: _of_size(curves, "taught", n) for n in (*FEWEST, FEW_PACKETS, *STREAM)}
    alone = {size: measured for size, measured in made.items() if measured is not None}
    hull: list[Point] = [(m.n_bytes, -m.loss) for m in alone.values()]
    found = []
    for size in STREAM:
        begun = _of_size(curves, "stream", size)
        if begun is None or size not in alone:
            continue
        needed = bytes_at(hull, -begun.loss)
        share = None if needed is None else begun.n_bytes / needed - 1
        found.append(Beginning(size, begun, alone[size], share))
    return found


def beginnings_table(curves: Sequence[Curve], title: str) -> Table | None:
    """Return each beginning of a file beside a file of its size; None if none was judged."""
    lines = [
        (
            f"{b.size:,}",
            f"{b.begun.n_bytes:,.0f}",
            f"{b.alone.n_bytes:,.0f}",
            points(b.begun.answers.minus(b.alone.answers)),
            f"{b.begun.loss:.4f}",
            f"{b.alone.loss:.4f}",
            "less loss than any" if b.share is None else f"{100 * b.share:+.0f} %",
        )
        for b in beginnings(curves)
        if b.begun.answers.shared(b.alone.answers)
    ]
    columns = (
        "bytes asked for", "beginning", "file alone", "difference", "loss [nats]", "loss alone",
        "bytes beyond a file alone",
    )  # fmt: skip
    note = (
        "Bytes beyond a file alone: against the bytes at which files made for one size each reach "
        "the loss of the beginning, on the hull over the logarithm of the bytes."
    )
    return Table(f"{title}: beginnings of one file", columns, tuple(lines), note) if lines else None


def _stream_claims(curves: Sequence[Curve], title: str) -> Iterator[Claim]:
    """Yield whether every beginning takes about what a file of its loss takes."""
    found = beginnings(curves)
    shares = [-1.0 if b.share is None else b.share for b in found]
    if len(found) < len(STREAM):
        return
    worst = max(range(len(found)), key=lambda i: shares[i])
    within = shares[worst] <= STREAM_MARGIN
    yield Claim(
        f"{title}: each beginning of one file takes at most {100 * STREAM_MARGIN:.0f} % more bytes "
        f"than a file made for its size alone.",
        "",
        f"{100 * shares[worst]:+.0f} % at {found[worst].size:,} bytes, the worst",
        None,
        "reproduced" if within else "not met",
        found[worst].begun.answers.seeds,
        "At equal mean loss; no interval.",
    )


def _parity_of_peers(curves: Sequence[Curve], best: Reference, title: str) -> Iterator[Claim]:
    """Yield parity of LoRA at rank 1, rounded."""
    for curve in curves:
        for m in curve.codes if (curve.method, curve.size) == ("lora", "1") else ():
            if m.code not in PEERS or not (seeds := m.answers.shared(best.answers)):
                continue
            difference = m.answers.minus(best.answers)
            yield points_claim(
                f"{title}: LoRA trained at rank 1, {m.code}, is within half a point of the "
                f"best float32 adapter of any rank ({best.label}).",
                difference,
                verdict_equivalent(difference, HALF_A_POINT),
                seeds,
                f"{pool(m.answers)}; numbers only, without a header.",
                more=f" in {m.n_bytes:,.0f} bytes",
            )
