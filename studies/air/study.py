"""Compare Shannon's promise, the table's prediction, and what simulated 5G NR delivers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.link.bler import mutual_information
from rankcast.link.jakes import JakesSnr
from rankcast.link.nr import Carrier, base_graph, mcs_table
from rankcast.link.nr_link import NrLink
from rankcast.link.transport import AbstractChannel, Sender, air_times_s, slots
from studies.air.presentation import ADAPTER_BYTES, present
from studies.bler.fitting import Count, fit_waterfall
from studies.harness.spec import Job, RunContext, Scale, Study

if TYPE_CHECKING:
    from rankcast.link.transport import BlockChannel

BANDWIDTH_HZ = 5e6
SNRS_DB = (-5.0, 0.0, 5.0, 10.0, 15.0)
ADAPTER_SNRS_DB = (-3.0, 5.0, 12.0)
SPEED_M_S, CARRIER_HZ = 1.5, 3.5e9
N_SLOTS = 200
SEEDS, ADAPTER_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)
COMBINED = (4, 13, 20)
"""Schemes of table 1 whose retransmissions are counted."""


def jobs(scale: Scale) -> Sequence[Job]:
    """Return one job for each link and seed."""
    if scale == "quick":
        return [_delivered("none", 10.0, 0, 4), _adapter(12.0, 0, 600)]
    links = itertools.product(("none", "rayleigh"), SNRS_DB, SEEDS)
    every = [_delivered(*link, N_SLOTS) for link in links]
    every += [_adapter(*link) for link in itertools.product(ADAPTER_SNRS_DB, ADAPTER_SEEDS)]
    return [*every, *(Job(f"combining-{index}", 0, {"what": "combining", "scheme": index,
                      "n_blocks": 60}) for index in COMBINED)]  # fmt: skip


def _adapter(snr_db: float, seed: int, n_bytes: int = ADAPTER_BYTES) -> Job:
    settings = {"what": "adapter", "snr_db": snr_db, "bytes": n_bytes}
    return Job(f"adapter-{snr_db:g}dB-{seed}", seed, settings)


def _delivered(fading: str, snr_db: float, seed: int, n_slots: int) -> Job:
    settings = {"what": "delivered", "fading": fading, "snr_db": snr_db, "n_slots": n_slots}
    return Job(f"delivered-{fading}-{snr_db:g}dB-{seed}", seed, settings)


def run(job: Job, context: RunContext) -> Mapping[str, Any]:
    """Send, or count."""
    del context
    runs = {"delivered": _run_delivered, "adapter": _run_adapter, "combining": _run_combining}
    return runs[job.settings["what"]](job)


def _run_delivered(job: Job) -> Mapping[str, Any]:
    """Send through the same slots twice: by the table, and through the simulation."""
    from rankcast.phy.channel import SimulatedChannel, best_device  # noqa: PLC0415

    s, link = job.settings, NrLink(Carrier.for_bandwidth(BANDWIDTH_HZ))
    snrs_db = _snrs(s["fading"], s["snr_db"], link, job.seed, s["n_slots"])
    values: dict[str, Any] = {"snrs_db": [round(x, 3) for x in snrs_db]}
    simulated = SimulatedChannel(link, device=best_device())
    for name, channel in (("table", AbstractChannel(link)), ("simulated", simulated)):
        values[name] = _through(channel, link, snrs_db, job.seed)
    return values | {"slot_s": link.carrier.slot_s, "efficiency": link.carrier.efficiency}


def _snrs(fading: str, snr_db: float, link: NrLink, seed: int, n_slots: int) -> list[float]:
    if fading == "none":
        return [snr_db] * n_slots
    process = JakesSnr(snr_db, SPEED_M_S, CARRIER_HZ, link.carrier.slot_s)
    return list(itertools.islice(slots(process, np.random.default_rng(seed)), n_slots))


def _through(
    channel: BlockChannel, link: NrLink, snrs_db: Iterable[float], seed: int
) -> dict[str, float]:
    """Return the bits that a row of slots delivers; a lost block is sent anew, as by RLC."""
    rng = np.random.default_rng((seed, 1))
    sender, left = Sender(link, report_delay_slots=1), iter(snrs_db)
    data = rng.bytes(max(b.payload_bits for b in link.blocks) // 8 * len(list(snrs_db)))
    bits, first, failed, lost, wrong = 0, 0, 0, 0, 0
    for block_rows in _deliveries(sender, data, left, channel, rng):
        received, sent_before, blocks = block_rows
        wrong += received != data[sent_before : sent_before + len(received)]
        bits += 8 * len(received)
        first += len(blocks)
        failed += sum(len(b.snr_db) > 1 or not b.arrived for b in blocks)
        lost += sum(not b.arrived for b in blocks)
    return {"bits": bits, "blocks": first, "failed_first": failed, "lost": lost, "wrong": wrong}


def _deliveries(
    sender: Sender, data: bytes, left: Iterator[float], channel: BlockChannel,
    rng: np.random.Generator,
) -> Iterator[tuple[bytes, int, Any]]:  # fmt: skip
    done = 0
    while True:
        delivery = sender.send(data[done:], left, channel, rng)
        if not delivery.blocks:
            return
        yield delivery.received, done, delivery.blocks
        done += len(delivery.received)


def _run_adapter(job: Job) -> Mapping[str, Any]:
    """Send an adapter's worth of bytes over a link without fading."""
    from rankcast.phy.channel import SimulatedChannel, best_device  # noqa: PLC0415

    s, link = job.settings, NrLink(Carrier.for_bandwidth(BANDWIDTH_HZ))
    rng = np.random.default_rng(job.seed)
    data, sender = rng.bytes(s["bytes"]), Sender(link)
    channel = SimulatedChannel(link, device=best_device())
    delivery = sender.send(data, itertools.repeat(s["snr_db"]), channel, rng)
    predicted = air_times_s(
        sender, len(data), lambda: itertools.repeat(s["snr_db"]), np.random.default_rng(100)
    )
    shannon_bps = BANDWIDTH_HZ * math.log2(1 + 10 ** (s["snr_db"] / 10))
    return {
        "exact": delivery.received == data,
        "air_time_s": delivery.air_time_s,
        "foretold_s": float(np.nanmean(predicted)),  # the key of the committed rows
        "shannon_s": 8 * len(data) / shannon_bps,
        "blocks": len(delivery.blocks),
        "retransmissions": delivery.n_retransmissions,
    }


