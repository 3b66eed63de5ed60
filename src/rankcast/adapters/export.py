"""Adapters on disk: a plain LoRA that PEFT, vLLM and others read, and our own lossless format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rankcast.adapters.fingerprint import base_fingerprint, tensors_by_name
from rankcast.adapters.projections import find_projections
from rankcast.adapters.svd import ElasticAdapter
from rankcast.errors import CheckpointError, ConfigError, ModelError
from rankcast.records import AdapterLayout, Projection

_FORMAT_VERSION = 1
_ORIGINAL = "original."
_WEIGHTS, _DESCRIPTION = "rankcast_adapter.safetensors", "rankcast_adapter.json"


def export_lora(
    adapter: ElasticAdapter,
    directory: str | os.PathLike[str],
    ranks: ArrayLike | None = None,
    base_model_name: str | None = None,
) -> Path:
    """Write the components in force as a plain LoRA directory for `PeftModel.from_pretrained`.

    Λ and the scale go into B, so that `lora_alpha = r` and `alpha_pattern = rank_pattern` give a
    factor of 1 everywhere. Projections of rank 0 are left out. Modules saved in full come along.

    Args:
        adapter: what to export.
        directory: made if absent; files of the same names in it are replaced.
        ranks: (N,) ranks to export; None takes those in force.
        base_model_name: written into the configuration; None takes it from the model.

    Raises:
        ConfigError: every rank is 0, so there is no LoRA to write; or a rank out of range.
        ModelError: not one rank per projection.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 late, as is peft

    with adapter.at_ranks(adapter.ranks if ranks is None else ranks):
        config = _lora_config(adapter, base_model_name)
        tensors = _lora_tensors(adapter)
    target = Path(directory)
    with _new_files(target) as folder:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(folder)
    return target


def save_adapter(
    adapter: ElasticAdapter,
    directory: str | os.PathLike[str],
    *,
    coding: Mapping[str, Any] | None = None,
    gains: ArrayLike | None = None,
) -> Path:
    """Write all components, the ranks in force and the layout, to be read by `load_adapter`.

    Of modules that the base model has, such as a pooler, its own tensors are written, too, so that
    they can travel as a difference.

    Args:
        adapter: what to write.
        directory: made if absent; files of the same names in it are replaced.
        coding: at which steps it is to be coded, `exponent` and `offsets`; for `rankcast pack`.
        gains: (N, r_max) loss that each component was found to remove; likewise.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 late, as is peft

    config = adapter.model.peft_config["default"]
    description = {
        "format_version": _FORMAT_VERSION,
        "r_max": adapter.layout.r_max,
        "alpha": adapter.scale * adapter.layout.r_max,
        "dropout": config.lora_dropout,
        "task_type": None
        if config.task_type is None
        else str(getattr(config.task_type, "value", config.task_type)),
        "modules_to_save": sorted(adapter.extra_modules()),
        "ranks": adapter.ranks.tolist(),
        "projections": [asdict(p) for p in adapter.layout.projections],
        "base_model": getattr(adapter.model.get_base_model(), "name_or_path", None) or None,
        "base_fingerprint": base_fingerprint(adapter.model),
        "coding": None if coding is None else dict(coding),
        "gains": None
        if gains is None
        else [[float(f"{gain:.6g}") for gain in row] for row in np.asarray(gains)],
    }
    target = Path(directory)
    with _new_files(target) as folder:
        save_file(adapter.state_dict() | _originals(adapter), folder / _WEIGHTS)
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return target


def load_adapter(model: nn.Module, directory: str | os.PathLike[str]) -> ElasticAdapter:
    """Attach to `model` the adapter that `save_adapter` wrote.

    Raises:
        CheckpointError: a file is missing, truncated or no such adapter.
        ModelError: the adapter was made for another model; names the first difference.
    """
    folder = Path(directory)
    description = _read_description(folder)
    tensors = _read_tensors(folder)
    layout = description["layout"]
    _check_layout(model, layout)
    adapter = ElasticAdapter.attach(
        model,
        r_max=layout.r_max,
        kinds=layout.kinds,
        alpha=description["alpha"],
        dropout=description["dropout"],
        modules_to_save=description["modules_to_save"],
        task_type=description["task_type"],
    )
    adapter.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(_ORIGINAL)})
    adapter.set_ranks(description["ranks"])
    return adapter


def _originals(adapter: ElasticAdapter) -> dict[str, Tensor]:
    """Return the base model's own tensors of the modules that are trained in full."""
    own = tensors_by_name(adapter.model)
    names = [
        f"{name}.{part}"
        for name, module in adapter.extra_modules().items()
        for part in module.state_dict()
    ]
    return {_ORIGINAL + name: own[name].detach().clone() for name in names if name in own}


