"""Copies of a base model in other files: what they are, and whether they are copies of it at all.

Some rows of every weight are compared with the base model's own. Rounding to a few bits changes a
weight by a known share, and another model's weights by far more. Norms and biases stay in full
precision in every usual GGUF, and tell a model from others that were fine-tuned from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rankcast.codec.formats.base_folder import BaseFolder
from rankcast.codec.formats.gguf import interleaved_rows, read_base_config
from rankcast.codec.formats.gguf_architecture import GgufArchitecture, tensor_name
from rankcast.codec.formats.gguf_base import GgufBase
from rankcast.codec.formats.gguf_order import measured_architecture
from rankcast.codec.header import Header
from rankcast.codec.quantiser import Float32Array
from rankcast.errors import ConfigError, ModelError
from rankcast.packaging.base_model import adapted_names, base_fingerprint_of_folder
from rankcast.release.runs_on import BaseCopy

_ROWS = 4
"""Of a weight that are compared."""
_LEAST_SHARE = 0.5
"""Of the tensors of a copy that have to be comparable."""
_PRECISE = 0.006
"""Relative error of what is rounded to 8 bits of mantissa, or not at all."""
_BOUNDS = {
    "Q8": 0.02, "Q6": 0.05, "Q5": 0.09, "Q4": 0.18, "IQ4": 0.18, "MXFP4": 0.25, "NVFP4": 0.25,
    "Q3": 0.35, "IQ3": 0.35, "Q2": 0.6, "IQ2": 0.6, "IQ1": 0.9, "TQ": 0.9,
}  # fmt: skip
"""Most relative error of rows in quantisations whose names begin so: over twice the usual."""


def copy_of(path: Path, base: Path | None, header: Header) -> BaseCopy:
    """Return what a GGUF or a safetensors folder is, and how far from the base model.

    Args:
        path: a GGUF, or the first of several; or a folder.
        base: folder of the adapter's base model, to compare with; None to take it on trust.
        header: of the adapter's file.

    Raises:
        ModelError: not a model, or not a copy of the base model; says what differs.
        ConfigError: an architecture of which llama.cpp's order of rows is not known.
    """
    if path.is_dir():
        return _copy_in_folder(path, base, header)
    copy = GgufBase.open(path)
    architecture = _architecture(path, base)
    error = None if base is None else gguf_error(copy, BaseFolder.open(base), architecture)
    return BaseCopy(
        copy.fingerprint(), "gguf", path.name, copy.quantisation, copy.n_bytes, error,
        architecture.to_plain(),
    )  # fmt: skip


def gguf_error(copy: GgufBase, base: BaseFolder, architecture: GgufArchitecture) -> float:
    """Return the median relative error of a GGUF's weights against a folder's.

    Raises:
        ModelError: another model; names the tensor that differs most from what rounding does.
    """
    pairs = dict(_pairs(copy, base, architecture))
    _check_covered(str(copy.header.path), len(pairs), len(copy.header.tensors), base)
    errors = []
    for key, name in pairs.items():
        error = _tensor_error(copy, base, architecture, key, name)
        if error is None:
            continue
        kind = copy.type_name(copy.header.tensors[name].type)
        _check_error(str(copy.header.path), name, error, kind, base)
        if len(copy.header.tensors[name].shape) > 1:
            errors.append(error)
    _check_covered(str(copy.header.path), len(errors), 1, base)
    return float(np.median(errors))


def folder_error(copy: BaseFolder, base: BaseFolder) -> float:
    """Return the median relative error of a folder's weights against another folder's.

    Raises:
        ModelError: another model; names the tensor that differs.
    """
    shared = [key for key in copy.names() if key in base.files and _shape(copy, key)]
    _check_covered(str(copy.path), len(shared), len(copy.names()), base)
    errors = []
    for key in shared:
        if _shape(copy, key) != _shape(base, key):
            raise _another(str(copy.path), base, f"{key} has another shape")
        rows = _some(_shape(base, key))
        here, there = (folder.files[key].rows(key, rows) for folder in (base, copy))
        error = _distance(there, here)
        _check_error(str(copy.path), key, error, copy.files[key].entries[key].dtype, base)
        errors.append(error)
    return float(np.median(errors))


def _copy_in_folder(path: Path, base: Path | None, header: Header) -> BaseCopy:
    folder = BaseFolder.open(path)
    names = adapted_names(header.projections, header.config)
    fingerprint = base_fingerprint_of_folder(path, header.task.get("task_type"), names)
    entries = [folder.files[key].entries[key] for key in folder.names()]
    dtypes = sorted({entry.dtype for entry in entries if len(entry.shape) > 1 and entry.is_float})
    try:
        architecture = GgufArchitecture.of_config(read_base_config(path)).to_plain()
    except ConfigError:  # no model of llama.cpp, or the extra is missing: only GGUF needs it
        architecture = None
    error = None if base is None else folder_error(folder, BaseFolder.open(base))
    return BaseCopy(
        fingerprint, "safetensors", path.resolve().name, "+".join(dtypes) or "integers",
        max(1, sum(entry.n_bytes for entry in entries)), error, architecture,
    )  # fmt: skip


def _architecture(path: Path, base: Path | None) -> GgufArchitecture:
    """Return a GGUF's architecture; the order of rows that is not known is measured."""
    try:
        return GgufArchitecture.of_gguf(path)
    except ConfigError:
        if base is None:
            raise
        return measured_architecture(base, path)


