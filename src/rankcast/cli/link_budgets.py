"""`rankcast link budgets`: what known links carry, and whether a file fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from rankcast.cli.common import print_json

if TYPE_CHECKING:
    from rankcast.codec.container import Container


@dataclass(frozen=True, kw_only=True)
class LinkBudgets:
    """Show how many bytes known links carry in one delivery, and what of a file arrives.

    rankcast link budgets

    rankcast link budgets a.rcast --snr-db -5 5 15

    Where a link carries more than the whole file, there is nothing to choose.
    """

    file: tyro.conf.Positional[Path | None] = None
    """A coded adapter (.rcast), to see which of its prefixes arrive."""
    snr_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)
    """Received Es/N0 [dB]."""
    json: bool = False
    """Print the budgets as JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Print a row for each link."""
        from rankcast.codec.container import load
        from rankcast.link.known import KNOWN

        file = None if self.file is None else load(self.file)
        rows = {
            name: [round(float(n), 1) for n in link.bytes_at(self.snr_db)]
            for name, link in KNOWN.items()
        }
        if self.json:
            print_json(
                [
                    {
                        "link": name, "what": link.what, "source": link.source,
                        "bytes": dict(zip(map(str, self.snr_db), rows[name], strict=True)),
                        **({} if file is None else {"chunks": _arriving(file, rows[name])}),
                    }
                    for name, link in KNOWN.items()
                ]
            )  # fmt: skip
            return 0
        self._print(rows, file)
        return 0

    def _print(self, rows: dict[str, list[float]], file: Container | None) -> None:
        from rankcast.cli.console import number_table, stdout

        table = number_table("link", *(f"{snr:g} dB" for snr in self.snr_db), left="link")
        for name, carried in rows.items():
            cells: list[str] = [f"{n:,.0f}" for n in carried]
            if file is not None:
                arriving = zip(cells, _arriving(file, carried), strict=True)
                cells = [f"{cell} ({_said(n, file)})" for cell, n in arriving]
            table.add_row(name, *cells)
        stdout().print(table)
        if file is None:
            stdout().print("Bytes of one delivery. With a file: how many of its chunks arrive.")
        else:
            whole = f"{file.ladder[-1].n_bytes:,} bytes in {len(file.chunks)} chunks"
            stdout().print(f"Bytes of one delivery (chunks that arrive of the file: {whole}).")


def _arriving(file: Container, carried: Sequence[float]) -> list[int]:
    """Return how many chunks of a file arrive within each number of bytes."""
    return [sum(prefix.n_bytes <= n for prefix in file.ladder) for n in carried]


def _said(n_chunks: int, file: Container) -> Any:
    return "all" if n_chunks == len(file.chunks) else n_chunks
