"""A container, or a run's plan for a link, in the formats of other programs.

`Container.export` writes what needs no torch. Here is the rest: merged weights, modules that travel
as a difference from the base model, and runs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rankcast.codec.container import Container, Format
from rankcast.codec.header import Header
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ConfigError
from rankcast.records import Plan

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def export(
    container: Container,
    format: Format,  # noqa: A002 the word for it
    output: str | os.PathLike[str],
    *,
    base_model: str | os.PathLike[str] | None = None,
) -> AdapterTensors:
    """Write the adapter of a container for another program and return what was written.

    Args:
        container: see `Container.prefix` for fewer chunks.
        format: see `rankcast.codec.container.Format`.
        output: folder to write; for `gguf` and `rcast` the file.
        base_model: folder of the base model: for `gguf` (its config.json), for `merged`, and where
            a module travels as a difference.

    Raises:
        CodecError: damaged chunks, or an adapter that the format cannot take.
        ConfigError: a format that needs the base model, and none was named.
        ModelError: another base model than the adapter was made for.
    """
    tensors, header = container.tensors(), container.header
    if format == "merged":
        _write_merged(_needed(base_model, format), tensors, header, Path(output))
        return tensors
    if format in ("peft", "vllm") and "difference" in tensors.carriage.values():
        tensors = in_full_on(_needed(base_model, format), tensors, header)
    container.export(format, output, base_model=base_model, tensors=tensors)
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

    model = _model(folder, header)
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
    """Write the base model with the adapter merged into its weights, and its tokenizer."""
    from rankcast.adapters.arrays import install  # noqa: PLC0415 needs torch

    model = install(_model(folder, header), tensors, header)
    model.merge_and_unload().save_pretrained(output)
    for name in _TOKENIZER:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)


def _model(folder: Path, header: Header) -> Any:
    """Load the base model with a head for the adapter's task.

    Raises:
        ConfigError: no model in the folder.
    """
    import transformers  # noqa: PLC0415 takes seconds

    classes: dict[Any, Any] = {
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
    }
    cls = classes.get(header.task.get("task_type"), transformers.AutoModel)
    head = [m.shape for m in header.modules if len(m.shape) == 2]
    labels = {"num_labels": head[-1][0]} if head and cls is classes["SEQ_CLS"] else {}
    try:
        return cls.from_pretrained(folder, ignore_mismatched_sizes=bool(labels), **labels).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no base model that can be loaded ({error}).") from error
