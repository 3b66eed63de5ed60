"""Many devices on one band: how much worth arrives by the deadlines, and how near to foresight?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from rankcast.band.bids import TunedIndex
from rankcast.band.cell import Cell, DemandConfig, Demands, draw_demands
from rankcast.band.clairvoyant import clairvoyant_bound
from rankcast.band.delivery import Delivery, Scheduler
from rankcast.band.lagrangian import Lagrangian
from rankcast.band.schedulers import EarliestDeadlineFirst, GreedyGain, ProportionalFair
from rankcast.link.processes import StaticSnr
from rankcast.records import FloatArray
from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    RunContext,
    Scale,
    Study,
    Table,
    Verdict,
)
from studies.report.statistics import Estimate, t_interval
from studies.shared_band.ladders import measured_ladders
from studies.shared_band.train import BOTH, DDIM, PPO, delivered, fingerprint, repeated

SEEDS = (3001, 3002, 3003, 3004, 3005)
"""Draws of demands and fading on which nothing was tuned."""
N_DEVICES = (10, 50)
HZ_PER_DEVICE = (800.0, 1800.0, 3600.0)
"""Bandwidth for each device, from a crowded band to one with room."""
N_CELLS = 20
REFERENCE, OURS, BOUND = "proportional fair", "Lagrangian", "bound"
SCHEDULERS: tuple[Scheduler, ...] = (
    EarliestDeadlineFirst(),
    ProportionalFair(),
    GreedyGain(),
    Lagrangian(),
)
AIRLLM = f"AirLLM ({BOTH})"
LEARNED = (TunedIndex().name, f"AirLLM ({DDIM})", f"AirLLM ({PPO})", AIRLLM)
"""They have rows of their own. The index is what the policies start from."""
MEASURED_ON = (10, 50)
"""Numbers of devices that the policies are measured on; they learned with 10."""
NAMES = (*(s.name for s in SCHEDULERS), *LEARNED)
MORE_THAN_REFERENCE, OF_THE_WAY = 0.20, 0.90  # what was hoped for


def jobs(scale: Scale) -> Sequence[Job]:
    """Return every band on every seed, and the ladders, which are kept beside the rows."""
    quick = scale == "quick"
    found = [Job("ladders", 0, {"kind": "ladders"})]
    for seed in SEEDS[:1] if quick else SEEDS:
        for n_devices in N_DEVICES[:1] if quick else N_DEVICES:
            common = {"n_devices": n_devices, "n_cells": 2 if quick else N_CELLS}
            for hz in HZ_PER_DEVICE:
                settings = {"kind": "cells", "hz_per_device": hz, **common}
                found.append(Job(f"{n_devices}-{hz:g}-{seed}", seed, settings))
            crowded = {"kind": "known", "hz_per_device": HZ_PER_DEVICE[0], **common}
            found.append(Job(f"{n_devices}-known-{seed}", seed, crowded))
            if n_devices in MEASURED_ON:
                learned = {"kind": "learned", "weights": fingerprint(), **common}
                found.append(Job(f"{n_devices}-airllm-{seed}", seed, learned))
    return found


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Deliver to the same cells under every scheduler."""
    del context
    ladders = measured_ladders()
    if job.settings["kind"] == "ladders":
        return {
            name: {"kilobytes": (x.prefix_bits / 8e3).tolist(), "worth": x.worth.tolist()}
            for name, x in ladders.items()
        }
    if job.settings["kind"] == "learned":
        return _learned(job)
    cell, demands, rates_bps = _episode(job, job.settings["hz_per_device"])
    carried_bits = rates_bps.mean() * cell.slot_s * cell.n_slots
    return {
        "load": float(demands.file_bits.sum(axis=1).mean() / carried_bits),
        "all": float(demands.worth[..., -1].sum(axis=1).mean()),
        BOUND: float(clairvoyant_bound(cell, demands, rates_bps).mean()),
        **{
            s.name: float(Delivery(cell, demands, rates_bps).run(s).sum(axis=1).mean())
            for s in SCHEDULERS
        },
    }


