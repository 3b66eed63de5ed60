"""Write adapters as PEFT reads them, one projection at a time and without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.formats.peft_config import CONFIG, SELECTION, WRITTEN_AGAIN
from rankcast.codec.formats.peft_names import PREFIX, is_parameter, modules_saved, split_expert
from rankcast.codec.formats.peft_read import WEIGHTS
from rankcast.codec.formats.tensor_file import write_tensor_file
from rankcast.codec.tensors import AdapterTensors, Factors, Shape
from rankcast.errors import CodecError
from rankcast.files import new_folder

_FLOAT32 = np.dtype(np.float32)


def write_peft(
    tensors: AdapterTensors,
    directory: str | os.PathLike[str],
    *,
    base_model_name: str | None = None,
    task_type: str | None = None,
    uniform_rank: bool = False,
    fan_in_fan_out: bool = False,
) -> Path:
    """Write a plain LoRA whose scale is 1 under every reader's rule, or an adapter in general form.

    `lora_alpha` equals `r` and `alpha_pattern` equals `rank_pattern`. Projections of rank 0 are
    left out. With `uniform_rank` every projection is padded with zeros to one rank and there are no
    patterns: vLLM and SGLang divide one alpha by one rank, and take only plain LoRAs. Where the
    adapter names the modules that it adapts (`target_modules` in its `config`), because PEFT may
    know them by other names, all of them are written, of one rank.

    Args:
        tensors: the adapter.
        directory: made if absent; files of the same names in it are replaced.
        base_model_name: for the configuration.
        task_type: PEFT's word for the task.
        uniform_rank: see above.
        fan_in_fan_out: the base model keeps its weights input-first, as GPT-2's do.

    Raises:
        CodecError: no component; more than a LoRA where only one can be taken; or modules that
            travel as a difference, which cannot be written without the base model.
    """
    _check_writable(tensors, uniform_rank=uniform_rank)
    if tensors.is_general:
        config = dict(tensors.config)
        if base_model_name is not None:
            config["base_model_name_or_path"] = base_model_name
        return _write(Path(directory), config, dict(tensors.shapes), tensors.modules.values())
    pieces = _pieces(tensors, uniform_rank=uniform_rank)
    config = _lora_config(pieces, tensors, uniform_rank=uniform_rank) | {
        "base_model_name_or_path": base_model_name,
        "task_type": task_type,
        "fan_in_fan_out": fan_in_fan_out,
    }
    shapes: dict[str, Shape] = {}
    for piece in pieces:
        shapes |= piece.shapes
    shapes |= {PREFIX + name: shape for name, shape in tensors.shapes.items()}
    return _write(Path(directory), config, shapes, _arrays(pieces, tensors))


@dataclass(frozen=True)
class _Piece:
    """A pair of lora_A and lora_B: of a projection, or of all experts of a parameter.

    Attributes:
        name: of the module.
        members: the projections in it, by their number in the adapter.
        rank: of each.
        d_in: input width.
        d_out: output width.
        of_experts: whether it is of a parameter, mostly of several experts.
    """

    name: str
    members: tuple[int, ...]
    rank: int
    d_in: int
    d_out: int
    of_experts: bool

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the two tensors by their names in the file."""
        rows = len(self.members) * self.rank
        return {
            f"{PREFIX}{self.name}.lora_A.weight": ((rows, self.d_in), _FLOAT32),
            f"{PREFIX}{self.name}.lora_B.weight": ((self.d_out, rows), _FLOAT32),
        }


def _pieces(tensors: AdapterTensors, *, uniform_rank: bool) -> list[_Piece]:
    """Return what is written, with the ranks that it gets."""
    ranks, projections = tensors.ranks.tolist(), tensors.projections
    selected = "target_modules" in tensors.config and not uniform_rank
    largest, pieces = max(ranks), []
    names = [split_expert(p.name) for p in projections]
    for stem, grouped in groupby(range(len(names)), key=lambda i: names[i][0]):
        members = tuple(grouped)
        in_parts = names[members[0]][1] is not None
        if in_parts and [names[i][1] for i in members] != list(range(len(members))):
            raise CodecError(f"The experts of {stem} are not complete or not in order.")
        of_experts = in_parts or is_parameter(stem, tensors.config)
        rank = max(ranks[i] for i in members)
        stays = of_experts or selected or f"{stem}.lora_B.bias" in tensors.shapes
        if rank or stays:
            rank = largest if uniform_rank or selected or of_experts else max(rank, 1)
            p = projections[members[0]]
            pieces.append(_Piece(stem, members, rank, p.d_in, p.d_out, of_experts))
    return pieces