def _pairs(
    copy: GgufBase, base: BaseFolder, architecture: GgufArchitecture
) -> Iterator[tuple[str, str]]:
    """Yield the tensors of a folder that a GGUF has, too: both names."""
    name_of = tensor_name(architecture)
    for key in base.names():
        stem, _, part = key.rpartition(".")
        stems = (stem, f"model.{stem}", stem.removeprefix("model."))
        found = (name_of(s) for s in stems)
        name = next((n for n in found if n is not None), None)
        if name is not None:
            name = f"{name.rpartition('.')[0]}.{part}"
            if name in copy.header.tensors:
                yield key, name


def _tensor_error(
    copy: GgufBase, base: BaseFolder, architecture: GgufArchitecture, key: str, name: str
) -> float | None:
    """Return the relative error of some rows; None where they cannot be dequantised here.

    Raises:
        ModelError: another shape.
    """
    shape, file = copy.header.tensors[name].shape, base.files[key]
    own, get = _shape(base, key), lambda rows: file.rows(key, rows)
    if len(own) > 2 or not file.entries[key].is_float:
        return None
    if architecture.name == "gpt2" and len(own) == 2 and "embd" not in name:
        whole = file.array(key)  # stored input-first
        own, get = own[::-1], lambda rows: whole.T[rows]
    if own != shape:
        raise _another(str(copy.header.path), base, f"{name} is {shape} and not {own}")
    if len(own) < 2:
        there = copy.rows(name, [0])
        if there is None:
            return None
        here = file.array(key)[None]
        # Gemma's norms are stored with the one that the model adds to them.
        return min(_distance(there, x) for x in (here, here + np.float32(1)))
    rows = _some(own)
    there = copy.rows(name, rows)
    if there is None:
        return None
    return _distance(there, get(_order(architecture, name, own[0])(rows)))


def _order(
    architecture: GgufArchitecture, name: str, n_rows: int
) -> Callable[[list[int]], list[int]]:
    """Return what says which rows of the model some rows of a GGUF are."""
    heads = {"attn_q": architecture.n_heads, "attn_k": architecture.n_kv_heads}
    n_heads = heads.get(name.split(".")[-2])
    if not architecture.interleaved or n_heads is None:
        return lambda rows: rows
    order = interleaved_rows(n_rows, n_heads)
    return lambda rows: [int(order[row]) for row in rows]


def _some(shape: tuple[int, ...]) -> list[int]:
    """Return numbers of a few rows, from the first to near the last."""
    n = shape[0] if shape else 1
    return sorted({(2 * i + 1) * n // (2 * _ROWS) for i in range(_ROWS)})


def _shape(folder: BaseFolder, key: str) -> tuple[int, ...]:
    return folder.files[key].entries[key].shape


def _distance(there: Float32Array, here: Float32Array) -> float:
    """Return ‖there − here‖ / ‖here‖."""
    size = float(np.linalg.norm(here))
    gap = float(np.linalg.norm(there - here))
    return gap / size if size else float(gap > 0.0)


def _check_error(path: str, name: str, error: float, kind: str, base: BaseFolder) -> None:
    bound = next((b for word, b in _BOUNDS.items() if kind.startswith(word)), _PRECISE)
    if not error <= bound:
        raise _another(
            path, base,
            f"{name} differs by {error:.1%}, where {kind} rounds by {bound:.1%} at most",
        )  # fmt: skip


def _check_covered(path: str, found: int, all_of: int, base: BaseFolder) -> None:
    if found < _LEAST_SHARE * all_of:
        raise _another(path, base, f"{found} of its {all_of} tensors are comparable")


def _another(path: str, base: BaseFolder, why: str) -> ModelError:
    return ModelError(
        f"{path} is no copy of {base.path}: {why}. Name a file that was converted from exactly "
        f"this base model."
    )
