"""Adapters on disk: a plain LoRA that PEFT, vLLM and others read, and our own lossless format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rankcast.adapters.arrays import array_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.fingerprint import base_fingerprint, tensors_by_name
from rankcast.adapters.projections import find_projections
from rankcast.codec.formats.native import DESCRIPTION, ORIGINAL, WEIGHTS, Description
from rankcast.codec.formats.peft import write_peft
from rankcast.codec.packing import Coding
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CheckpointError, CodecError, ConfigError, ModelError
from rankcast.files import new_folder
from rankcast.records import AdapterLayout, Projection


def export_lora(
    adapter: ElasticAdapter,
    directory: str | os.PathLike[str],
    ranks: ArrayLike | None = None,
    base_model_name: str | None = None,
) -> Path:
    """Write the active components as a plain LoRA directory for `PeftModel.from_pretrained`.

    Λ and the scale go into B, so that a scale of 1 is right (`write_peft`). Modules saved in full
    come along.

    Args:
        adapter: what to export.
        directory: made if absent; files of the same names in it are replaced.
        ranks: (N,) ranks to export; None takes the active ones.
        base_model_name: written into the configuration; None takes it from the model.

    Raises:
        ConfigError: every rank is 0, so there is no LoRA to write; or a rank out of range.
        ModelError: not one rank per projection.
    """
    with adapter.at_ranks(adapter.ranks if ranks is None else ranks):
        if not any(adapter.rank_list):
            beside = "; only the head was trained" if adapter.extra_modules() else ""
            raise ConfigError(
                f"Every rank is 0, so there is nothing to export as LoRA{beside}. Choose ranks "
                f"with at least one above 0."
            )
        factors = []
        for i, r in enumerate(adapter.rank_list):
            P, lam, Q = adapter.components(i)
            factors.append(Factors(array_of(adapter.scale * P[:, :r] * lam[:r]), array_of(Q[:r])))
    modules = {name: array_of(tensor) for name, tensor in adapter.extra_tensors().items()}
    projections = adapter.layout.projections
    saved = {"modules_to_save": sorted(adapter.extra_modules())} if modules else {}
    return write_peft(
        AdapterTensors(projections, tuple(factors), modules, dict.fromkeys(modules, "full"), saved),
        directory,
        base_model_name=base_model_name or base_name(adapter),
        task_type=task_of(adapter),
        fan_in_fan_out=adapter.model.peft_config["default"].fan_in_fan_out,
    )


def save_adapter(
    adapter: ElasticAdapter,
    directory: str | os.PathLike[str],
    *,
    coding: Coding | None = None,
    gains: ArrayLike | None = None,
) -> Path:
    """Write all components, the active ranks and the layout, to be read by `load_adapter`.

    Of modules that the base model has, such as a pooler, its own tensors are written, too, so that
    they can travel as a difference.

    Args:
        adapter: what to write.
        directory: made if absent; files of the same names in it are replaced.
        coding: steps at which `rankcast pack` is to code it; None if any will do.
        gains: (N, r_max) loss that each component removes; None if it is not known.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 late, as is peft

    description = Description(
        projections=adapter.layout.projections,
        r_max=adapter.layout.r_max,
        alpha=adapter.scale * adapter.layout.r_max,
        dropout=adapter.model.peft_config["default"].lora_dropout,
        task_type=task_of(adapter),
        modules_to_save=sorted(adapter.extra_modules()),
        ranks=adapter.ranks.tolist(),
        base_model=base_name(adapter),
        base_fingerprint=base_fingerprint(adapter.model),
        coding=coding,
        gains=None if gains is None else np.asarray(gains),
    )
    target = Path(directory)
    with new_folder(target) as folder:
        save_file(adapter.state_dict() | _originals(adapter), folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(description.to_json(), "utf-8")
    return target


def load_adapter(model: nn.Module, directory: str | os.PathLike[str]) -> ElasticAdapter:
    """Attach to `model` the adapter that `save_adapter` wrote.

    Raises:
        CheckpointError: a file is missing, truncated or no such adapter.
        ModelError: the adapter was made for another model; names the first difference.
    """
    folder = Path(directory)
    try:
        saved = Description.read(folder)
    except CodecError as error:
        raise CheckpointError(str(error)) from error
    tensors = _read_tensors(folder / WEIGHTS)
    layout = AdapterLayout(saved.projections, saved.r_max)
    _check_layout(model, layout)
    adapter = ElasticAdapter.attach(
        model,
        r_max=layout.r_max,
        kinds=layout.kinds,
        alpha=saved.alpha,
        dropout=saved.dropout,
        modules_to_save=saved.modules_to_save,
        task_type=saved.task_type,
    )
    adapter.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(ORIGINAL)})
    adapter.set_ranks(saved.ranks)
    return adapter


def base_name(adapter: ElasticAdapter) -> str | None:
    """Return the hub id or path of the base model, if it knows one."""
    return getattr(adapter.model.get_base_model(), "name_or_path", None) or None


def task_of(adapter: ElasticAdapter) -> str | None:
    """Return PEFT's word for the task; PEFT itself holds an enumeration or a text."""
    task: Any = adapter.model.peft_config["default"].task_type
    return None if task is None else str(getattr(task, "value", task))


def _originals(adapter: ElasticAdapter) -> dict[str, Tensor]:
    """Return the base model's own tensors of the modules that are trained in full."""
    own = tensors_by_name(adapter.model)
    names = [name for name in adapter.extra_tensors() if name in own]
    return {ORIGINAL + name: own[name].detach().clone() for name in names}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_adapter` wrote."""
    from safetensors import SafetensorError  # noqa: PLC0415 late, as is peft
    from safetensors.torch import load_file  # noqa: PLC0415

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
