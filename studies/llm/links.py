"""What arrives over NB-IoT within a second, and how well a device then answers.

A carrier of NB-IoT is 180 kHz wide (3GPP TS 36.211, Sec. 10). Over each link everybody sends the
code of the least loss among those that fit, of any rank; chosen after the fact, for peers as for
ours. Where none fits, the device answers with the base model alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankcast.link.capacity import Awgn
from rankcast.link.costs import budget_bits
from studies.harness.spec import Claim, Table
from studies.llm.codes import COMPEFT, CURVED, PACK, QAT, SIZED, STEPS
from studies.llm.curves import Curve, Measured, TaskCurves
from studies.report.statistics import verdict

BANDWIDTH_HZ, DEADLINE_S = 180e3, 1.0
LINKS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
_OURS = (PACK, CURVED, QAT, SIZED)
OURS_BY_WAY: Mapping[str, tuple[str, ...]] = {
    "ours without training on rounded weights": (PACK, CURVED),
    "ours with it": _OURS,
}


@dataclass(frozen=True)
class Arrived:
    """What somebody sends over a link.

    Attributes:
        label: of the adapter and its code; empty where none fits.
        measured: how the device answers then.
    """

    label: str
    measured: Measured


def budget_bytes(snr_db: float) -> int:
    """Return what arrives in time, by Shannon's formula."""
    rate_bps = BANDWIDTH_HZ * Awgn().spectral_efficiency(np.array([snr_db]))
    return int(budget_bits(rate_bps, DEADLINE_S)[0] // 8)


def best_within(
    curves: Sequence[Curve], n_bytes: float, alone: Measured, seeds: Sequence[int]
) -> Arrived:
    """Return the code of the least loss that fits, or the base model alone.

    Args:
        curves: whose codes may be sent.
        n_bytes: that arrive.
        alone: the base model.
        seeds: that a code needs to have, and over which it is judged.
    """
    codes = [
        Arrived(f"{curve.label}: {m.code}", m)
        for curve in curves
        for m in curve.codes
        if set(seeds) <= set(m.seeds) and m.n_bytes(seeds) <= n_bytes
    ]
    return min((Arrived("", alone), *codes), key=lambda a: a.measured.loss(seeds))


def everybody_sends(found: TaskCurves) -> bool:
    """Return whether rounding, sparse codes and ours have all been judged: before, it is unfair."""
    return {STEPS, COMPEFT} <= {c.family for c in found.peers} and bool(found.ours(*_OURS))


def arrived_table(found: TaskCurves, title: str) -> Table:
    """Return a line for each link: the losses of what arrives, and the difference."""
    seeds = _seeds(found)
    best = found.exact[found.best(seeds)[0]]
    lines = []
    for snr_db in LINKS_DB:
        theirs, *ours = _arrived(found, snr_db, seeds)
        cells = [f"{theirs.measured.loss(seeds):.4f}", theirs.label or "base model alone"]
        for mine in ours:
            cells += [f"{mine.measured.loss(seeds):.4f}", mine.label or "base model alone"]
        cells += [f"{ours[-1].measured.minus(m):+.4f}" for m in (theirs.measured, best)]
        lines.append((f"{snr_db:g} dB ({budget_bytes(snr_db):,} B)", *cells))
    columns = ["link", "peers", "their code"]
    for way in OURS_BY_WAY:
        columns += [way, "file"]
    columns += ["ours minus peers", "ours minus float32"]
    note = (
        f"Nats per token. Over 180 kHz in one second; the base model alone has "
        f"{found.alone.loss(seeds):.4f}, the best float32 adapter {best.loss(seeds):.4f}. All "
        f"send the best that fits, chosen on the judged answers. Differences with 95 % intervals "
        f"over seeds and answers, paired."
    )
    return Table(f"{title}: what arrives over NB-IoT", tuple(columns), tuple(lines), note)


def arrived_claims(found: TaskCurves, title: str) -> Iterator[Claim]:
    """Yield for each link whether what arrives of ours answers better than the best of peers."""
    seeds = _seeds(found)
    for snr_db in LINKS_DB:
        theirs, *_, mine = _arrived(found, snr_db, seeds)
        gained = theirs.measured.minus(mine.measured)
        claim = (
            f"{title}: over 180 kHz, in one second at {snr_db:g} dB ({budget_bytes(snr_db):,} "
            f"bytes), what arrives of ours answers with less loss than the best that arrives of "
            f"peers."
        )
        note = (
            f"Peers: {theirs.label or 'nothing fits, the base model alone'}. Ours: "
            f"{mine.label or 'nothing fits'}. Nats per token less, paired by seed and answer."
        )
        yield Claim(
            claim, "", f"{gained.value:+.4f}", gained.interval, verdict(gained), seeds, note
        )


def _arrived(found: TaskCurves, snr_db: float, seeds: Sequence[int]) -> list[Arrived]:
    """Return what arrives of the peers, and of ours in each way."""
    groups = (found.peers, *(found.ours(*families) for families in OURS_BY_WAY.values()))
    n_bytes = budget_bytes(snr_db)
    return [best_within(group, n_bytes, found.alone, seeds) for group in groups]


def _seeds(found: TaskCurves) -> tuple[int, ...]:
    """Return the seeds in which anything was sent; those of the reference if nothing was."""
    every = [set(curve.seeds) for curve in found.curves if curve.seeds]
    known = set(found.alone.seeds)
    return tuple(sorted(set.intersection(known, *every) or known))
