"""Small adapters as PEFT saves them, made without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.codec.formats.peft import CONFIG, WEIGHTS
from rankcast.codec.formats.tensor_file import write_tensor_file

PREFIX = "base_model.model."
QUERY, VALUE = (f"model.layers.0.self_attn.{kind}_proj" for kind in "qv")
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


def factors(
    module: str, rank: int = 2, d_in: int = 5, d_out: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Return lora_A and lora_B of a module by their names in a file."""
    rng = np.random.default_rng(seed)
    name = f"{PREFIX}{module}.lora_"
    return {
        f"{name}A.weight": rng.normal(size=(rank, d_in)).astype(np.float32),
        f"{name}B.weight": rng.normal(size=(d_out, rank)).astype(np.float32),
    }


def two_projections() -> dict[str, Any]:
    """Return the tensors of a LoRA on a query and a value."""
    return factors(QUERY) | factors(VALUE, seed=1)


def save_folder(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> Path:
    """Write an adapter's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")
    shapes = {name: (values.shape, values.dtype) for name, values in tensors.items()}
    write_tensor_file(folder / WEIGHTS, shapes, tensors.values())
    return folder
