"""Measure in which order a GGUF has the rows of a model's weights, by comparing the two.

llama.cpp's converter is known to move rows of some architectures and not of others. For all others
the base model's GGUF is dequantised, weight by weight, and compared with the weights of its Hugging
Face folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.formats.base_folder import BaseFolder
from rankcast.codec.formats.gguf import interleaved_rows, read_base_config
from rankcast.codec.formats.gguf_architecture import (
    GgufArchitecture,
    is_known,
    library,
    tensor_name,
)
from rankcast.codec.formats.gguf_header import GgufHeader, GgufTensor
from rankcast.codec.quantiser import Float32Array
from rankcast.errors import ConfigError, ModelError

_LARGEST_ERROR = 0.5
"""‖other − weight‖ / ‖weight‖ of the same rows is below that at every usual quantisation (.3 at two
bits), and near √2 of others."""
_ROWS = 1024
"""Rows that are compared of a weight whose rows cannot have moved by heads."""
_LAYER = re.compile(r"\.\d+\.")


def architecture_of(
    base_model: str | os.PathLike[str] | None, base_gguf: str | os.PathLike[str] | None = None
) -> GgufArchitecture:
    """Return the architecture of a base model from its folder, its GGUF, or both.

    Args:
        base_model: Hugging Face folder.
        base_gguf: a GGUF of the same model. With both, an order that is not known is measured.

    Raises:
        ConfigError: neither, or an architecture of which the order is not known.
        ModelError: no such model, or two that are not the same.
    """
    if base_gguf is not None:
        name = GgufHeader.open(base_gguf).text("general.architecture")
        if is_known(name) or base_model is None:
            return GgufArchitecture.of_gguf(base_gguf)
        return measured_architecture(base_model, base_gguf)
    if base_model is None:
        raise ConfigError(
            "GGUF needs to know the base model: name its Hugging Face folder with --base-model, "
            "or a GGUF of it with --base-gguf."
        )
    return GgufArchitecture.of_config(read_base_config(base_model))


def measured_architecture(
    base_model: str | os.PathLike[str], base_gguf: str | os.PathLike[str]
) -> GgufArchitecture:
    """Return the architecture that a GGUF names, with the order as it is measured.

    Args:
        base_model: Hugging Face folder of the model, with safetensors.
        base_gguf: a GGUF of the same model, in any quantisation that `gguf` can undo.

    Raises:
        ModelError: no such model, or a weight whose rows are in neither order.
        ConfigError: the package `gguf` does not know the architecture, or is missing.
    """
    header = GgufHeader.open(base_gguf)
    unknown = GgufArchitecture.of_gguf(base_gguf, interleaved=False)
    folder = BaseFolder.open(base_model)
    return replace(unknown, interleaved=measured_order(folder, header, unknown))


def measured_order(folder: BaseFolder, header: GgufHeader, architecture: GgufArchitecture) -> bool:
    """Return whether the GGUF has the halves of q's and k's heads interleaved.

    One weight of every kind is compared, so that an adapter may be on any of them.

    Args:
        folder: the model's Hugging Face folder.
        header: of its GGUF.
        architecture: its name, layers and heads.

    Raises:
        ModelError: a weight in neither order, of another shape, in a quantisation that `gguf`
            cannot undo, or no query and key to compare.
    """
    orders = {}
    for module, tensor in _pairs(folder, header, tensor_name(architecture)):
        last = module.rpartition(".")[2]
        heads = {"q_proj": architecture.n_heads, "k_proj": architecture.n_kv_heads}.get(last)
        weight = folder.weight(module)
        if weight.shape != tensor.shape:
            raise ModelError(
                f"{module} has the shape {weight.shape} in {folder.path} and {tensor.shape} in "
                f"{header.path}: another model, or weights that llama.cpp's converter rearranges. "
                f"Export merged weights and convert those instead."
            )
        found = _order(weight, tensor, heads, f"{module} in {header.path}")
        if heads is not None:
            orders[last] = found
    if set(orders) != {"q_proj", "k_proj"} or len(set(orders.values())) > 1:
        raise ModelError(
            f"The order of the rows cannot be measured from {header.path}: "
            f"{orders or 'no q_proj and k_proj'}. Export merged weights and convert those instead."
        )
    return orders["q_proj"]


def _pairs(
    folder: BaseFolder, header: GgufHeader, name_of: Callable[[str], str | None]
) -> Iterator[tuple[str, GgufTensor]]:
    """Yield a module of every kind that both have, and where the GGUF has its weight."""
    kinds = set()
    for name in folder.names():
        module = name.removesuffix(".weight")
        there = header.tensors.get(name_of(module) or "")
        kind = _LAYER.sub(".", module)
        is_map = there is not None and len(there.shape) == 2 and "embed_tokens" not in module
        if name.endswith(".weight") and is_map and kind not in kinds and there is not None:
            kinds.add(kind)
            yield module, there


def _order(weight: Float32Array, tensor: GgufTensor, heads: int | None, what: str) -> bool:
    """Return whether the rows are interleaved; for what has no heads, only that they are not."""
    n_rows = len(weight) if heads is not None else min(len(weight), _ROWS)
    there = dequantised(tensor, n_rows)
    here = weight[:n_rows]
    errors = {False: _distance(there, here)}
    if heads is not None and n_rows % (2 * heads) == 0:
        errors[True] = _distance(there, here[interleaved_rows(n_rows, heads)])
    nearest = min(errors, key=lambda order: errors[order])
    others = [error for order, error in errors.items() if order is not nearest]
    if errors[nearest] > _LARGEST_ERROR or any(e < 2 * errors[nearest] for e in others):
        told = ", ".join(f"{e:.2f}" for e in errors.values())
        raise ModelError(
            f"The rows of {what} are in no order that is understood (relative distance {told}): "
            f"another model, or weights that llama.cpp's converter rearranges. Export merged "
            f"weights and convert those instead."
        )
    return nearest


def _distance(there: Float32Array, here: Float32Array) -> float:
    """Return ‖there − here‖ / ‖here‖; infinite where there is nothing to compare."""
    size = float(np.linalg.norm(here))
    return float(np.linalg.norm(there - here)) / size if size else float("inf")


def dequantised(tensor: GgufTensor, n_rows: int | None = None) -> Float32Array:
    """Return the first rows of a weight of a GGUF, and read no others.

    Args:
        tensor: of two axes.
        n_rows: as many; None for all.

    Raises:
        ModelError: a quantisation that `gguf` cannot undo, or a file that ends before.
    """
    gguf: Any = library()
    rows = tensor.shape[0] if n_rows is None else n_rows
    try:
        kind = gguf.GGMLQuantizationType(tensor.type)
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = tensor.shape[1] // block * n_bytes
        with Path(tensor.path).open("rb") as stream:
            stream.seek(tensor.start)
            data: NDArray[np.uint8] = np.frombuffer(stream.read(rows * size), np.uint8)
        from gguf.quants import dequantize  # noqa: PLC0415 an extra

        return dequantize(_typed(data.reshape(rows, size), kind), kind).astype(np.float32)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"A weight of {tensor.path} cannot be read ({error}): name a whole GGUF of the model, "
            f"in F16 for example."
        ) from error


def _typed(data: NDArray[np.uint8], kind: Any) -> NDArray[Any]:
    """Return bytes as the numbers that `dequantize` expects."""
    floats = {"F32": np.float32, "F16": np.float16}
    return data.view(floats[kind.name]) if kind.name in floats else data
