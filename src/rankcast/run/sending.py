"""`rankcast send`: a coded adapter over a simulated air interface."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from rankcast.codec.container import Container, read_container
from rankcast.errors import CodecError
from rankcast.files import replace_file
from rankcast.link.abstraction import NrLink
from rankcast.link.nr import Carrier
from rankcast.link.transport import BlockReport, Delivery, Sender, air_times_s
from rankcast.run.air_link import channel_of, check_snr, shannon_efficiency, snrs_db
from rankcast.run.air_options import Send
from rankcast.run.containers import read_file
from rankcast.run.contents import BITS_OF_FLOAT32

_FORETOLD_RUNS = 100


@dataclass(frozen=True)
class Outcome:
    """What `rankcast send` found.

    Attributes:
        delivery: of the bytes.
        arrived: what of the file can be decoded; None if not even its header arrived.
        whole: what was sent.
        foretold_s: mean air time of the abstraction for the whole file [s]; NaN if it never
            gets through.
        shannon_s: air time at Shannon's rate over this bandwidth, without fading [s].
    """

    delivery: Delivery
    arrived: Container | None
    whole: Container
    foretold_s: float
    shannon_s: float


def send(command: Send) -> int:
    """Send a file, print what arrived, and return the exit status: 0 if something can be used."""
    outcome = sent(command)
    if command.output is not None and outcome.arrived is not None:
        kept = outcome.arrived.to_bytes()
        command.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(command.output, lambda partial: partial.write_bytes(kept))
    if command.json:
        print(json.dumps(_plain(outcome), indent=2))  # noqa: T201
    else:
        _say(command, outcome)
    return 0 if outcome.arrived is not None and outcome.arrived.chunks else 1


def sent(command: Send) -> Outcome:
    """Send a file.

    Raises:
        ConfigError: a delay profile without `--link nr`, or no Sionna.
        LinkError: a link that cannot be.
        CodecError: no `.rcast` file.
    """
    whole = read_file(command.file)
    data = whole.to_bytes()
    check_snr(command)
    link = NrLink(
        Carrier.for_bandwidth(command.bandwidth_hz), command.table, command.impl_loss_db,
        command.max_transmissions,
    )  # fmt: skip
    sender = Sender(link, report_delay_slots=command.report_delay_slots)
    channel = channel_of(command, link)
    rng = np.random.default_rng(command.seed)
    of_fading, of_channel, of_forecast = rng.spawn(3)
    deadline_s = math.inf if command.deadline_s is None else command.deadline_s
    with _progress(quiet=command.json) as bar:
        task = bar.add_task("on the air", total=len(data), again=0)

        def on_block(received: int, block: BlockReport) -> None:
            again = bar.tasks[0].fields["again"] + len(block.snr_db) - 1
            bar.update(task, completed=received, again=again)

        delivery = sender.send(
            data, snrs_db(command, link, of_fading), channel, of_channel,
            deadline_s=deadline_s, progress=on_block,
        )  # fmt: skip
    foretold = np.array([math.nan])
    if command.delay_profile == "flat":  # the table knows one SNR a slot
        foretold = air_times_s(
            sender, len(data), lambda: snrs_db(command, link, of_forecast), of_forecast,
            _FORETOLD_RUNS,
        )  # fmt: skip
    return Outcome(
        delivery,
        _decodable(delivery.received),
        whole,
        float(np.nanmean(foretold)) if np.isfinite(foretold).any() else math.nan,
        8 * len(data) / (shannon_efficiency(command, link) * command.bandwidth_hz),
    )


def _decodable(received: bytes) -> Container | None:
    try:
        return read_container(received, allow_prefix=True)
    except CodecError:
        return None  # not even the header is whole


def _progress(*, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[again]} sent again"),
        console=Console(stderr=True),
        disable=quiet,
    )


def _plain(outcome: Outcome) -> dict[str, Any]:
    delivery, arrived = outcome.delivery, outcome.arrived
    last = arrived.header.chunks[len(arrived.chunks) - 1] if arrived and arrived.chunks else None
    return {
        "sent_bytes": delivery.sent_bytes,
        "received_bytes": len(delivery.received),
        "complete": delivery.complete,
        "air_time_s": delivery.air_time_s,
        "foretold_air_time_s": None if math.isnan(outcome.foretold_s) else outcome.foretold_s,
        "shannon_air_time_s": outcome.shannon_s,
        "blocks": len(delivery.blocks),
        "retransmissions": delivery.n_retransmissions,
        "lost_blocks": sum(not block.arrived for block in delivery.blocks),
        "schemes": [block.scheme for block in delivery.blocks],
        "chunks": 0 if arrived is None else len(arrived.chunks),
        "chunks_sent": len(outcome.whole.chunks),
        "loss": None if last is None else last.loss,
        "accuracy": None if last is None else last.accuracy,
    }


def _say(command: Send, outcome: Outcome) -> None:
    found, delivery = _plain(outcome), outcome.delivery
    fate = "all of it" if delivery.complete else f"{len(delivery.received):,} bytes of it"
    lines = [
        (
            f"{command.file}: {delivery.sent_bytes:,} bytes, {fate} received in "
            f"{1e3 * delivery.air_time_s:,.1f} ms on a simulated air interface "
            f"({delivery.throughput_bps / 1e6:.3f} Mbit/s)."
        ),
        (
            f"{found['blocks']} transport blocks, {found['retransmissions']} sent again, "
            f"{found['lost_blocks']} lost; schemes {_range(found['schemes'])} of {command.table}."
        ),
        (
            f"For the whole file: {_foretold(command, outcome.foretold_s)}Shannon promises "
            f"{_ms(outcome.shannon_s)}; float32 would have "
            f"{BITS_OF_FLOAT32 * outcome.whole.header.n_params / 8:,.0f} bytes."
        ),
        _use(found),
    ]
    if command.output is not None and outcome.arrived is not None:
        lines.append(f"Written: {command.output}. See rankcast info {command.output} --prefix")
    Console(highlight=False, soft_wrap=True).print("\n".join(lines))


def _use(found: dict[str, Any]) -> str:
    if not found["chunks"]:
        return (
            "Nothing can be decoded: the first chunk is not complete. Give it more time or "
            "bandwidth, or pack fewer bits (rankcast pack --budget-bits)."
        )
    expected = ""
    if found["accuracy"] is not None:
        expected = f", expected accuracy {found['accuracy']:.1%}"
    elif found["loss"] is not None:
        expected = f", expected loss {found['loss']:.3f}"
    return f"Usable: {found['chunks']} of {found['chunks_sent']} chunks, an adapter{expected}."


def _foretold(command: Send, seconds: float) -> str:
    if command.delay_profile != "flat":
        return ""
    if math.isnan(seconds):
        return "the table foretells that it never arrives, "
    return f"the table foretells {_ms(seconds)}, "


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def _range(schemes: list[int]) -> str:
    return f"{min(schemes)} to {max(schemes)}" if schemes else "none"
