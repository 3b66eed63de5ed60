"""`rankcast info`: the ladder and the ranks of a `.rcast` file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from rankcast.cli.common import print_json, why_general

if TYPE_CHECKING:
    from rich.table import Table

    from rankcast.codec.chunks import ChunkPlan
    from rankcast.codec.container import Container
    from rankcast.records import IntArray


@dataclass(frozen=True)
class Info:
    """Show what a file holds: its ranks, and the ladder of its prefixes.

    rankcast info demo.rcast
    """

    file: tyro.conf.Positional[Path]
    """File that rankcast pack wrote."""
    prefix: bool = False
    """Accept a file that was cut short or damaged, and show the chunks before that."""
    json: bool = False
    """Print JSON."""

    def run(self, argv: Sequence[str]) -> int:
        """Decode every prefix and print the tables."""
        from rankcast.codec.container import load

        container = load(self.file, prefix=self.prefix)
        header, (plans, of_prefixes) = container.header, container.ranks()
        ladder = _ladder(container, plans, of_prefixes)
        ranks = of_prefixes[-1].tolist() if len(of_prefixes) else [0] * len(header.projections)
        if self.json:
            print_json(_described(container, ladder, ranks))
            return 0
        from rankcast.cli.console import stdout

        console = stdout()
        console.print(
            f"{self.file}: adapter of {header.base.name or 'a model that is not named'}, "
            f"{header.n_params:,} numbers, {len(container.chunks)} of {len(header.chunks)} chunks. "
            f"Weights are rounded: rankcast pack says what that loses."
        )
        reason = why_general(header)
        if reason is not None:
            console.print(
                f"{header.config['peft_type']} in general form because {reason}: "
                f"{len(header.modules)} tensors."
            )
        console.print(_ladder_table(container, ladder))
        if header.projections:
            console.print(_rank_table(container, ranks))
        return 0


def _ladder(
    container: Container, plans: Sequence[ChunkPlan], ranks: IntArray
) -> list[dict[str, Any]]:
    """Return what each chunk brings and each prefix is."""
    return [
        {
            "chunk": prefix.n_chunks - 1,
            "bytes": len(chunk),
            "bits_so_far": 8 * prefix.n_bytes,
            "step_exponent": plan.exponent,
            "mean_rank": float(of_prefix.mean()) if of_prefix.size else None,
            "loss": prefix.loss,
            "accuracy": prefix.accuracy,
        }
        for chunk, prefix, plan, of_prefix in zip(
            container.chunks, container.ladder, plans, ranks, strict=True
        )
    ]


def _described(
    container: Container, ladder: list[dict[str, Any]], ranks: list[int]
) -> dict[str, Any]:
    """Return everything for machines."""
    from rankcast.codec.header import measure_of

    header = container.header
    chunk_bytes = sum(map(len, container.chunks))
    reason = why_general(header)
    return {
        "base_model": header.base.name,
        "base_fingerprint": header.base.fingerprint,
        "form": "low-rank" if reason is None else "general",
        "general_because": reason,
        "n_params": header.n_params,
        "header_bytes": container.n_bits // 8 - chunk_bytes,
        "task": dict(header.task),
        "measure": measure_of(header.task),
        "ladder": ladder,
        "ranks": {p.name: r for p, r in zip(header.projections, ranks, strict=True)},
        "modules": {m.name: list(m.shape) for m in header.modules},
    }


def _ladder_table(container: Container, ladder: list[dict[str, Any]]) -> Table:
    """Return the chunks with what each prefix costs and is worth."""
    from rich import box
    from rich.table import Table

    from rankcast.codec.header import measure_of

    measure = measure_of(container.header.task)
    table = Table(box=box.SIMPLE, title="Chunks: every prefix is an adapter", title_justify="left")
    for name in (
        "chunk",
        "bytes",
        "bits so far",
        "times smaller",
        "mean rank",
        measure,
        "accuracy",
    ):
        table.add_column(name, justify="right")
    for row in ladder:
        loss, accuracy = row["loss"], row["accuracy"]
        table.add_row(
            str(row["chunk"]),
            f"{row['bytes']:,}",
            f"{row['bits_so_far']:,}",
            f"{container.header.float32_bits / row['bits_so_far']:.3g}",
            "–" if row["mean_rank"] is None else f"{row['mean_rank']:.2f}",
            "–" if loss is None else f"{loss:.3f}",
            "–" if accuracy is None else f"{accuracy:.1%}",
        )
    return table


def _rank_table(container: Container, ranks: list[int]) -> Table:
    """Return ranks, layers down and kinds of projection across."""
    from rich import box
    from rich.table import Table

    header = container.header
    kinds = list(dict.fromkeys(p.kind for p in header.projections))
    table = Table(box=box.SIMPLE, title="Ranks, of those that were packed", title_justify="left")
    table.add_column("layer", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right")
    packed: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    for p, rank, most in zip(header.projections, ranks, header.ranks, strict=True):
        packed[p.layer, p.kind].append((rank, most))
    for layer in sorted({p.layer for p in header.projections}):
        cells = (packed.get((layer, kind), ()) for kind in kinds)  # experts share one
        row = ("/".join(str(sum(n)) for n in zip(*cell, strict=True)) for cell in cells)
        table.add_row(str(layer), *row)
    return table
