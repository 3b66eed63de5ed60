"""The folder of `rankcast.adapters.export.save_adapter`: its description, and reading it.

`rankcast_adapter.safetensors` holds P, Λ and Q of each projection, the modules trained in full
(`extra.`) and what the base model has in their place (`original.`); `rankcast_adapter.json` holds a
`Description`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors
from safetensors.numpy import load_file

from rankcast.codec.formats.peft_names import modules_saved
from rankcast.codec.packing import Coding, coding_of
from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.records import FloatArray, Projection

WEIGHTS, DESCRIPTION = "rankcast_adapter.safetensors", "rankcast_adapter.json"
EXTRA, ORIGINAL = "extra.", "original."
FORMAT_VERSION = 1
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Description:
    """The description beside the tensors.

    Attributes:
        projections: that are adapted.
        r_max: components of each.
        alpha: the update is alpha / r_max times P Λ Q.
        dropout: of the adapters' input, in training.
        task_type: PEFT's word for the task.
        modules_to_save: names of the modules trained in full.
        ranks: of each projection when it was saved.
        base_model: hub id or path of the base model.
        base_fingerprint: SHA-256 of its weights.
        coding: steps to which the adapter was trained to be rounded; None if it was not.
        gains: (N, r_max) loss that each component removes, as learned in training.
    """

    projections: tuple[Projection, ...]
    r_max: int
    alpha: float
    dropout: float
    task_type: str | None
    modules_to_save: Sequence[str]
    ranks: Sequence[int]
    base_model: str | None = None
    base_fingerprint: str | None = None
    coding: Coding | None = None
    gains: FloatArray | None = None

    def to_json(self) -> str:
        """Return the text of the file."""
        plain = {"format_version": FORMAT_VERSION} | asdict(self)
        if self.gains is not None:
            plain["gains"] = [[float(f"{gain:.6g}") for gain in row] for row in self.gains]
        return json.dumps(plain, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Description:
        """Return the description in a folder.

        Raises:
            CodecError: there is none, another version wrote it, or it is damaged.
        """
        path = folder / DESCRIPTION
        try:
            raw = json.loads(path.read_text("utf-8"))
            version = raw.pop("format_version")
            if version == FORMAT_VERSION:
                return cls._of(**raw)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CodecError(
                f"{path} is no readable adapter description ({error!r}); save the adapter again."
            ) from error
        raise CodecError(f"{path} has format {version}, this version reads {FORMAT_VERSION}.")

    @classmethod
    def _of(cls, *, projections: Any, coding: Any = None, gains: Any = None, **rest: Any) -> Self:
        """Return what `to_json` wrote; adapters without a coding or gains do not name them."""
        return cls(
            projections=tuple(Projection(**p) for p in projections),
            coding=None if coding is None else coding_of(**coding),
            gains=None if gains is None else np.array(gains, dtype=np.float64),
            **rest,
        )


def read_native(directory: str | os.PathLike[str]) -> tuple[AdapterTensors, Description]:
    """Return all components of an adapter in the order of training, and its description.

    Nested training makes the first r components of a projection its best version of rank r, so
    their order is kept. Each is balanced, unless s·Λ is 1 already: such factors have the form in
    which they were trained on rounded weights, and scaling them would move them off their cells.

    Raises:
        CodecError: no such adapter, or a damaged one.
    """
    folder = Path(directory)
    description = Description.read(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        scale = description.alpha / description.r_max
        factors = tuple(_factors(tensors, p.name, scale) for p in description.projections)
    except (OSError, ValueError, LookupError, TypeError, safetensors.SafetensorError) as error:
        raise CodecError(f"{folder} holds no readable adapter of a run ({error!r}).") from error
    modules, carriage = {}, {}
    for name, values in tensors.items():
        plain = name.removeprefix(EXTRA)
        if plain == name:
            continue
        original = tensors.get(ORIGINAL + plain)
        modules[plain] = np.asarray(values if original is None else values - original, np.float32)
        carriage[plain] = "full" if original is None else "difference"
    saved = sorted(description.modules_to_save)
    config = {} if saved == modules_saved(modules) else {"modules_to_save": saved}
    return AdapterTensors(description.projections, factors, modules, carriage, config), description


def _factors(tensors: Mapping[str, Float32Array], name: str, scale: float) -> Factors:
    """Return the factors of s·P·diag(Λ)·Q of a projection."""
    P, lam, Q = (tensors[f"{name}.{part}"] for part in ("P", "lam", "Q"))
    values = np.asarray(scale * lam, dtype=np.float32)
    if np.abs(values - 1.0).max(initial=0.0) <= _ROUNDING:
        return Factors(P, Q)
    return Factors(P * values, Q).balanced()
