"""Adapters as rankcast's own training saves them, made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rankcast.codec.formats.native import DESCRIPTION, WEIGHTS, Description
from rankcast.codec.formats.peft import read_peft


def save_run(peft: Path, run: Path, base_fingerprint: str) -> Path:
    """Write the folder of a run that has the adapter of a PEFT folder.

    Args:
        peft: folder of a LoRA that has one rank.
        run: new.
        base_fingerprint: of the base model.
    """
    tensors, config = read_peft(peft)
    rank, n = int(tensors.ranks.max()), len(tensors.projections)
    arrays = {}
    for projection, factor in zip(tensors.projections, tensors.factors, strict=True):
        arrays[f"{projection.name}.P"] = np.ascontiguousarray(factor.left)
        arrays[f"{projection.name}.lam"] = np.ones(rank, np.float32)
        arrays[f"{projection.name}.Q"] = np.ascontiguousarray(factor.right)
    folder = run / "adapter"
    folder.mkdir(parents=True)
    save_file(arrays, folder / WEIGHTS)
    described = Description(
        tensors.projections, rank, float(rank), 0.0, config.get("task_type"), [], [rank] * n,
        "made-up", base_fingerprint,
    )  # fmt: skip
    (folder / DESCRIPTION).write_text(described.to_json(), "utf-8")
    return run