def _run_combining(job: Job) -> Mapping[str, Any]:
    """Find the SNR at which two transmissions of a block decode, and one."""
    import torch  # noqa: PLC0415

    from rankcast.phy.code_blocks import CodeBlocks, noise  # noqa: PLC0415

    s, mcs = job.settings, mcs_table("64qam")[job.settings["scheme"]]
    size, order = 2000, mcs_table("64qam")[job.settings["scheme"]].bits_per_symbol
    coded = order * math.ceil(size / mcs.code_rate / order)
    blocks = CodeBlocks(size, coded, order, base_graph(size, mcs.code_rate))
    generator = torch.Generator().manual_seed(job.seed)
    middle_db = 10 * math.log10(2**mcs.efficiency - 1) + 1.5
    values: dict[str, Any] = {}
    for versions, low_db in (((0,), middle_db - 1.0), ((0, 2), middle_db - 7.0)):
        counts = []
        for snr_db in np.arange(low_db, low_db + (2.0 if len(versions) == 1 else 5.0), 0.2):
            bits = torch.randint(0, 2, (s["n_blocks"], size), generator=generator).float()
            variance, soft = torch.tensor(10.0 ** (-float(snr_db) / 10.0)), []
            for version in versions:
                sent = blocks.symbols(bits, version)
                received = sent + noise(sent.shape, variance, generator)
                soft.append(blocks.llrs(received, variance))
            lost = int((blocks.decode(soft, versions) != bits).any(dim=1).sum())
            counts.append(Count(round(float(snr_db), 3), s["n_blocks"], lost))
        curve = fit_waterfall(size, counts)
        values[f"{len(versions)}"] = {
            "middle_db": curve.middle_db, "width_db": curve.width_db, "se_db": curve.middle_se_db,
            "counts": [[c.snr_db, c.n_blocks, c.n_lost] for c in counts],
        }  # fmt: skip
    one, two = (np.array(values[key]["middle_db"]) for key in ("1", "2"))
    ratio = mutual_information(order, one) / mutual_information(order, two)
    return values | {"combining_efficiency": float(ratio - 1.0)}


STUDY = Study(
    name="air",
    title="What Shannon promised, what NR delivered",
    source="ours",
    question="How much of Shannon's rate does simulated 5G NR deliver, and does the table know?",
    jobs=jobs,
    run=run,
    present=present,
)
