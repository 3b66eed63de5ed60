"""A `.rcast` file: a header and the chunks that it lists, every prefix of which is an adapter.

The header has a checksum of every chunk, so that a file is either whole and undamaged, or ends
at the boundary of a chunk and says so, or is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from rankcast.codec.chunks import ChunkPlan, Decoder, decode, encode, ranks_of_prefixes
from rankcast.codec.formats.gguf import write_gguf
from rankcast.codec.formats.gguf_order import architecture_of
from rankcast.codec.formats.peft import write_peft
from rankcast.codec.header import LARGEST_PARAMS, Header, header_bytes, read_header
from rankcast.codec.packing import (
    Coding,
    Source,
    block_offsets,
    chunk_plans,
    prefix_plans,
    trained_offsets,
    without_zeros,
)
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, ConfigError, check_choice
from rankcast.files import put_file
from rankcast.naming import public_config, public_name
from rankcast.records import IntArray

Format = Literal["peft", "vllm", "gguf", "merged", "rcast"]
"""`peft`: a LoRA with a rank for each projection. `vllm`: the same padded to one rank, as vLLM and
SGLang need it. `gguf`: for llama.cpp. `merged`: the whole model. `rcast`: as it is."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Cost and worth of the first chunks of a file.

    Attributes:
        n_chunks: how many.
        n_bytes: of the header and these chunks.
        loss: measured with them [nats]; None if nobody measured.
        accuracy: likewise, a share.
    """

    n_chunks: int
    n_bytes: int
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Container:
    """A header and as many of its chunks as there are.

    `rankcast.load` reads one from a file, `rankcast.pack` makes one of an adapter.
    """

    header: Header
    chunks: tuple[bytes, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every chunk is there."""
        return len(self.chunks) == len(self.header.chunks)

    @property
    def n_bits(self) -> int:
        """Bits of the file."""
        return 8 * (len(header_bytes(self.header)) + sum(map(len, self.chunks)))

    @property
    def ladder(self) -> tuple[Prefix, ...]:
        """The prefixes of one chunk and more, with their bytes and what was measured of them."""
        n_bytes, prefixes = len(header_bytes(self.header)), []
        for n, entry in enumerate(self.header.chunks[: len(self.chunks)], start=1):
            n_bytes += entry.n_bytes
            prefixes.append(Prefix(n, n_bytes, entry.loss, entry.accuracy))
        return tuple(prefixes)

    def prefix(self, n_chunks: int) -> Container:
        """Return the same file cut after its first chunks.

        Raises:
            CodecError: more chunks than are there, or fewer than none.
        """
        here = len(self.chunks)
        if not 0 <= n_chunks <= here:
            raise CodecError(f"The file has {here} complete chunks, so it cannot give {n_chunks}.")
        return replace(self, chunks=self.chunks[:n_chunks])

    def tensors(self) -> AdapterTensors:
        """Return the adapter that the chunks amount to.

        Raises:
            CodecError: damaged chunks.
        """
        return decode(self.header, self.chunks)

    def source(self) -> Source:
        """Return the adapter in the file, to be packed as one chunk at the steps it has here.

        Raises:
            CodecError: damaged chunks.
        """
        decoder, common = Decoder(self.header), 0
        for chunk in self.chunks:
            common = decoder.add(chunk).exponent
        tensors, n = decoder.tensors(), len(self.header.projections)
        offsets = [tuple(e - common for e in own) for own in decoder.exponents()]
        names = [module.name for module in self.header.modules]
        beside = {name: own[0] for name, own in zip(names, offsets[n:], strict=True) if own}
        ranks = tuple(tensors.ranks.tolist())
        coding = Coding(common, (), beside, (ranks,), tuple(offsets[:n]))
        return Source(tensors, self.header.base, self.header.task).at(coding)

    def decoded(self) -> Iterator[tuple[ChunkPlan, AdapterTensors]]:
        """Yield what each chunk brings and the adapter of the prefix that ends with it.

        Raises:
            CodecError: damaged chunks.
        """
        decoder = Decoder(self.header)
        for chunk in self.chunks:
            plan = decoder.add(chunk)
            yield plan, decoder.tensors()

    def ranks(self) -> tuple[list[ChunkPlan], IntArray]:
        """Decode every prefix as `decoded` does, and keep no more than a segment in memory.

        Returns:
            What each chunk brings, and (n_chunks, N) the ranks of the prefix that ends with it.

        Raises:
            CodecError: damaged chunks.
        """
        return ranks_of_prefixes(self.header, self.chunks)

    def to_bytes(self) -> bytes:
        """Return the file."""
        return header_bytes(self.header) + b"".join(self.chunks)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all, and folders on the way; return its path."""
        file = Path(path)
        put_file(file, self.to_bytes())
        return file

    def export(
        self,
        format: Format,  # noqa: A002 the word for it
        output: str | os.PathLike[str],
        *,
        base_model: str | os.PathLike[str] | None = None,
        base_gguf: str | os.PathLike[str] | None = None,
        tensors: AdapterTensors | None = None,
    ) -> Path:
        """Write the adapter for another program, without torch.

        What needs the base model's weights (`merged`, and modules that travel as a difference) is
        in `rankcast.packaging.export.export`.

        Args:
            format: see `Format`.
            output: folder to write; for `gguf` and `rcast` the file.
            base_model: folder of the base model, for `gguf`, which needs its config.json.
            base_gguf: a GGUF of the base model, for `gguf`, instead of the folder; with both, an
                order of rows that is not known is measured.
            tensors: the adapter, where it has been decoded already.

        Raises:
            CodecError: damaged chunks, or an adapter that the format cannot carry.
            ConfigError: no such format, or one that needs the base model.
            ModelError: a base model that cannot be read.
        """
        check_choice("format", format, get_args(Format))
        if format == "rcast":
            return self.save(output)
        if format == "merged":
            raise ConfigError(
                "Merged weights need the base model: rankcast export --format merged --base-model "
                "FOLDER, or rankcast.packaging.export.export."
            )
        tensors = self.tensors() if tensors is None else tensors
        if format == "gguf":
            return write_gguf(tensors, output, architecture_of(base_model, base_gguf))
        return write_peft(
            tensors,
            output,
            base_model_name=self.header.base.name,
            task_type=self.header.task.get("task_type"),
            uniform_rank=format == "vllm",
        )


def pack_at_exponent(
    source: Source, exponent: int, n_steps: int | None = None, n_parts: int = 3
) -> Container:
    """Return an adapter as a container whose last chunk reaches a step exponent.

    Args:
        source: what to pack.
        exponent: of the finest step; see `packing.exponent_of_quality`.
        n_steps: precisions, each three times finer than the one before; None for as many as leave
            weights other than zero.
        n_parts: chunks of each precision.

    Raises:
        CodecError: NaN or infinite weights.
    """
    tensors = source.tensors
    plans = chunk_plans(tensors, exponent, n_steps, n_parts, offsets=source.offsets)
    offsets = block_offsets(tensors, source.offsets, exponent, source.tensor_offsets)
    return _container(source, encode(tensors, plans, offsets))


def pack_as_trained(source: Source, coding: Coding) -> Container:
    """Return an adapter as a container of the chunks and steps for which it was trained.

    Raises:
        CodecError: NaN or infinite weights.
    """
    if not coding.prefix_ranks:
        return pack_at_exponent(source.at(coding), coding.exponent)
    tensors, coding = without_zeros(source.tensors, coding)
    chunks = encode(tensors, prefix_plans(tensors, coding), trained_offsets(tensors, coding))
    return _container(replace(source, tensors=tensors), chunks)


def _container(source: Source, chunks: list[bytes]) -> Container:
    """Return a container of chunks, without names that are not to be public."""
    base = replace(source.base, name=public_name(source.base.name))
    header = Header.of(source.tensors, chunks, base, source.task)
    return Container(replace(header, config=public_config(header.config)), tuple(chunks))


def read_container(
    data: bytes | memoryview,
    *,
    allow_prefix: bool = False,
    allow_damage: bool = False,
    largest_params: int = LARGEST_PARAMS,
) -> Container:
    """Return what a file holds.

    Args:
        data: the file.
        allow_prefix: accept a file that ends early, with the chunks that are complete in it.
        allow_damage: accept one with a damaged chunk, with the chunks before that.
        largest_params: refuse an adapter of more numbers than that before memory is taken for it.

    Raises:
        CodecError: no such file, another version, damaged, cut short, or too large.
    """
    header, start = read_header(data, largest_params=largest_params)
    chunks = []
    for number, entry in enumerate(header.chunks):
        end = start + entry.n_bytes
        if end > len(data):
            break
        chunk = bytes(data[start:end])
        if not entry.fits(chunk):
            if allow_damage:
                break
            before = f", or use the {number} before it with --prefix (prefix=True in Python)"
            raise CodecError(
                f"Chunk {number} is damaged: its checksum is not the one in the header. Fetch the "
                f"file again{before if number else ''}."
            )
        chunks.append(chunk)
        start = end
    if len(chunks) == len(header.chunks):
        if start != len(data):
            raise CodecError(f"{len(data) - start} bytes follow the last chunk; fetch it again.")
    elif not allow_prefix and not allow_damage:
        missing = start + sum(e.n_bytes for e in header.chunks[len(chunks) :]) - len(data)
        raise CodecError(
            f"The file ends within chunk {len(chunks)} of {len(header.chunks)}: it was cut short, "
            f"{missing:,} bytes are missing. Fetch the rest, or use what is complete with --prefix "
            f"(prefix=True in Python)."
        )
    return Container(header, tuple(chunks))


def load(path: str | os.PathLike[str], *, prefix: bool = False) -> Container:
    """Return the container in a file.

    Args:
        path: of the `.rcast` file.
        prefix: accept a file that was cut short or damaged, with the chunks before that.

    Raises:
        CodecError: the file cannot be read, is no container, is damaged or was cut short.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        more = "; rankcast pack makes a file of an adapter's folder" if Path(path).is_dir() else ""
        raise CodecError(f"{path} cannot be read: {error.strerror}{more}.") from error
    return read_container(data, allow_damage=prefix)
