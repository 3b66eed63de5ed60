"""What a `.rcast` file holds, as tables and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from rankcast.codec.container import Container, header_bytes
from rankcast.codec.header import Header
from rankcast.codec.packing import unpack
from rankcast.codec.stream import Decoder
from rankcast.codec.tensors import AdapterTensors

BITS_OF_FLOAT32 = 32


def rungs_of(container: Container) -> list[dict[str, Any]]:
    """Return what each chunk brings, by decoding it."""
    decoder = Decoder(container.header)
    sent = 8 * len(header_bytes(container.header))
    rungs = []
    for number, (chunk, entry) in enumerate(
        zip(container.chunks, container.header.chunks, strict=False)
    ):
        plan = decoder.add(chunk)
        sent += 8 * len(chunk)
        tensors = decoder.tensors()
        rungs.append(
            {
                "chunk": number,
                "bytes": len(chunk),
                "bits_so_far": sent,
                "step_exponent": plan.exponent,
                "mean_rank": float(tensors.ranks.mean()),
                "loss": entry.loss,
                "accuracy": entry.accuracy,
            }
        )
    return rungs


def described(container: Container, rungs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a file holds, for JSON."""
    header, tensors = container.header, unpack(container)
    return {
        "base_model": header.base.name,
        "base_fingerprint": header.base.fingerprint,
        "n_params": header.n_params,
        "header_bytes": len(header_bytes(header)),
        "task": dict(header.task),
        "ladder": rungs,
        "ranks": {
            p.name: f.rank for p, f in zip(tensors.projections, tensors.factors, strict=True)
        },
        "modules": {m.name: list(m.shape) for m in header.modules},
    }


def ladder_table(header: Header, rungs: list[dict[str, Any]]) -> Table:
    """Return the chunks with what each prefix costs and is worth."""
    table = Table(box=box.SIMPLE, title="Chunks: every prefix is an adapter", title_justify="left")
    for name in ("chunk", "bytes", "bits so far", "times smaller", "mean rank", "loss", "accuracy"):
        table.add_column(name, justify="right")
    plain = BITS_OF_FLOAT32 * header.n_params
    for rung in rungs:
        loss, accuracy = rung["loss"], rung["accuracy"]
        table.add_row(
            str(rung["chunk"]),
            f"{rung['bytes']:,}",
            f"{rung['bits_so_far']:,}",
            f"{plain / rung['bits_so_far']:.0f}",
            f"{rung['mean_rank']:.2f}",
            "–" if loss is None else f"{loss:.3f}",
            "–" if accuracy is None else f"{accuracy:.1%}",
        )
    return table


def rank_table(header: Header, tensors: AdapterTensors) -> Table:
    """Return ranks, layers down and kinds of projection across."""
    kinds = list(dict.fromkeys(p.kind for p in header.projections))
    table = Table(box=box.SIMPLE, title="Ranks, of those that were packed", title_justify="left")
    table.add_column("layer", justify="right")
    for kind in kinds:
        table.add_column(kind, justify="right")
    place = {(p.layer, p.kind): i for i, p in enumerate(header.projections)}
    ranks = tensors.ranks.tolist()
    for layer in sorted({p.layer for p in header.projections}):
        cells = []
        for kind in kinds:
            i = place.get((layer, kind))
            cells.append("" if i is None else f"{ranks[i]}/{header.ranks[i]}")
        table.add_row(str(layer), *cells)
    return table
