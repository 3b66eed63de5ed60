"""The commands on `.rcast` files; nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console

from rankcast.codec.container import Container, read_container
from rankcast.codec.lora_files import write_peft
from rankcast.codec.packing import Source, pack, pack_at, pack_within, read_adapter, unpack
from rankcast.errors import CodecError, ConfigError
from rankcast.files import replace_file
from rankcast.link.capacity import rate_bps
from rankcast.link.payload import budget_bits
from rankcast.link.rate_models import parameters_of, rate_model
from rankcast.records import LinkState
from rankcast.run.contents import BITS_OF_FLOAT32, described, ladder_table, rank_table, rungs_of
from rankcast.run.file_options import Info, Pack, Unpack, Verify


def dispatch(command: Pack | Unpack | Info | Verify) -> int:
    """Do what a command says and return the exit status."""
    match command:
        case Pack():
            return _pack(command)
        case Unpack():
            return _unpack(command)
        case Info():
            return _info(command)
        case Verify():
            return _verify(command)


def _pack(command: Pack) -> int:
    if command.measure or command.texts is not None:
        from rankcast.run.measuring import packed_and_measured  # noqa: PLC0415 needs torch

        container = packed_and_measured(command)
    else:
        container = packed(command, read_adapter(command.source))
    header, data = container.header, container.to_bytes()
    command.output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(command.output, lambda partial: partial.write_bytes(data))
    plain = BITS_OF_FLOAT32 * header.n_params
    described = {
        "file": str(command.output),
        "bits": 8 * len(data),
        "bits_in_float32": plain,
        "times_smaller": plain / (8 * len(data)),
        "chunks": len(container.chunks),
        "mean_rank": float(unpack(container).ranks.mean()),
        "loss": header.chunks[-1].loss,
        "accuracy": header.chunks[-1].accuracy,
    }
    if command.json:
        print(json.dumps(described, indent=2))  # noqa: T201
    else:
        print(  # noqa: T201
            f"{command.output}: {len(data):,} bytes in {len(container.chunks)} chunks, "
            f"{described['times_smaller']:.0f} times smaller than float32, mean rank "
            f"{described['mean_rank']:.2f}. See rankcast info {command.output}"
        )
    return 0


def packed(command: Pack, source: Source, reserve_bits: int = 0) -> Container:
    """Return the container that the options ask for.

    Args:
        command: the options.
        source: the adapter.
        reserve_bits: of a budget, what is to be left free.

    Raises:
        ConfigError: options that say the same thing twice, half a link, or a plan without gains.
        InfeasibleDeadlineError: not even the coarsest step fits.
    """
    budget = budget_of(command)
    if command.planned:
        if budget is None or source.gains is None:
            raise ConfigError(
                "--planned needs a budget or a link, and a run of rankcast, which has learned what "
                "its components are worth."
            )
        from rankcast.allocation.precision import pack_planned  # noqa: PLC0415 needs scipy

        return pack_planned(source, source.gains, budget - reserve_bits)
    if budget is not None:
        return pack_within(source, budget - reserve_bits)
    if command.quality is None and source.exponent is not None:
        return pack(source, source.exponent)
    return pack_at(source, command.quality or "good")


def budget_of(command: Pack) -> float | None:
    """Return how many bits the options leave for the file; None if they do not say.

    Raises:
        ConfigError: options that say the same thing twice, or half a link.
    """
    link = (command.snr_db, command.bandwidth_hz, command.deadline_s)
    ways = [
        command.quality is not None,
        command.budget_bits is not None,
        any(x is not None for x in link),
    ]
    if sum(ways) > 1:
        raise ConfigError("Give one of --quality, --budget-bits and a link, not several.")
    if not ways[2]:
        return command.budget_bits
    snr_db, bandwidth_hz, deadline_s = link
    if snr_db is None or bandwidth_hz is None or deadline_s is None:
        raise ConfigError("A link needs --snr-db, --bandwidth-hz and --deadline-s.")
    state = LinkState(np.array([snr_db]), np.array([bandwidth_hz]), np.array([deadline_s]))
    return float(budget_bits(_rate_bps(command.rate_model, state), deadline_s))


def _rate_bps(name: str, link: LinkState) -> float:
    wanted = parameters_of(name)
    found = {"bandwidth_hz": float(link.bandwidth_hz[0]), "impl_loss_db": 0.0}
    given = {key: value for key, value in found.items() if key in wanted}
    return float(rate_bps(rate_model(name, **given), link)[0])


def read_file(file: Path, *, prefix: bool = False) -> Container:
    """Return the container in a file.

    Raises:
        CodecError: the file cannot be read, or is no container.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CodecError(f"{file} cannot be read: {error.strerror}.") from error
    return read_container(data, allow_prefix=prefix)


def file_or_packed(path: Path) -> Container:
    """Return the container in a file, or the adapter of a folder, packed.

    Raises:
        CodecError: neither is there.
    """
    if not path.is_dir():
        return read_file(path)
    source = read_adapter(path)
    return pack_at(source, "good") if source.exponent is None else pack(source, source.exponent)


def _unpack(command: Unpack) -> int:
    container = read_file(command.file, prefix=command.prefix)
    tensors = unpack(container, command.chunks)
    header = container.header
    write_peft(
        tensors,
        command.output,
        base_model_name=header.base.name,
        task_type=header.task.get("task_type"),
    )
    used = len(container.chunks) if command.chunks is None else command.chunks
    print(  # noqa: T201
        f"{command.output}: plain LoRA of {used} of {len(header.chunks)} chunks, mean rank "
        f"{tensors.ranks.mean():.2f}."
    )
    return 0


def _info(command: Info) -> int:
    container = read_file(command.file, prefix=command.prefix)
    rungs = rungs_of(container)
    if command.json:
        print(json.dumps(described(container, rungs), indent=2))  # noqa: T201
        return 0
    console = Console(highlight=False)
    header = container.header
    console.print(
        f"{command.file}: adapter of {header.base.name or 'a model that is not named'}, "
        f"{header.n_params:,} numbers, {len(container.chunks)} of {len(header.chunks)} chunks."
    )
    console.print(ladder_table(header, rungs))
    console.print(rank_table(header, unpack(container)))
    return 0


def _verify(command: Verify) -> int:
    container = read_file(command.file)
    for _ in rungs_of(container):
        pass
    print(  # noqa: T201
        f"{command.file}: whole and unchanged; all {len(container.chunks)} prefixes decode."
    )
    return 0
