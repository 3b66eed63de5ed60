"""`rankcast rehearse`: links and releases for a rehearsal, and what is told of it; no torch."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankcast.codec.container import Container
from rankcast.errors import ConfigError
from rankcast.files import replace_file
from rankcast.link.rate_models import parameters_of
from rankcast.records import FloatArray
from rankcast.run.containers import file_or_packed
from rankcast.run.link import LinkConfig
from rankcast.run.rehearse_options import Rehearse
from rankcast.run.signals import INTERRUPTED, stop_on_signal

if TYPE_CHECKING:
    from rankcast.delivery.rehearsal.results import Rehearsed
    from rankcast.delivery.rehearsal.stage import Links

_HELD = ("iid", "trace")
"""Processes whose values are not moved by a device's own mean."""
_LINKS, _RELEASES = 1, 2
"""Streams of chance that follow from the seed."""


def rehearse(command: Rehearse) -> int:
    """Rehearse, print what came out, and return the exit status.

    Raises:
        ConfigError: options that make no sense, or an extra that is missing.
        LinkError: an impossible link.
        DeliveryError: the server does not come up, or the store cannot be read.
        CodecError: a file that is no adapter.
    """
    _check(command)
    from rankcast.delivery.rehearsal.stage import Settings, Stage  # noqa: PLC0415 needs httpx2
    from rankcast.run.rehearsal_tables import LiveRehearsal, show  # noqa: PLC0415

    name, releases = releases_of(command)
    total = sum(len(chunk) for chunk in releases[0][0].chunks)
    links, bandwidth_hz = links_of(command, total)
    median_bps = float(np.median(links.rates_bps.mean(axis=0)))
    settings = Settings(
        adapter=name, duration_s=60.0 * command.minutes, deadline_s=command.deadline_s,
        every_s=command.every_s, assumed_bps=median_bps, resets=command.resets,
        restarts=command.restart_server, seed=command.seed,
    )  # fmt: skip
    with _folder(command) as folder, stop_on_signal("the transfers under way") as stopping:
        stage = Stage(settings, links, releases, folder)
        with LiveRehearsal(settings, hidden=command.json) as live:
            found = stage.run(stopping, live.look)
        interrupted = stopping()
    plain = {
        "settings": asdict(settings),
        "link": _described(command, links, bandwidth_hz),
        **found.to_plain(),
    }
    _write(command, plain)
    if command.json:
        print(json.dumps(plain, indent=2))  # noqa: T201
    else:
        show(found, plain, links)
    if interrupted:
        return INTERRUPTED
    return status_of(found)


def status_of(found: Rehearsed) -> int:
    """Return 1 if a device has no adapter and no excuse, or the server failed."""
    return (
        1 if found.unexcused or found.unended or (found.server and found.server.tracebacks) else 0
    )


def releases_of(command: Rehearse) -> tuple[str, tuple[Sequence[Container], Sequence[Container]]]:
    """Return a name, the files of the first release and those of the second.

    Raises:
        CodecError: no adapter there.
        DeliveryError: a store that lacks it, or a file without all its chunks.
    """
    from rankcast.delivery.rehearsal import releases as made  # noqa: PLC0415
    from rankcast.delivery.store import Store  # noqa: PLC0415

    seed = int(np.random.default_rng([command.seed, _RELEASES]).integers(2**31))
    name = command.name or "rehearsal"
    if command.store is not None:
        name, first = made.containers_of(Store(command.store), command.name)
    elif command.adapter is not None:
        first = [file_or_packed(command.adapter)]
    else:
        first = [made.made_adapter(seed)]
    first = [made.checked_release(container) for container in first]
    if command.next is not None:
        second = [made.checked_release(file_or_packed(command.next))]
    else:
        second = [made.next_adapter(container, seed + 1) for container in first]
    return name, (first, second)