def _episode(job: Job, hz: float) -> tuple[Cell, Demands, FloatArray]:
    """Return band, demands and rates of a job: on one seed the same for every scheduler."""
    n_devices, rng = job.settings["n_devices"], np.random.default_rng(job.seed)
    cell, ladders = Cell(bandwidth_hz=n_devices * hz), tuple(measured_ladders().values())
    demands = draw_demands(cell, ladders, DemandConfig(n_devices), rng, job.settings["n_cells"])
    if job.settings["kind"] == "known":
        cell = replace(cell, fading=StaticSnr(0.0))
        window = demands.deadline - demands.arrival
        demands = replace(demands, arrival=np.zeros_like(window), deadline=window)
    return cell, demands, cell.rates_of(demands.mean_snr_db, rng)


def _learned(job: Job) -> dict[str, Any]:
    """Deliver to the cells of all bands of a seed under the learned schedulers.

    All bands go side by side: only bits over rate count, so bits are divided, not bands multiplied.
    """
    cell, demands, rates_bps = _episode(job, HZ_PER_DEVICE[0])
    scales = [HZ_PER_DEVICE[0] / hz for hz in HZ_PER_DEVICE]
    worth = delivered(cell, repeated(demands, scales), np.tile(rates_bps, (1, len(scales), 1)))
    bands = [f"{hz:g}" for hz in HZ_PER_DEVICE]
    return {
        name: dict(zip(bands, x.reshape(len(bands), -1).mean(axis=1).tolist(), strict=True))
        for name, x in worth.items()
    }


def present(result: Result, inputs: Mapping[str, Result]) -> Presentation:
    """Return what each scheduler delivers, beside the reference and the bound."""
    del inputs
    tables = [_table(result, n) for n in N_DEVICES]
    tables.append(_known_table(result))
    claims = [claim for n in N_DEVICES for claim in _claims(result, n)]
    return Presentation(tuple(claims), tuple(table for table in tables if table.rows))


def values_of(
    result: Result, n_devices: int, hz: float, name: str, kind: str = "cells"
) -> dict[int, float]:
    """Return a number of each seed; the learned schedulers have rows of their own."""
    if name in LEARNED:
        learned = result.select(kind="learned", n_devices=n_devices)
        return {row.job.seed: row.values[name][f"{hz:g}"] for row in learned}
    rows = result.select(kind=kind, n_devices=n_devices, hz_per_device=hz)
    return {row.job.seed: row.values[name] for row in rows}


def more_than(result: Result, n_devices: int, hz: float, name: str, other: str) -> Estimate | None:
    """Return by what share more arrives than under another scheduler, over seeds."""
    ours, theirs = (values_of(result, n_devices, hz, x) for x in (name, other))
    both = [s for s in ours if s in theirs]
    return t_interval([ours[s] / theirs[s] - 1.0 for s in both]) if both else None


def of_the_way(result: Result, n_devices: int, hz: float, name: str) -> Estimate | None:
    """Return the share of the way from the reference to the bound, over seeds."""
    ours, low, high = (values_of(result, n_devices, hz, x) for x in (name, REFERENCE, BOUND))
    both = [s for s in ours if s in low]
    return t_interval([(ours[s] - low[s]) / (high[s] - low[s]) for s in both]) if both else None


def _claims(result: Result, n_devices: int) -> list[Claim]:
    """Return whether the goals are met: on the most crowded band, and where it is nearest."""
    claims, seeds = [], _seeds(result, n_devices)
    more = more_than(result, n_devices, HZ_PER_DEVICE[0], OURS, REFERENCE)
    if more is not None:
        claim = (
            f"{n_devices} devices, most crowded band: the Lagrangian delivers at least "
            f"{MORE_THAN_REFERENCE:.0%} more than {REFERENCE}."
        )
        ours, interval = f"{100 * more.value:+.1f} %", more.scaled(100.0).interval
        claims.append(Claim(claim, "", ours, interval, _goal(more, MORE_THAN_REFERENCE), seeds))
    for name, says in ((OURS, "the Lagrangian"), (AIRLLM, "AirLLM")):
        ways = [of_the_way(result, n_devices, hz, name) for hz in HZ_PER_DEVICE]
        nearest = max((way for way in ways if way), key=lambda way: way.value, default=None)
        if nearest is not None:
            claim = (
                f"{n_devices} devices, the band where it is nearest: {says} goes at least "
                f"{OF_THE_WAY:.0%} of the way from {REFERENCE} to the bound."
            )
            ours, interval = f"{100 * nearest.value:.1f} %", nearest.scaled(100.0).interval
            claims.append(Claim(claim, "", ours, interval, _goal(nearest, OF_THE_WAY), seeds))
    rivals = ((OURS, "the Lagrangian"), (TunedIndex().name, "the index that it starts from"))
    for (rival, says), hz in product(rivals, HZ_PER_DEVICE):
        ahead = more_than(result, n_devices, hz, AIRLLM, rival)
        if ahead is not None:
            claim = (
                f"{n_devices} devices on {n_devices * hz / 1e3:g} kHz: AirLLM delivers more than "
                f"{says}."
            )
            ours, interval = f"{100 * ahead.value:+.2f} %", ahead.scaled(100.0).interval
            claims.append(Claim(claim, "", ours, interval, _ahead(ahead), seeds))
    return claims


