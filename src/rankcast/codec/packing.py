"""From an adapter's folder to a container and back: what `rankcast pack` and `unpack` do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankcast.codec.container import Container, entry_of, header_bytes
from rankcast.codec.header import BaseModel, Header, ModuleShape
from rankcast.codec.ladder import (
    block_offsets,
    exponent_of_quality,
    finest_within,
    ladder_to,
)
from rankcast.codec.lora_files import is_peft_directory, read_peft
from rankcast.codec.native_files import is_native_directory, read_native
from rankcast.codec.stream import Decoder, encode
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError
from rankcast.records import FloatArray

Quality = Literal["fine", "good", "small"]
RELATIVE_STEPS: Mapping[Quality, float] = {"fine": 0.5, "good": 1.0, "small": 2.0}
"""Step of the last rung as a multiple of the weights' root mean square."""


@dataclass(frozen=True, eq=False)
class Source:
    """An adapter that can be packed.

    Attributes:
        tensors: its weights.
        base: the model that it adapts, as far as the folder says.
        task: what exporters need to know: `task_type`.
        offsets: what is added to the step exponent of each projection; empty for nothing. See
            `ladder.offsets_of_sensitivity`.
        exponent: of the step to which it was trained to be rounded; None if it was not.
        gains: (N, R) loss that each component was found to remove; None if nobody looked.
    """

    tensors: AdapterTensors
    base: BaseModel
    task: Mapping[str, Any]
    offsets: tuple[int, ...] = ()
    exponent: int | None = None
    gains: FloatArray | None = None


def read_adapter(path: str | os.PathLike[str]) -> Source:
    """Return the adapter in a run's folder, in a folder of `save_adapter`, or in one of PEFT's.

    Raises:
        CodecError: no adapter there, or one that cannot be carried.
    """
    folder = Path(path)
    for candidate in (folder, folder / "adapter"):
        if is_native_directory(candidate):
            tensors, raw = read_native(candidate)
            base = BaseModel(raw.get("base_model"), raw.get("base_fingerprint"))
            offsets, exponent = _coding(raw, candidate)
            gains = None if raw.get("gains") is None else np.array(raw["gains"], dtype=np.float64)
            return Source(tensors, base, _task(raw), offsets, exponent, gains)
        if is_peft_directory(candidate):
            tensors, raw = read_peft(candidate)
            return Source(tensors, BaseModel(raw.get("base_model_name_or_path")), _task(raw))
    raise CodecError(
        f"There is no adapter in {folder}: neither a run of rankcast (adapter/) nor an adapter "
        f"that PEFT saved (adapter_config.json)."
    )


def pack(source: Source, exponent: int, n_rungs: int | None = None, n_parts: int = 3) -> Container:
    """Return an adapter as a container whose last chunk reaches a step exponent.

    Args:
        source: what to pack.
        exponent: of the finest step; see `exponent_for`.
        n_rungs: precisions, each three times finer than the one before; None for as many as say
            something.
        n_parts: chunks of each rung.

    Raises:
        CodecError: NaN or infinite weights.
    """
    tensors = source.tensors
    ladder = ladder_to(tensors, exponent, n_rungs, n_parts, offsets=source.offsets)
    chunks = encode(tensors, ladder, block_offsets(tensors, source.offsets))
    header = Header(
        base=_published(source.base),
        projections=tensors.projections,
        ranks=tuple(tensors.ranks.tolist()),
        modules=tuple(
            ModuleShape(name, np.shape(values), tensors.carriage[name])
            for name, values in tensors.modules.items()
        ),
        chunks=tuple(entry_of(chunk) for chunk in chunks),
        task=source.task,
    )
    return Container(header, tuple(chunks))


def pack_within(
    source: Source, budget_bits: float, n_rungs: int | None = None, n_parts: int = 3
) -> Container:
    """Return an adapter at the finest steps whose whole file fits a budget.

    The finest common step that fits, and for as many projections as fit one step finer, those whose
    components have the most energy first.

    Raises:
        InfeasibleDeadlineError: not even the coarsest step fits.
        CodecError: as `pack`.
    """

    def size_bits(exponent: int) -> int:
        return 8 * len(pack(source, exponent, n_rungs, n_parts).to_bytes())

    coarsest = exponent_of_quality(source.tensors, 30.0)
    finest = exponent_of_quality(source.tensors, 1e-3)
    exponent = finest_within(budget_bits, size_bits, finest, coarsest)
    order = _by_energy(source.tensors)

    def filled(n_finer: int) -> Container:
        offsets = list(source.offsets or (0,) * len(order))
        for i in order[:n_finer]:
            offsets[i] -= 1
        return pack(replace(source, offsets=tuple(offsets)), exponent, n_rungs, n_parts)

    fits, more = filled(0), len(order)
    low = 0
    while low < more:
        middle = (low + more + 1) // 2
        tried = filled(middle)
        if 8 * len(tried.to_bytes()) <= budget_bits:
            fits, low = tried, middle
        else:
            more = middle - 1
    return fits


def _by_energy(tensors: AdapterTensors) -> list[int]:
    """Return projections by the squared norm of their factors, greatest first."""
    energy = [float(np.square(f.left).sum() + np.square(f.right).sum()) for f in tensors.factors]
    return sorted(range(len(energy)), key=lambda i: -energy[i])


def pack_at(
    source: Source, quality: Quality, n_rungs: int | None = None, n_parts: int = 3
) -> Container:
    """Return an adapter at a step that suits its weights.

    Raises:
        CodecError: as `pack`, or an adapter of zeros.
    """
    exponent = exponent_of_quality(source.tensors, RELATIVE_STEPS[quality])
    return pack(source, exponent, n_rungs, n_parts)


def unpack(container: Container, n_chunks: int | None = None) -> AdapterTensors:
    """Return the adapter of the first chunks; of all that are there if None.

    Raises:
        CodecError: damaged chunks, or more chunks asked for than there are.
    """
    there = len(container.chunks)
    wanted = there if n_chunks is None else n_chunks
    if not 0 <= wanted <= there:
        raise CodecError(f"The file has {there} complete chunks, so it cannot give {n_chunks}.")
    decoder = Decoder(container.header)
    for chunk in container.chunks[:wanted]:
        decoder.add(chunk)
    return decoder.tensors()


def chunks_within(container: Container, budget_bits: float) -> int:
    """Return how many chunks arrive with the header within a budget."""
    sent = 8 * len(header_bytes(container.header))
    for n, entry in enumerate(container.header.chunks):
        sent += 8 * entry.n_bytes
        if sent > budget_bits:
            return n
    return len(container.header.chunks)


def _published(base: BaseModel) -> BaseModel:
    """Return the base model by a name that says nothing of this machine's folders."""
    if base.name is None or not Path(base.name).is_absolute():
        return base
    return replace(base, name=Path(base.name).name)


def _coding(raw: Mapping[str, Any], folder: Path) -> tuple[tuple[int, ...], int | None]:
    """Return the step offsets and the exponent that a description asks for, if it does.

    Raises:
        CodecError: something else stands there.
    """
    coding = raw.get("coding")
    if coding is None:
        return (), None
    try:
        return tuple(int(x) for x in coding["offsets"]), int(coding["exponent"])
    except (KeyError, TypeError, ValueError) as error:
        raise CodecError(
            f"{folder} describes its coding in a way not known ({error!r})."
        ) from error


def _task(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: raw[key] for key in ("task_type",) if raw.get(key) is not None}
