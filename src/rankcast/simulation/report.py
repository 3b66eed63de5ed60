"""Tables of a simulation: a summary while it runs, and the devices' results after it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rankcast.records import FloatArray
from rankcast.simulation.fleet import FleetResult
from rankcast.simulation.links import Links
from rankcast.simulation.results import DeviceResult, SimulationResult
from rankcast.simulation.sums import FleetSums

_BARS = " ▁▂▃▄▅▆▇█"
_SPARK_COLUMNS = 6
_PER_S = 2
_TITLES = ("", "link", "kbit/s", "first\ns", "best\ns", "in\ntime", "update\ns", "ver-\nsion",
           "chunks", "kbit", "loss", "fails")  # fmt: skip


class LiveSummary:
    """A summary on standard error while the simulation runs, if that is a terminal.

    Args:
        duration_s: of the simulation [s].
        hidden: whether to draw nothing.
    """

    def __init__(self, duration_s: float, *, hidden: bool = False) -> None:
        console = Console(stderr=True, highlight=False)
        self._duration_s, self._live = duration_s, None
        if not hidden and console.is_terminal:
            self._live = Live(console=console, refresh_per_second=_PER_S, transient=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing."""
        if self._live is not None:
            self._live.stop()

    def update(self, result: SimulationResult) -> None:
        """Show what there is so far."""
        if self._live is not None:
            words = f"{result.elapsed_s:.0f} of {self._duration_s:.0f} s"
            self._live.update(Group(Text(words), _summary_table(result.summary())))


def print_report(result: SimulationResult, links: Links, words: str) -> None:
    """Print everything.

    Args:
        result: of the simulation.
        links: of the devices.
        words: what the links are.
    """
    console = Console(highlight=False)
    console.print(_device_table(result, links.rates_bps))
    console.print(_summary_table(result.summary()))
    console.print(f"Links: {words}; median {links.median_bps / 1e3:,.1f} kbit/s.")
    known = "what they measured" if links.radio is None else "their SNR"
    console.print(f"Devices planned with {known}.")
    server = result.server
    if server is not None:
        answers = ", ".join(f"{n} × {status}" for status, n in sorted(server.answers.items()))
        console.print(
            f"Server: {answers}; {server.n_errors} errors, {server.tracebacks} tracebacks, started "
            f"{server.starts} times. This machine passed bytes on {1e3 * result.late_s:.1f} ms "
            f"late (p95)."
        )
    for device in result.devices:
        if device.unexcused:
            why = device.crash or device.last_failure or device.outcome
            console.print(
                f"Device {device.device} has no adapter, although its link carried "
                f"{device.mean_bps / 1e3:,.1f} kbit/s: {why}"
            )


def csv_of(result: SimulationResult) -> str:
    """Return a row for each device, as CSV."""
    text = io.StringIO()
    rows = [device.to_plain() for device in result.devices]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({**row, "failures": sum(row["failures"].values())} for row in rows)
    return text.getvalue()


