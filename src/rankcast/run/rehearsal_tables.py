"""What a person sees of a rehearsal: a table while it runs, and who had what by when; no torch."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rankcast.records import FloatArray

if TYPE_CHECKING:
    from rankcast.delivery.rehearsal.results import DeviceResult, Rehearsed
    from rankcast.delivery.rehearsal.stage import Links, Settings

_BARS = " ▁▂▃▄▅▆▇█"
_SPARK_COLUMNS = 6
_PER_S = 2


class LiveRehearsal:
    """A summary on standard error while the rehearsal runs.

    Args:
        settings: of the rehearsal.
        hidden: whether to draw nothing.
    """

    def __init__(self, settings: Settings, *, hidden: bool = False) -> None:
        self._settings = settings
        console = Console(stderr=True, highlight=False)
        self._live = None
        if not hidden and console.is_terminal:
            self._live = Live(console=console, refresh_per_second=_PER_S, transient=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        if self._live is not None:
            self._live.stop()

    def look(self, found: Rehearsed) -> None:
        """Show what there is so far."""
        if self._live is not None:
            words = f"{found.elapsed_s:.0f} of {self._settings.duration_s:.0f} s"
            self._live.update(Group(Text(words), summary_table(found.summary())))


def summary_table(summary: dict[str, Any]) -> Table:
    """Return counts and quantiles over devices."""
    table = Table(box=box.SIMPLE, show_header=False)
    n = summary["devices"]
    rows = [
        ("with an adapter", f"{summary['with_adapter']} of {n}"),
        ("on the newest version", f"{summary['newest_version']} of {n}"),
        ("with all chunks of the newest", f"{summary['whole']} of {n}"),
        ("first usable within the deadline", f"{summary['in_time']} of {n}"),
        ("whose last sync failed", str(summary["last_sync_failed"])),
        ("first usable after, median and p95", _pair(summary["first_usable_s"])),
        ("best of the first version after", _pair(summary["best_s"])),
        ("update after its publication", _pair(summary["updated_s"])),
        ("syncs that failed", _counts(summary["failures"])),
        ("connections reset", str(summary["resets"])),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def device_table(found: Rehearsed, rates_bps: FloatArray) -> Table:
    """Return a row for each device, the slowest link first."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    titles = ("", "link", "kbit/s", "first\ns", "best\ns", "in\ntime", "update\ns",
              "ver-\nsion", "chunks", "kbit", "loss", "failed")  # fmt: skip
    for title in titles:
        justify = "left" if title == "link" else "right"
        table.add_column(title, justify=justify, no_wrap=True)
    largest = float(rates_bps.max())
    for device in sorted(found.devices, key=lambda d: d.mean_bps):
        table.add_row(*_row(device, sparkline(rates_bps[:, device.device], largest)))
    return table


def sparkline(rates_bps: FloatArray, largest: float, columns: int = _SPARK_COLUMNS) -> str:
    """Return rates over time as a row of bars; their height goes with the root of the rate."""
    parts = np.array_split(rates_bps, min(columns, len(rates_bps)))
    heights = [float(np.sqrt(part.mean() / largest)) if largest > 0 else 0.0 for part in parts]
    return "".join(_BARS[min(round(h * (len(_BARS) - 1)), len(_BARS) - 1)] for h in heights)


def show(found: Rehearsed, plain: dict[str, Any], links: Links) -> None:
    """Print everything."""
    console, link = Console(highlight=False), plain["link"]
    console.print(device_table(found, links.rates_bps))
    console.print(summary_table(plain["summary"]))
    how = f"{link['rate_model']}, {link['bandwidth_hz'] / 1e3:,.1f} kHz for each device"
    if links.snr_db is None:
        how = "throughput as it was measured"
    console.print(
        f"Links: {link['process']}, {how}; median {link['median_bps'] / 1e3:,.1f} kbit/s. Devices "
        f"planned with {'their SNR' if link['planned_with'] == 'radio' else 'what they measured'}."
    )
    server = found.server
    if server is not None:
        answers = ", ".join(f"{n} × {status}" for status, n in sorted(server.answers.items()))
        console.print(
            f"Server: {answers}; {server.n_errors} errors, {server.tracebacks} tracebacks, started "
            f"{server.starts} times. This machine passed bytes on {1e3 * found.late_s:.1f} ms late "
            f"(p95)."
        )
    for device in found.devices:
        if device.unexcused:
            why = device.crash or device.last_failure or device.outcome
            console.print(
                f"Device {device.device} has no adapter, although its link carried "
                f"{device.mean_bps / 1e3:,.1f} kbit/s: {why}"
            )


def _row(device: DeviceResult, spark: str) -> tuple[str, ...]:
    chunks = f"{device.n_rungs}/{device.of}" if device.of else "–"
    return (
        str(device.device), spark, f"{device.mean_bps / 1e3:,.0f}", _number(device.first_usable_s),
        _number(device.best_s), "yes" if device.in_time else "no", _number(device.updated_s),
        str(device.version or "–"), chunks, f"{device.received_bits / 1e3:,.0f}",
        _number(device.loss, 3),
        str(sum(device.failures.values()) or ""),
    )  # fmt: skip


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _pair(found: dict[str, float | None]) -> str:
    return f"{_number(found['p50'])} s, {_number(found['p95'])} s"


def _counts(found: Any) -> str:
    return ", ".join(f"{n} × {kind}" for kind, n in sorted(found.items())) or "none"
