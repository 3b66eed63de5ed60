"""An adapter as a GGUF LoRA for llama.cpp, with the extra `gguf`.

llama.cpp adds scale·B·A to a weight, where scale is adapter.lora.alpha over the rank of the tensor,
or 1 if alpha is 0. Ranks differ between projections, so alpha is 0 here and the scale is in the
factors. Its converter orders the rows of some weights otherwise than Hugging Face does; B's rows
follow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.formats.gguf_architecture import GgufArchitecture, library, tensor_name
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, ConfigError
from rankcast.files import replace_file

_BY_HEAD = ("bloom", "gptneox")
"""Architectures whose fused query, key and value alternate by head; llama.cpp has all queries
first, then all keys, then all values."""
_BY_GROUP = ("falcon",)
"""The same by group of queries that share a key and a value."""
_FUSED = "query_key_value"


def write_gguf(
    tensors: AdapterTensors, path: str | os.PathLike[str], architecture: GgufArchitecture
) -> Path:
    """Write the components of an adapter as a GGUF file that `llama-cli --lora` reads.

    Factors are taken and written one projection after another.

    Args:
        tensors: a decoded adapter of a causal language model.
        path: file to write.
        architecture: of the base model.

    Raises:
        CodecError: no component, modules beside the projections, a projection that llama.cpp has
            no name for, whose rows do not fit the architecture, or an output layer that is the
            embedding.
        ConfigError: the package `gguf` does not know the architecture, or the extra is missing.
    """
    if tensors.is_general:
        raise CodecError(
            f"llama.cpp takes plain LoRAs only, and this adapter is in general form "
            f"({tensors.config['peft_type']})."
        )
    if tensors.modules:
        raise CodecError(
            f"llama.cpp takes no modules saved in full, and the adapter has "
            f"{', '.join(tensors.modules)}. Export merged weights instead."
        )
    if not tensors.ranks.any():
        raise CodecError("No component of the adapter has arrived; decode more chunks.")
    names = _names(tensors, architecture)
    for i in names:
        p = tensors.projections[i]
        _row_order(architecture, p.name, p.d_out)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda partial: _write(partial, tensors, names, architecture))
    return file


def read_base_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `config.json` of a base model.

    Raises:
        ConfigError: there is none that can be read.
    """
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable configuration of a model ({error}).") from error


def interleaved_rows(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Return, for each row of llama.cpp's, which of Hugging Face's it is: 0, h/2, 1, h/2 + 1, … .

    Hugging Face rotates the two halves of a head against each other, llama.cpp neighbours.

    Args:
        n_rows: n_heads · head_dim.
        n_heads: heads that share the rows.
    """
    return np.arange(n_rows).reshape(n_heads, 2, -1).swapaxes(1, 2).ravel()


def _names(tensors: AdapterTensors, architecture: GgufArchitecture) -> dict[int, str]:
    """Return llama.cpp's names of the projections that have components, by their number."""
    name_of, names = tensor_name(architecture), {}
    for i, p in enumerate(tensors.projections):
        if not tensors.ranks[i]:
            continue
        name = name_of(p.name)
        if architecture.tied and (name == "output.weight" or p.kind == "lm_head"):
            raise CodecError(
                f"The adapter changes {p.name}, which in this {architecture.name} is tied to the "
                f"embedding, so that llama.cpp has no such tensor. Export merged weights instead."
            )
        if name is None:
            raise CodecError(
                f"llama.cpp has no name for {p.name} in {architecture.name}; export merged weights "
                f"instead."
            )
        if "_exps." in name:
            raise CodecError(
                f"llama.cpp has all experts of {p.name} in one weight, on which a LoRA for one of "
                f"them has no place. Export merged weights instead."
            )
        if name in names.values():
            raise CodecError(
                f"{p.name} and another projection are both {name} to llama.cpp; export merged "
                f"weights instead."
            )
        names[i] = name
    return names


def _write(
    path: Path, tensors: AdapterTensors, names: Mapping[int, str], architecture: GgufArchitecture
) -> None:
    """Write one projection after another."""
    gguf = library()
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
        for i, name in names.items():
            p, rank = tensors.projections[i], int(tensors.ranks[i])
            for part, shape in (("a", (rank, p.d_in)), ("b", (p.d_out, rank))):
                size = 4 * shape[0] * shape[1]
                writer.add_tensor_info(f"{name}.lora_{part}", shape, np.dtype(np.float32), size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for i in names:
            p, f = tensors.projections[i], tensors.factors[i]
            order = _row_order(architecture, p.name, p.d_out)
            for array in (f.right, f.left if order is None else f.left[order]):
                writer.write_tensor_data(np.ascontiguousarray(array, np.float32))
    finally:
        writer.close()


def _row_order(
    architecture: GgufArchitecture, projection: str, d_out: int
) -> NDArray[np.intp] | None:
    """Return, for each row of llama.cpp's weight, which of Hugging Face's it is; None for the same.

    Raises:
        CodecError: so many rows are no whole number of heads.
    """
    a, last = architecture, projection.rpartition(".")[2]
    if a.interleaved and last in ("q_proj", "k_proj"):
        heads = a.n_heads if last == "q_proj" else a.n_kv_heads
        _check_heads(a, projection, d_out, 2 * heads)
        return interleaved_rows(d_out, heads)
    if last == _FUSED and a.name in _BY_HEAD:
        _check_heads(a, projection, d_out, 3 * a.n_heads)
        return np.arange(d_out).reshape(a.n_heads, 3, -1).swapaxes(0, 1).ravel()
    if last == _FUSED and a.name in _BY_GROUP:
        return _grouped_rows(a, projection, d_out)
    return None


def _grouped_rows(a: GgufArchitecture, projection: str, d_out: int) -> NDArray[np.intp]:
    """Return the order in which all queries come first, then all keys, then all values."""
    n_queries = a.n_heads // a.n_kv_heads
    _check_heads(a, projection, d_out, a.n_kv_heads * (n_queries + 2))
    rows = np.arange(d_out).reshape(a.n_kv_heads, n_queries + 2, -1)
    return np.concatenate([rows[:, :-2].ravel(), rows[:, -2].ravel(), rows[:, -1].ravel()])


def _check_heads(a: GgufArchitecture, projection: str, d_out: int, unit: int) -> None:
    if d_out % unit:
        raise CodecError(
            f"{projection} has {d_out} rows, which do not fit {a.n_heads} heads and {a.n_kv_heads} "
            f"of keys and values. Name the base model that the adapter was trained on."
        )