class FleetProgress:
    """A bar on standard error while devices are computed, if that is a terminal.

    Args:
        n_devices: of the fleet.
        hidden: whether to draw nothing.
    """

    def __init__(self, n_devices: int, *, hidden: bool = False) -> None:
        console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("devices"), BarColumn(bar_width=20), MofNCompleteColumn(),
            TimeRemainingColumn(), console=console, transient=True,
            disable=hidden or not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=n_devices)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop drawing."""
        self._bar.stop()

    def advance(self, n_devices: int) -> None:
        """Move by some devices."""
        self._bar.advance(self._task, n_devices)


def print_fleet(fleet: FleetSums, links: Links, words: str) -> None:
    """Print what came out of simulated time.

    Args:
        fleet: sums over its devices.
        links: of some of the devices.
        words: what the links are.
    """
    console = Console(highlight=False)
    summary = fleet.summary()
    console.print(_summary_table({**summary, "resets": "none, in simulated time"}))
    plans, sent = summary["plans_per_s"], summary["sent_bps"]
    console.print(
        f"The server was asked for {plans['mean']:,.0f} plans/s on average and "
        f"{plans['peak']:,.0f} in the busiest second, and sent {sent['mean'] / 1e6:,.1f} and "
        f"{sent['peak'] / 1e6:,.1f} Mbit/s."
    )
    console.print(f"Links: {words}; median {links.median_bps / 1e3:,.1f} kbit/s.")


FLEET_COLUMNS = (
    "device", "first_usable_s", "best_s", "in_time", "updated_s", "version", "n_rungs",
    "received_bits", "link_bits", "n_syncs", "failures",
)  # fmt: skip


def rows_of_fleet(fleet: FleetResult, first: int = 0) -> str:
    """Return a row for each device, as CSV without a head; empty fields for what never happened.

    Args:
        fleet: some devices.
        first: number of the first.
    """
    d, text = fleet.devices, io.StringIO()
    columns = (
        np.arange(first, first + d.n), d.first_s, d.best_s, fleet.in_time, d.updated_s, d.version,
        d.n_chunks, d.received_bits.astype(np.int64), d.link_bits.astype(np.int64), d.n_syncs,
        d.n_late,
    )  # fmt: skip
    writer = csv.writer(text)
    for row in zip(*(values.tolist() for values in columns), strict=True):
        writer.writerow("" if value != value else value for value in row)  # noqa: PLR0124 NaN
    return text.getvalue()


def sparkline(rates_bps: FloatArray, largest: float, columns: int = _SPARK_COLUMNS) -> str:
    """Return rates over time as a row of bars; their height goes with the root of the rate."""
    parts = np.array_split(rates_bps, min(columns, len(rates_bps)))
    heights = [float(np.sqrt(part.mean() / largest)) if largest > 0 else 0.0 for part in parts]
    return "".join(_BARS[min(round(h * (len(_BARS) - 1)), len(_BARS) - 1)] for h in heights)


def _summary_table(summary: Mapping[str, Any]) -> Table:
    """Return counts and quantiles over devices."""
    table = Table(box=box.SIMPLE, show_header=False)
    n = summary["devices"]
    failures = sorted(summary["failures"].items())
    rows = [
        ("with an adapter", f"{summary['with_adapter']} of {n}"),
        ("on the newest version", f"{summary['newest_version']} of {n}"),
        ("with all chunks of the newest", f"{summary['whole']} of {n}"),
        ("first usable within the deadline", f"{summary['in_time']} of {n}"),
        ("whose last sync failed", str(summary["last_sync_failed"])),
        ("first usable after, median and p95", _seconds(summary["first_usable_s"])),
        ("best of the first version after", _seconds(summary["best_s"])),
        ("update after its publication", _seconds(summary["updated_s"])),
        ("syncs that failed", ", ".join(f"{n} × {kind}" for kind, n in failures) or "none"),
        ("connections reset", str(summary["resets"])),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _device_table(result: SimulationResult, rates_bps: FloatArray) -> Table:
    """Return a row for each device, the slowest link first."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for title in _TITLES:
        justify = "left" if title == "link" else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    largest = float(rates_bps.max())
    for device in sorted(result.devices, key=lambda d: d.mean_bps):
        table.add_row(*_device_row(device, sparkline(rates_bps[:, device.device], largest)))
    return table


def _device_row(device: DeviceResult, spark: str) -> tuple[str, ...]:
    chunks = f"{device.n_chunks}/{device.n_file_chunks}" if device.n_file_chunks else "–"
    return (
        str(device.device), spark, f"{device.mean_bps / 1e3:,.0f}", _number(device.first_usable_s),
        _number(device.best_s), "yes" if device.in_time else "no", _number(device.updated_s),
        str(device.version or "–"), chunks, f"{device.received_bits / 1e3:,.0f}",
        _number(device.loss, 3),
        str(sum(device.failures.values()) or ""),
    )  # fmt: skip


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _seconds(quantiles: Mapping[str, float | None]) -> str:
    return f"{_number(quantiles['p50'])} s, {_number(quantiles['p95'])} s"