def _lora_config(adapter: ElasticAdapter, base_model_name: str | None) -> Any:
    """Return PEFT's description of the components in force."""
    from peft import LoraConfig  # noqa: PLC0415 takes seconds

    names = [p.name for p in adapter.layout.projections]
    pattern = {n: r for n, r in zip(names, adapter.rank_list, strict=True) if r}
    if not pattern:
        beside = "; only the head was trained" if adapter.extra_modules() else ""
        raise ConfigError(
            f"Every rank is 0, so there is nothing to export as LoRA{beside}. Choose ranks with at "
            f"least one above 0."
        )
    largest = max(pattern.values())
    base = adapter.model.get_base_model()
    own = adapter.model.peft_config["default"]
    patterns = {} if set(pattern.values()) == {largest} else pattern
    return LoraConfig(
        task_type=own.task_type,
        base_model_name_or_path=base_model_name or getattr(base, "name_or_path", None) or None,
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(patterns),
        alpha_pattern=dict(patterns),
        target_modules=list(pattern),
        modules_to_save=sorted(adapter.extra_modules()) or None,
        fan_in_fan_out=own.fan_in_fan_out,
        inference_mode=True,
    )


def _lora_tensors(adapter: ElasticAdapter) -> dict[str, Tensor]:
    """Return A = Q[:r] and B = s·P[:, :r] Λ[:r] of each projection, and the modules in full."""
    tensors: dict[str, Tensor] = {}
    for i, (p, r) in enumerate(zip(adapter.layout.projections, adapter.rank_list, strict=True)):
        if r == 0:
            continue
        P, lam, Q = adapter.components(i)
        prefix = f"base_model.model.{p.name}"
        tensors[f"{prefix}.lora_A.weight"] = Q[:r]
        tensors[f"{prefix}.lora_B.weight"] = adapter.scale * P[:, :r] * lam[:r]
    for name, module in adapter.extra_modules().items():
        for part, tensor in module.state_dict().items():
            tensors[f"base_model.model.{name}.{part}"] = tensor
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _read_description(folder: Path) -> dict[str, Any]:
    """Return what `save_adapter` wrote beside the tensors, with the layout restored."""
    path = folder / _DESCRIPTION
    try:
        raw = json.loads(path.read_text("utf-8"))
        if raw["format_version"] != _FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {raw['format_version']}, this version reads {_FORMAT_VERSION}."
            )
        projections = tuple(Projection(**p) for p in raw["projections"])
        keys = ("alpha", "dropout", "task_type", "modules_to_save", "ranks")
        layout = AdapterLayout(projections, raw["r_max"])
        return {key: raw[key] for key in keys} | {"layout": layout}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no readable adapter description ({error!r}); save the adapter again."
        ) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_adapter` wrote."""
    from safetensors import SafetensorError  # noqa: PLC0415 late, as is peft
    from safetensors.torch import load_file  # noqa: PLC0415

    path = folder / _WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is missing or truncated ({error}); copy or save the adapter again."
        ) from error


def _check_layout(model: nn.Module, layout: AdapterLayout) -> None:
    """Raise at the first projection that the model has otherwise."""
    kinds = set(layout.kinds)
    own = [p for p in find_projections(model, r_max=layout.r_max).projections if p.kind in kinds]
    for ours, theirs in zip(own, layout.projections, strict=False):
        if ours != theirs:
            raise ModelError(
                f"The adapter was made for another model: it has {_words(theirs)} where this "
                f"model has {_words(ours)}."
            )
    if len(own) != layout.n_projections:
        raise ModelError(
            f"The adapter was made for another model: it has {layout.n_projections} projections "
            f"of kinds {', '.join(layout.kinds)}, this model has {len(own)}."
        )


def _words(p: Projection) -> str:
    """Describe a projection in a message."""
    return f"{p.name} ({p.kind} of layer {p.layer}, {p.d_in} to {p.d_out})"


@contextmanager
def _new_files(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on success its files appear in `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        if not target.exists():
            folder.rename(target)
            return
        for file in sorted(folder.iterdir()):
            file.replace(target / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
