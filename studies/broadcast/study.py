"""One file for many devices: up to which spread of their links is it worth sending it once?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankcast.band.broadcast import Audience, Method, audience_of, best_plan
from rankcast.band.cell import Cell, Demands
from rankcast.band.delivery import Delivery
from rankcast.band.ladder import Ladder
from rankcast.band.lagrangian import Lagrangian
from rankcast.link.capacity import Rayleigh
from rankcast.link.processes import BlockFadingSnr
from rankcast.records import FloatArray
from studies.broadcast.slots import Transmission, seconds_to_everybody, worth_of_broadcast
from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    Row,
    RunContext,
    Scale,
    Study,
    Table,
)
from studies.report.statistics import Estimate, t_interval, verdict
from studies.shared_band.study import measured_ladders

SEEDS = (4001, 4002, 4003, 4004, 4005)
"""Draws of links and fading on which nothing was chosen."""
N_DEVICES = (10, 50)
SPREADS_DB = (0.0, 3.0, 6.0, 9.0, 12.0)
AIRTIMES_S = (6.0, 30.0)
COVERAGE_DB, LONG_TAIL_DB = -10.0, -20.0
"""Least mean SNR: no link is planned below the first (3GPP TR 36.942, annex A.2)."""
N_CELLS = 10
LADDER = "sst2-0"
MEAN_SNR_DB, OVERHEAD = 8.0, 0.02
BANDWIDTH_HZ, SLOT_S = 20e3, 0.3  # a slot is the coherence time at 0.5 m/s and 900 MHz
METHODS: tuple[Method, ...] = ("broadcast", "unicast", "mixed")
_N_VALUES = 256  # of the fading
_FADING_DB = 10.0 * np.log10(Rayleigh().ppf((np.arange(_N_VALUES) + 0.5) / _N_VALUES))


def jobs(scale: Scale) -> Sequence[Job]:
    """Return every spread and number of devices on every seed, then those with weaker devices."""
    quick = scale == "quick"
    limits = ((COVERAGE_DB, SPREADS_DB[:3:2] if quick else SPREADS_DB),)
    if not quick:  # at a small spread nobody is so weak
        limits = (*limits, (LONG_TAIL_DB, SPREADS_DB[2:]))
    return [
        Job(
            f"{n_devices}-{spread:g}-{least:g}-{seed}",
            seed,
            {
                "n_devices": n_devices,
                "spread_db": spread,
                "least_db": least,
                "n_cells": 2 if quick else N_CELLS,
            },
        )
        for least, spreads in limits
        for seed in (SEEDS[:1] if quick else SEEDS)
        for n_devices in (N_DEVICES[:1] if quick else N_DEVICES)
        for spread in spreads
    ]


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Send the file to the same cells by each method."""
    del context
    s, rng = job.settings, np.random.default_rng(job.seed)
    snr_db = draw_snr_db((s["n_cells"], s["n_devices"]), s["spread_db"], s["least_db"], rng)
    ladder = measured_ladders()[LADDER]
    everybody = _to_everybody(snr_db, float(ladder.prefix_bits[-1]), rng)
    # Within an airtime the weakest are left out in any case.
    airtimes_s = AIRTIMES_S if s["least_db"] == COVERAGE_DB else ()
    return {**everybody, "worth": {f"{x:g}": _worth(snr_db, ladder, x, rng) for x in airtimes_s}}


def draw_snr_db(
    shape: tuple[int, int], spread_db: float, least_db: float, rng: np.random.Generator
) -> FloatArray:
    """Draw (C, D) Gaussian mean SNRs [dB], the best first; those without coverage are redrawn."""
    snr_db = MEAN_SNR_DB + spread_db * rng.standard_normal(shape)
    while (weak := snr_db < least_db).any():
        snr_db[weak] = MEAN_SNR_DB + spread_db * rng.standard_normal(int(weak.sum()))
    return np.sort(snr_db, axis=1)[:, ::-1]