def links_of(command: Rehearse, adapter_bytes: int) -> tuple[Links, float]:
    """Return the links, and the bandwidth of each device [Hz].

    Args:
        command: the options.
        adapter_bytes: of the first release, to find a bandwidth that fits.

    Raises:
        ConfigError: a rate model that needs a bandwidth, and none is given.
        LinkError: an impossible link.
    """
    from rankcast.delivery.edge.advice import RadioLink  # noqa: PLC0415 needs httpx2
    from rankcast.delivery.rehearsal.results import OVERHEAD_BYTES  # noqa: PLC0415
    from rankcast.delivery.rehearsal.stage import Links  # noqa: PLC0415

    measured = command.trace is not None and command.trace_kind == "throughput"
    config = _config(command)
    if command.bandwidth_hz is None and "bandwidth_hz" in parameters_of(command.rate_model):
        raise ConfigError(f"The rate model {command.rate_model} needs a --bandwidth-hz.")
    snr_db = _snr_db(command, config)
    efficiency = config.rates().spectral_efficiency(snr_db)
    bandwidth_hz = command.bandwidth_hz or config.bandwidth_hz
    if command.bandwidth_hz is None and not measured:
        median = float(np.median(efficiency.mean(axis=0)))
        bandwidth_hz = 8 * (adapter_bytes + OVERHEAD_BYTES) / (median * command.deadline_s)
    radio = None
    if command.radio:
        if measured:
            raise ConfigError(
                "A trace of throughput has no SNR that a modem could tell: no --radio."
            )
        radio = lambda db: RadioLink(db, bandwidth_hz, command.rate_model)  # noqa: E731
    rates = efficiency * bandwidth_hz
    return Links(rates, command.step_s, None if measured else snr_db, radio), bandwidth_hz


def _snr_db(command: Rehearse, config: LinkConfig) -> FloatArray:
    """Return (T, N) SNR [dB]: the process around a mean of each device's own."""
    rng = np.random.default_rng([command.seed, _LINKS])
    process = config.snr_process()
    state = process.start(rng, command.devices)
    n_steps = max(1, int(np.ceil(60.0 * command.minutes / command.step_s)))
    rows = [state.snr_db]
    for _ in range(n_steps - 1):
        state = process.advance(state, rng)
        rows.append(state.snr_db)
    found = np.stack(rows)
    if config.process in _HELD:
        return found
    low, high = command.snr_range_db
    return found + np.linspace(low, high, command.devices)


def _config(command: Rehearse) -> LinkConfig:
    low, high = command.snr_range_db
    given: dict[str, Any] = {
        key: getattr(command, key)
        for key in ("std_db", "correlation", "fading", "speed_m_s", "step_s", "rate_model",
                    "trace_kind", "trace_format", "time_column", "value_column", "time_format",
                    "value_scale", "deadline_s")
    }  # fmt: skip
    if command.trace is not None:
        given |= {"trace": str(command.trace), "process": "trace"}
    else:
        given["process"] = command.process
    if command.bandwidth_hz is not None:
        given["bandwidth_hz"] = command.bandwidth_hz
    return LinkConfig(snr_db=0.0, values_db=tuple(np.linspace(low, high, 5).tolist()), **given)


def _check(command: Rehearse) -> None:
    if command.devices < 1 or not command.minutes > 0:
        raise ConfigError("A rehearsal has at least one device and lasts longer than 0 minutes.")
    if command.adapter is not None and command.store is not None:
        raise ConfigError("Give a file or a --store, not both.")
    if command.process == "trace" and command.trace is None:
        raise ConfigError("The process trace needs a file: --trace FILE.")
    if command.work is not None and command.work.exists() and any(command.work.iterdir()):
        raise ConfigError(f"{command.work} is not empty; name a new folder with --work.")
    try:
        import fastapi  # noqa: F401, PLC0415 an extra
        import sqlalchemy  # noqa: F401, PLC0415 likewise
    except ImportError as error:
        raise ConfigError("A rehearsal needs a server: pip install 'rankcast[serve]'.") from error


@contextmanager
def _folder(command: Rehearse) -> Iterator[Path]:
    if command.work is not None:
        command.work.mkdir(parents=True, exist_ok=True)
        yield command.work
        return
    with tempfile.TemporaryDirectory(prefix="rankcast-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def _described(command: Rehearse, links: Links, bandwidth_hz: float) -> dict[str, Any]:
    return {
        "process": "trace" if command.trace is not None else command.process,
        "trace": None if command.trace is None else command.trace.name,
        "snr_range_db": list(command.snr_range_db),
        "rate_model": command.rate_model,
        "bandwidth_hz": bandwidth_hz,
        "step_s": command.step_s,
        "planned_with": "radio" if command.radio else "measured throughput",
        "median_bps": float(np.median(links.rates_bps.mean(axis=0))),
    }


def _write(command: Rehearse, plain: dict[str, Any]) -> None:
    if command.output is not None:
        command.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain, indent=2) + "\n"
        replace_file(command.output, lambda partial: partial.write_text(text, "utf-8"))
    if command.csv is not None:
        command.csv.parent.mkdir(parents=True, exist_ok=True)
        rows = [{**row, "failures": sum(row["failures"].values())} for row in plain["devices"]]
        replace_file(command.csv, lambda partial: _write_rows(partial, rows))


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