def _seeds(result: Result, n_devices: int) -> tuple[int, ...]:
    rows = result.select(kind="cells", n_devices=n_devices)
    return tuple(sorted({row.job.seed for row in rows}))


def _goal(ours: Estimate, goal: float) -> Verdict:
    """Return whether the whole interval reaches a goal, or stays below it."""
    if ours.interval is None:
        return "not distinguishable"
    if ours.low >= goal:
        return "reproduced"
    return "not met" if ours.high < goal else "not distinguishable"


def _ahead(ours: Estimate) -> Verdict:
    """Return whether the whole interval is above nothing, or below."""
    if ours.interval is None or ours.low <= 0.0 <= ours.high:
        return "not distinguishable"
    return "reproduced" if ours.low > 0.0 else "opposite sign"


def _table(result: Result, n_devices: int) -> Table:
    """Return worth, difference to the reference and share of the way on each band."""
    rows, loads = [], []
    for hz in HZ_PER_DEVICE:
        bound, everything, load = (
            values_of(result, n_devices, hz, x) for x in (BOUND, "all", "load")
        )
        for name in NAMES:
            worth = values_of(result, n_devices, hz, name)
            more = more_than(result, n_devices, hz, name, REFERENCE)
            way = of_the_way(result, n_devices, hz, name)
            if more is None or way is None:
                continue
            share = t_interval([worth[s] / everything[s] for s in worth if s in everything]).scaled(
                100.0
            )
            itself = name == REFERENCE
            cells = (
                f"{n_devices * hz / 1e3:g}",
                f"{share:.1f}",
                "–" if itself else f"{more.scaled(100.0):+.1f}",
                "–" if itself else f"{way.scaled(100.0):.1f}",
            )
            rows.append((name, *cells))
        if bound:
            share = t_interval([bound[s] / everything[s] for s in bound]).scaled(100.0)
            more = more_than(result, n_devices, hz, BOUND, REFERENCE)
            assert more is not None  # there are rows
            cells = (f"{n_devices * hz / 1e3:g}", f"{share:.1f}", f"{more.scaled(100.0):+.1f}")
            rows.append((BOUND, *cells, "100"))
            loads.append(f"{np.mean(list(load.values())):.1f}")
    return Table(
        f"{n_devices} devices on one band",
        (
            "scheduler", "band [kHz]", "worth delivered [% of all files]",
            "more than proportional fair [%]", "of the way to the bound [%]",
        ),
        tuple(rows),
        f"Load (bits of whole files over bits carried at the mean rate): {', '.join(loads)}. "
        "Mean ± 95 % t interval over seeds.",
    )  # fmt: skip


def _known_table(result: Result) -> Table:
    """Return the share of the bound where nothing is left to foresee."""
    rows = []
    for scheduler in (s.name for s in SCHEDULERS):
        shares = []
        for n_devices in N_DEVICES:
            ours, bound = (
                values_of(result, n_devices, HZ_PER_DEVICE[0], name, "known")
                for name in (scheduler, BOUND)
            )
            found = t_interval([100.0 * ours[s] / bound[s] for s in ours]) if ours else None
            shares.append("–" if found is None else f"{found:.1f}")
        rows.append((scheduler, *shares))
    found = bool(result.select(kind="known"))
    return Table(
        "Nothing to foresee: share of the bound [%]",
        ("scheduler", *(f"{n} devices" for n in N_DEVICES)),
        tuple(rows) if found else (),
        f"No fading, all devices there from the start, {HZ_PER_DEVICE[0] / 1e3:g} kHz each.",
    )


STUDY = Study(
    name="shared_band",
    title="Many devices on one band",
    question=(
        "When many devices share a band, how much of what foresight could deliver by their "
        "deadlines does each scheduler deliver?"
    ),
    source="ours",
    jobs=jobs,
    run=run,
    present=present,
)