def _to_everybody(snr_db: FloatArray, bits: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return airtimes until everybody has the file, beside what the rule predicts."""
    cell = Cell(BANDWIDTH_HZ, SLOT_S, 1)
    audiences = [_audience(cell, row, choices=len(row)) for row in snr_db]
    predicted = {m: _each(audiences, lambda a, m=m: a.seconds_per_bit(m)[-1]) for m in METHODS}
    heard = {m: _each(audiences, lambda a, m=m: a.heard_by(m)[-1]).astype(int) for m in METHODS}
    seconds = {}
    for method in METHODS:
        pairs = list(zip(audiences, heard[method], strict=True))
        sent_bps = np.array([a.sent_bps[max(n - 1, 0)] for a, n in pairs])
        at_once = np.array([a.seconds_per_bit("broadcast")[n] for a, n in pairs])
        share = 1.0 - at_once / predicted[method]
        how = Transmission(heard[method], sent_bps, sent_bps / (1.0 + OVERHEAD), share)
        seconds[method] = seconds_to_everybody(cell, snr_db, bits, how, rng)
    paid = seconds["broadcast"] <= seconds["unicast"]
    return {
        "log_seconds": {m: float(np.log(seconds[m]).mean()) for m in METHODS},
        "log_predicted": {m: float(np.log(predicted[m] * bits).mean()) for m in METHODS},
        "rule_right": float((_each(audiences, lambda a: a.pays) == paid).mean()),
        "heard": float(heard["mixed"].mean() / snr_db.shape[1]),
    }


def _worth(
    snr_db: FloatArray, ladder: Ladder, airtime_s: float, rng: np.random.Generator
) -> dict[str, float]:
    """Return the share of the worth of all files that arrives within an airtime."""
    n_slots = round(airtime_s / SLOT_S)
    cell = Cell(BANDWIDTH_HZ, SLOT_S, n_slots, BlockFadingSnr(0.0, Rayleigh()))
    prefixes = (*snr_db.shape, ladder.n_chunks + 1)
    start = np.zeros(snr_db.shape, dtype=np.int64)
    demands = Demands(
        np.broadcast_to(ladder.prefix_bits, prefixes),
        np.broadcast_to(ladder.worth, prefixes),
        start, start + n_slots, snr_db,
    )  # fmt: skip
    rates_bps = cell.rates_of(snr_db, rng)
    everything = snr_db.size * ladder.worth[-1]
    unicast = Delivery(cell, demands, rates_bps).run(Lagrangian()).sum()
    broadcast = predicted = 0.0
    for c, row in enumerate(snr_db):
        audience = _audience(cell, row, n_slots=n_slots)
        plan = best_plan(ladder, audience.seconds_per_bit("broadcast"), airtime_s)
        predicted += plan.worth
        broadcast += worth_of_broadcast(
            audience, plan, ladder, rates_bps[:, c], overhead=OVERHEAD, airtime_s=airtime_s
        )
    return {
        "unicast": float(unicast / everything),
        "broadcast": float(broadcast / everything),
        "predicted": float(predicted / everything),
    }


def _audience(cell: Cell, snr_db: FloatArray, **options: Any) -> Audience:
    return audience_of(cell.rate_bps(snr_db[:, None] + _FADING_DB), OVERHEAD, **options)


def _each(audiences: Sequence[Audience], of: Callable[[Audience], Any]) -> FloatArray:
    return np.array([of(audience) for audience in audiences])


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return airtimes as ratios, worth as shares, and where a broadcast stops paying."""
    del inputs
    limits = (COVERAGE_DB, LONG_TAIL_DB)
    tables = [_time_table(result, n, least_db) for least_db in limits for n in N_DEVICES]
    tables += [_worth_table(result, n) for n in N_DEVICES]
    return Presentation(_claims(result), tuple(table for table in tables if table.rows))


def rows_of(
    result: Result, n_devices: int, spread_db: float, least_db: float = COVERAGE_DB
) -> list[Row]:
    """Return the rows of all seeds, in order."""
    rows = result.select(n_devices=n_devices, spread_db=spread_db, least_db=least_db)
    return sorted(rows, key=lambda row: row.job.seed)


def saved(rows: Sequence[Row], kind: str, method: str) -> list[float]:
    """Return ln of unicast's airtime over a method's, for each seed."""
    return [row.values[kind]["unicast"] - row.values[kind][method] for row in rows]


def break_even_db(saved_at: Sequence[float]) -> float:
    """Return the spread at which what is saved falls through 0, between those that were run [dB].

    The last spread where it never does; 0 where nothing is saved at the first.
    """
    for place, value in enumerate(saved_at):
        if value < 0:
            if place == 0:
                return 0.0
            before = saved_at[place - 1]
            step = SPREADS_DB[place] - SPREADS_DB[place - 1]
            return SPREADS_DB[place - 1] + step * before / (before - value)
    return SPREADS_DB[-1]


def _claims(result: Result) -> tuple[Claim, ...]:
    """Return the two answers: for the whole file, and for worth within an airtime."""
    few, many, claims = N_DEVICES[0], N_DEVICES[-1], []
    curves = [saved(rows_of(result, few, x), "log_seconds", "broadcast") for x in SPREADS_DB]
    if min(map(len, curves)) == max(map(len, curves)) > 0:
        found = t_interval([break_even_db(curve) for curve in zip(*curves, strict=True)])
        words = (
            f"{few} devices, the whole file to everybody: a broadcast takes less airtime than "
            f"unicast up to this spread of mean SNRs."
        )
        ours = f"{found.value:.1f} dB"
        claims.append(Claim(words, "", ours, found.interval, "measured", result.seeds))
    more = _more_worth(result, many, SPREADS_DB[-1], AIRTIMES_S[-1])
    if more is not None:
        words = (
            f"{many} devices, {AIRTIMES_S[-1]:g} s of airtime: a broadcast delivers more worth "
            f"than unicast even at a spread of {SPREADS_DB[-1]:g} dB."
        )
        ours = f"{100 * more.value:+.1f} points"
        interval = more.scaled(100.0).interval
        claims.append(Claim(words, "", ours, interval, verdict(more), result.seeds))
    return tuple(claims)


def _more_worth(result: Result, n: int, spread_db: float, airtime_s: float) -> Estimate | None:
    rows = rows_of(result, n, spread_db)
    worth = [row.values["worth"][f"{airtime_s:g}"] for row in rows]
    return t_interval([x["broadcast"] - x["unicast"] for x in worth]) if worth else None


def _time_table(result: Result, n: int, least_db: float) -> Table:
    """Return unicast's airtime as a multiple of the others', simulated and predicted."""
    found = []
    for spread in SPREADS_DB:
        rows = rows_of(result, n, spread, least_db)
        if not rows:
            continue
        found.append((
            f"{spread:g}",
            f"{_ratio(saved(rows, 'log_seconds', 'broadcast')):.2f}",
            f"{np.exp(np.mean(saved(rows, 'log_predicted', 'broadcast'))):.2f}",
            f"{100 * np.mean([row.values['rule_right'] for row in rows]):.0f}",
            f"{_ratio(saved(rows, 'log_seconds', 'mixed')):.2f}",
            f"{100 * np.mean([row.values['heard'] for row in rows]):.0f}",
        ))  # fmt: skip
    return Table(
        f"The whole file to {n} devices, the weakest above {least_db:g} dB",
        (
            "spread of mean SNRs [dB]", "unicast's airtime over a broadcast's", "predicted",
            "the rule is right [%]", "unicast's over the mixture's", "broadcast to [% of devices]",
        ),
        tuple(found),
        "Geometric means over cells; 95 % t interval of the logarithm over seeds. Above 1 unicast "
        "takes longer. The mixture sends to the better devices at once, to the others one by one.",
    )  # fmt: skip


def _ratio(logs: Sequence[float]) -> Estimate:
    x = t_interval(logs)
    return Estimate(*(float(np.exp(value)) for value in (x.value, x.low, x.high)))


def _worth_table(result: Result, n: int) -> Table:
    """Return the worth that arrives within each airtime."""
    found = []
    for airtime_s in AIRTIMES_S:
        for spread in SPREADS_DB:
            rows = rows_of(result, n, spread)
            more = _more_worth(result, n, spread, airtime_s)
            if more is None:
                continue
            worth = [row.values["worth"][f"{airtime_s:g}"] for row in rows]
            shares = (
                f"{t_interval([x[name] for x in worth]).scaled(100.0):.1f}"
                for name in ("unicast", "broadcast")
            )
            predicted = f"{100 * np.mean([x['predicted'] for x in worth]):.1f}"
            more_worth = f"{more.scaled(100.0):+.1f}"
            found.append((f"{airtime_s:g}", f"{spread:g}", *shares, predicted, more_worth))
    return Table(
        f"Worth that {n} devices have in the end [% of all files]",
        (
            "airtime [s]", "spread of mean SNRs [dB]", "unicast", "broadcast", "broadcast, planned",
            "broadcast − unicast [points]",
        ),
        tuple(found),
        "Mean ± 95 % t interval over seeds. Unicast is the Lagrangian scheduler.",
    )  # fmt: skip


STUDY = Study(
    name="broadcast",
    title="One file for many devices",
    question=(
        "When many devices want the same file, up to which spread of their links is it worth "
        "sending it once for all?"
    ),
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
