"""Put the adapter of a container on a base model in memory."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from rankcast.adapters.fingerprint import check_base, tensors_by_name
from rankcast.codec.header import Header
from rankcast.codec.lora_files import write_peft
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ModelError


def install(model: nn.Module, tensors: AdapterTensors, header: Header) -> Any:
    """Return the model as a `peft.PeftModel` with a decoded adapter on it.

    Args:
        model: the frozen base model, without an adapter.
        tensors: what the chunks amount to.
        header: of the container that they came in.

    Raises:
        ModelError: another base model than the adapter was made for, or one without a tensor to
            which a difference would be added.
        CodecError: no component has arrived.
    """
    from peft import PeftModel  # noqa: PLC0415 takes seconds

    check_base(model, header.base.fingerprint, header.base.name)
    with tempfile.TemporaryDirectory() as folder:
        task_type = header.task.get("task_type")
        write_peft(in_full(tensors, model), folder, task_type=task_type)
        return PeftModel.from_pretrained(model, folder)


def in_full(tensors: AdapterTensors, model: nn.Module) -> AdapterTensors:
    """Return the adapter with the base model's tensors added to what travelled as a difference.

    Raises:
        ModelError: the base model lacks such a tensor, or has it in another shape.
    """
    own = tensors_by_name(model)
    modules = {}
    for name, values in tensors.modules.items():
        if tensors.carriage[name] == "difference":
            if name not in own or tuple(own[name].shape) != values.shape:
                raise ModelError(
                    f"The adapter adds {values.shape} numbers to {name}, which this model lacks or "
                    f"has in another shape; load the base model that the adapter names."
                )
            values = np.asarray(own[name].detach().float().cpu().numpy() + values, np.float32)  # noqa: PLW2901
        modules[name] = values
    return replace(tensors, modules=modules, carriage=dict.fromkeys(modules, "full"))