def _arrays(pieces: list[_Piece], tensors: AdapterTensors) -> Iterator[NDArray[Any]]:
    """Yield the tensors in the order of their names."""
    for piece in pieces:
        padded = [_padded(tensors.factors[i], piece.rank) for i in piece.members]
        if piece.of_experts:  # PEFT has the experts of a rank side by side in B
            left = np.stack([f.left for f in padded], axis=2).reshape(piece.d_out, -1)
            padded = [Factors(left, np.concatenate([f.right for f in padded]))]
        yield padded[0].right
        yield padded[0].left
    yield from tensors.modules.values()


def _write(
    target: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    arrays: Iterator[NDArray[Any]] | Any,
) -> Path:
    with new_folder(target) as folder:
        write_tensor_file(folder / WEIGHTS, shapes, arrays)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG).write_text(text, "utf-8")
    return target


def _check_writable(tensors: AdapterTensors, *, uniform_rank: bool) -> None:
    """Raise if the reader cannot take the adapter."""
    plain = "This reader takes plain LoRAs only"
    if tensors.is_general:
        if uniform_rank:
            raise CodecError(
                f"{plain}, and this adapter is in general form ({tensors.config['peft_type']}). "
                f"Write it as peft."
            )
        return
    unknown = sorted(set(tensors.config) - set(WRITTEN_AGAIN))
    if unknown:
        raise CodecError(f"The file has {unknown[0]}, which is not known here. Update rankcast.")
    if not tensors.ranks.any():
        raise CodecError(
            "No component of the adapter has arrived, so there is no LoRA to write; decode more "
            "chunks."
        )
    if uniform_rank:
        parameters = [
            p.name
            for p in tensors.projections
            if is_parameter(split_expert(p.name)[0], tensors.config)
        ]
        if parameters:
            raise CodecError(
                f"{plain}, and this one adapts parameters of experts (target_parameters: "
                f"{parameters[0]}, …). Export merged weights instead."
            )
        if any(name.endswith(".lora_B.bias") for name in tensors.shapes):
            raise CodecError(f"{plain}, and this one has lora_bias. Export merged weights instead.")
        if tensors.shapes:
            raise CodecError(
                f"This reader takes no modules saved in full, and the adapter has "
                f"{', '.join(tensors.shapes)}. Export merged weights instead."
            )
    relative = [name for name, how in tensors.carriage.items() if how == "difference"]
    if relative:
        raise CodecError(
            f"{', '.join(relative)} travel as differences from the base model: use rankcast export "
            f"with --base-model."
        )


def _lora_config(
    pieces: list[_Piece], tensors: AdapterTensors, *, uniform_rank: bool
) -> dict[str, Any]:
    """Return what PEFT's LoraConfig would save."""
    plain = {piece.name: piece.rank for piece in pieces if not piece.of_experts}
    largest = max(piece.rank for piece in pieces)
    patterns = {} if set(plain.values()) <= {largest} else plain
    in_full = [name for name, how in tensors.carriage.items() if how == "full"]
    config = {
        "peft_type": "LORA",
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": list(plain),
        "modules_to_save": modules_saved(in_full) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    kept = {k: v for k, v in tensors.config.items() if not (uniform_rank and k in SELECTION)}
    return config | kept


def _padded(factors: Factors, rank: int) -> Factors:
    """Return factors of a larger rank with the same product."""
    more = rank - factors.rank
    return Factors(
        np.pad(factors.left, ((0, 0), (0, more))), np.pad(factors.right, ((0, more), (0, 0)))
    )
