"""A `.rcast` file, or a prefix of it, in the formats of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankcast.codec.gguf_files import write_gguf
from rankcast.codec.header import Header
from rankcast.codec.lora_files import write_peft
from rankcast.codec.packing import unpack
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ConfigError
from rankcast.run.containers import read_file
from rankcast.run.file_options import Export


def export_file(command: Export) -> str:
    """Write what the options say and return a line that says what was written.

    Raises:
        CodecError: a damaged file, or an adapter that the format cannot take.
        ConfigError: a format that needs the base model, and none was named.
        ModelError: another base model than the adapter was made for.
    """
    assert command.file is not None
    container = read_file(command.file, prefix=command.prefix)
    tensors = unpack(container, command.chunks)
    used = len(container.chunks) if command.chunks is None else command.chunks
    said = f"{used} of {len(container.header.chunks)} chunks, mean rank {tensors.ranks.mean():.2f}"
    if command.format == "merged":
        _write_merged(command, tensors, container.header)
        return f"{command.output}: the model with the adapter merged in, from {said}."
    if command.format == "gguf":
        config = base_config_of(_needed(command))
        command.output.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(tensors, command.output, config)
        return f"{command.output}: GGUF LoRA of {said}."
    if "difference" in tensors.carriage.values():
        tensors = in_full_on(_needed(command), tensors, container.header)
    write_peft(
        tensors,
        command.output,
        base_model_name=container.header.base.name,
        task_type=container.header.task.get("task_type"),
        uniform_rank=command.format == "vllm",
    )
    return f"{command.output}: LoRA of {said}."


def _needed(command: Export) -> Path:
    if command.base_model is None:
        raise ConfigError(
            f"The base model is needed to write this adapter as {command.format}: name its folder "
            f"with --base-model."
        )
    return command.base_model


def base_config_of(folder: Path) -> dict[str, Any]:
    """Return `config.json` of a base model.

    Raises:
        ConfigError: there is none that can be read.
    """
    path = folder / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no readable configuration of a model ({error}).") from error


def in_full_on(folder: Path, tensors: AdapterTensors, header: Header) -> AdapterTensors:
    """Return the adapter with the base model's tensors added to differences.

    Raises:
        ConfigError: no model in the folder.
        ModelError: another base model than the adapter was made for.
    """
    from rankcast.adapters.fingerprint import check_base  # noqa: PLC0415
    from rankcast.adapters.install import in_full  # noqa: PLC0415

    model = _model(folder, header)
    check_base(model, header.base.fingerprint, header.base.name)
    return in_full(tensors, model)


def _write_merged(command: Export, tensors: AdapterTensors, header: Header) -> None:
    """Write the base model with the adapter merged into its weights, and its tokenizer."""
    from rankcast.adapters.install import install  # noqa: PLC0415

    folder = _needed(command)
    model = install(_model(folder, header), tensors, header)
    model.merge_and_unload().save_pretrained(command.output)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (folder / name).is_file():
            (command.output / name).write_bytes((folder / name).read_bytes())


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
    found = classes.get(header.task.get("task_type"), transformers.AutoModel)
    head = [m.shape for m in header.modules if len(m.shape) == 2]
    labels = {"num_labels": head[-1][0]} if head and found is classes["SEQ_CLS"] else {}
    try:
        return found.from_pretrained(folder, ignore_mismatched_sizes=bool(labels), **labels).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no base model that can be loaded ({error}).") from error
