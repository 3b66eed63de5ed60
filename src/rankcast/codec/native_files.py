"""The adapter that `rankcast.adapters.export.save_adapter` wrote, read without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file

from rankcast.codec.quantise import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import Projection

_ROUNDING = 1e-6
WEIGHTS, DESCRIPTION = "rankcast_adapter.safetensors", "rankcast_adapter.json"


def is_native_directory(path: Path) -> bool:
    """Whether a path looks like an adapter that a run saved."""
    return (path / DESCRIPTION).is_file()


def read_native(directory: str | os.PathLike[str]) -> tuple[AdapterTensors, dict[str, Any]]:
    """Return all components of an adapter in the order of training, and its description.

    Nested training makes the first r components of a projection its best version of rank r, so
    their order is kept. Each is balanced, unless s·Λ is 1 already: such factors have the form in
    which they were trained on rounded weights, and scaling them would move them off their cells.

    Raises:
        CodecError: no such adapter, or a damaged one.
    """
    folder = Path(directory)
    try:
        raw = json.loads((folder / DESCRIPTION).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
        projections = tuple(Projection(**p) for p in raw["projections"])
        scale = float(raw["alpha"] / raw["r_max"])
        factors = tuple(_factors(tensors, p.name, scale) for p in projections)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CodecError(f"{folder} holds no readable adapter of a run ({error!r}).") from error
    modules, carriage = {}, {}
    for name, values in tensors.items():
        plain = name.removeprefix("extra.")
        if plain == name:
            continue
        original = tensors.get(f"original.{plain}")
        modules[plain] = np.asarray(values if original is None else values - original, np.float32)
        carriage[plain] = "full" if original is None else "difference"
    return AdapterTensors(projections, factors, modules, carriage), raw


def _factors(tensors: Mapping[str, Float32Array], name: str, scale: float) -> Factors:
    """Return the factors of s·P·diag(Λ)·Q of a projection."""
    P, lam, Q = (tensors[f"{name}.{part}"] for part in ("P", "lam", "Q"))
    values = np.asarray(scale * lam, dtype=np.float32)
    if np.abs(values - 1.0).max(initial=0.0) <= _ROUNDING:
        return Factors(P, Q)
    return Factors(P * values, Q).balanced()
