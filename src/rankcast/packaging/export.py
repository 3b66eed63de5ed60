"""A container, or a run's plan for a link, in the formats of other programs.

`Container.export` writes what needs no torch. Here is the rest: merged weights, modules that travel
as a difference from the base model, and runs.
"""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankcast.codec.container import Container, Format
from rankcast.codec.header import Header
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import CodecError, ConfigError
from rankcast.files import disk_errors, new_folder
from rankcast.packaging.base_model import Adapted, explained, load_base
from rankcast.records import Plan

_BESIDE = (".json", ".jsonl", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe", ".spm")
"""Endings of what belongs to a model beside its weights: tokenizer, processor, templates, …"""
_NOT_BESIDE = ("config.json", "readme", "licen", "notice", "trainer_state", "training_args")


def export(
    container: Container,
    format: Format,  # noqa: A002 the word for it
    output: str | os.PathLike[str],
    *,
    base_model: str | os.PathLike[str] | None = None,
    base_gguf: str | os.PathLike[str] | None = None,
) -> AdapterTensors:
    """Write the adapter of a container for another program and return what was written.

    Args:
        container: see `Container.prefix` for fewer chunks.
        format: see `rankcast.codec.container.Format`.
        output: folder to write; for `gguf` and `rcast` the file.
        base_model: folder of the base model: for `gguf` (its config.json), for `merged`, and where
            a module travels as a difference.
        base_gguf: a GGUF of the base model, for `gguf`; see `Container.export`.

    Raises:
        CodecError: damaged chunks, or an adapter that the format cannot take.
        ConfigError: a format that needs the base model, and none was named or can be loaded; or a
            merged model for a folder that is not empty.
        ModelError: another base model than the adapter was made for, or one that cannot be merged.
        UnavailableError: the disk is full.
    """
    tensors, header = container.tensors(), container.header
    if format == "merged":
        _write_merged(_needed(base_model, format), tensors, header, Path(output))
        return tensors
    if format in ("peft", "vllm") and "difference" in tensors.carriage.values():
        tensors = in_full_on(_needed(base_model, format), tensors, header)
    container.export(format, output, base_model=base_model, base_gguf=base_gguf, tensors=tensors)
    return tensors


def export_run(
    run: Path,
    output: Path,
    snr_db: float,
    bandwidth_hz: float | None = None,
    deadline_s: float | None = None,
) -> Plan:
    """Write a run's plan for a link as a LoRA for PEFT, and return the plan.

    Args:
        run: folder of a trained run.
        output: folder to write.
        snr_db: received Es/N0 [dB].
        bandwidth_hz: of the link [Hz]; the run's own if None.
        deadline_s: time in which the plan has to arrive [s]; the run's own if None.

    Raises:
        CheckpointError: no such run.
        ConfigError: a plan without components.
        InfeasibleDeadlineError: not even the smallest plan arrives in time.
    """
    from rankcast.adapters.export import export_lora  # noqa: PLC0415 needs torch
    from rankcast.training.folder import RunFolder  # noqa: PLC0415
    from rankcast.training.run import Session  # noqa: PLC0415

    folder = RunFolder(run)
    session = Session(folder.load_config())
    session.load(folder)
    planner = session.planner
    plan = planner.plan(planner.link(snr_db, bandwidth_hz, deadline_s))
    export_lora(session.learner.adapter, output, plan.ranks)
    return plan


def in_full_on(folder: Path, tensors: AdapterTensors, header: Header) -> AdapterTensors:
    """Return the adapter with the base model's tensors added to differences.

    Raises:
        ConfigError: no model in the folder.
        ModelError: another base model than the adapter was made for.
    """
    from rankcast.adapters.arrays import in_full  # noqa: PLC0415 needs torch
    from rankcast.adapters.fingerprint import check_base  # noqa: PLC0415

    model = load_base(folder, Adapted.of(header))
    check_base(model, header.base.fingerprint, header.base.name)
    return in_full(tensors, model)


def _needed(base_model: str | os.PathLike[str] | None, form: Format) -> Path:
    if base_model is None:
        raise ConfigError(
            f"The base model is needed to write this adapter as {form}: name its folder with "
            f"--base-model."
        )
    return Path(base_model)


def _write_merged(folder: Path, tensors: AdapterTensors, header: Header, output: Path) -> None:
    """Write the base model with the adapter merged into its weights, and what belongs to it."""
    from transformers import GenerationConfig  # noqa: PLC0415 takes seconds

    from rankcast.adapters.arrays import install  # noqa: PLC0415 needs torch

    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty, and a model needs a folder of its own.")
    model = load_base(folder, Adapted.of(header))
    with explained("The adapter cannot be merged"), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")  # not found in the model
        model = _merged(install(model, tensors, header))
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig()  # checked as it is saved; theirs is copied
    with explained(f"{output} cannot be written"), disk_errors(output), new_folder(output) as new:
        model.save_pretrained(new)
        for path in _beside(folder):
            target = new / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _merged(adapted: Any) -> Any:
    """Return a PEFT model's base with the adapter in its weights.

    An embedding or output layer that was adapted and is tied to others gets weights of its own.

    Raises:
        CodecError: a method that cannot be merged.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper  # noqa: PLC0415 takes seconds
    from torch import nn  # noqa: PLC0415 likewise

    before, config = _uses(adapted), adapted.active_peft_config
    _untie(adapted, before)
    try:
        model = None if getattr(config, "layer_replication", None) else adapted.merge_and_unload()
    except (AttributeError, NotImplementedError):
        model = None
    if model is None:
        raise CodecError(
            f"An adapter of the method {config.peft_type.value}, or with layer_replication, cannot "
            f"be merged into weights. Export it with --format peft."
        )
    for name, module in list(model.named_modules()):  # LN tuning forgets the head's
        if isinstance(module, AuxiliaryTrainingWrapper):
            own = module.unload_and_optionally_merge_module(True, False, None)
            model.set_submodule(name, own)
    after = _uses(model)
    untied = any(0 < after[p] < before[p] for p in after)
    for module in model.modules() if untied else ():  # transformers saves nothing that is tied
        for name, p in module.named_parameters(recurse=False):
            if before[p] > 1:
                setattr(module, name, nn.Parameter(p.detach().clone(), requires_grad=False))
    head, embedding = _ends(model)
    if head is not None and head.weight is not embedding.weight:
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    return model


def _uses(model: Any) -> Counter[Any]:
    """Return in how many places each parameter of a model is."""
    return Counter(p for _, p in model.named_parameters(remove_duplicate=False))


def _untie(adapted: Any, uses: Counter[Any]) -> None:
    """Give adapted modules whose weights are others', too, weights of their own."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer  # noqa: PLC0415 takes seconds
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 likewise

    for module in list(adapted.modules()):
        layer = getattr(module, "base_layer", None)
        inner = layer is None or isinstance(layer, BaseTunerLayer)
        if inner or isinstance(module, TrainableTokensLayer):  # PEFT keeps the latter tied
            continue
        if uses[getattr(layer, "weight", None)] > 1:
            module.base_layer = copy.deepcopy(layer)


def _ends(model: Any) -> tuple[Any, Any]:
    """Return a language model's output layer and its embedding; no output layer for others."""
    try:
        return model.get_output_embeddings(), model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None, None


def _beside(folder: Path) -> Iterator[Path]:
    """Yield the files of a model that are no weights, and folders' that hold nothing else."""
    for path in sorted(folder.iterdir()):
        inner = sorted(path.iterdir()) if path.is_dir() and path.name[0] != "." else []
        if inner and all(p.is_file() and p.suffix in _BESIDE for p in inner):
            yield from inner
        name = path.name.lower()
        known = path.suffix in _BESIDE and not name.endswith(".index.json")
        if path.is_file() and known and not name.startswith(_NOT_BESIDE):
            yield path
