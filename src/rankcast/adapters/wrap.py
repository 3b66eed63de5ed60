"""Put PEFT's AdaLoRA layers around the projections of a model and make them elastic."""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn

from rankcast.adapters.layer import ElasticState, initialise, make_elastic
from rankcast.errors import ConfigError, ModelError, nearest
from rankcast.records import AdapterLayout

ADAPTER_NAME = "default"

_TASK_OF_CLASS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
_TASKS_WITH_A_HEAD = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def wrap(
    model: nn.Module,
    layout: AdapterLayout,
    *,
    ranks: list[int],
    alpha: float,
    dropout: float,
    modules_to_save: Sequence[str] | None,
    task_type: str | None,
    init_std: float | None,
    seed: int,
) -> tuple[nn.Module, list[nn.Module]]:
    """Return the PEFT model and its N adapted layers, which read `ranks` at every forward pass.

    Raises:
        ModelError: the model already carries a PEFT adapter.
        ConfigError: an unknown task or module to save.
    """
    from peft import AdaLoraConfig, get_peft_model  # noqa: PLC0415 takes seconds

    _refuse_adapted(model)
    task = _task_of(model) if task_type is None else _known_task(task_type)
    heads = _heads(model, task) if modules_to_save is None else _existing(model, modules_to_save)
    config = AdaLoraConfig(
        task_type=task,  # pyright: ignore[reportArgumentType]
        init_r=layout.r_max,
        target_r=layout.r_max,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=dropout,
        target_modules=[p.name for p in layout.projections],
        modules_to_save=heads or None,
        fan_in_fan_out=_any_conv1d(model, layout),
        orth_reg_weight=0.0,
        # PEFT's own rank allocator never gets beyond its warm-up.
        tinit=2**30,
        tfinal=1,
        total_step=2**31,
    )
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        wrapped = get_peft_model(model, config, adapter_name=ADAPTER_NAME)
    tuner: Any = wrapped.base_model
    # PEFT's forward adds its own regulariser over all components, in force or not.
    tuner.forward = MethodType(_plain_forward, tuner)
    layers = [tuner.model.get_submodule(p.name) for p in layout.projections]
    generator = torch.Generator().manual_seed(seed)
    for i, layer in enumerate(layers):
        make_elastic(layer, ElasticState(ranks, i, alpha / layout.r_max, ADAPTER_NAME))
        factors = (getattr(layer, part)[ADAPTER_NAME] for part in ("lora_A", "lora_E", "lora_B"))
        initialise(*factors, std=init_std, generator=generator)
    return wrapped, layers


def extra_modules(model: nn.Module, adapter: str) -> dict[str, nn.Module]:
    """Return the modules trained and saved in full, by their name in the base model."""
    from peft.utils import ModulesToSaveWrapper  # noqa: PLC0415 takes seconds

    base: Any = model
    return {
        name: module.modules_to_save[adapter]
        for name, module in base.base_model.model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }


def _plain_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the wrapped model and add nothing."""
    return self.model(*args, **kwargs)


def _refuse_adapted(model: nn.Module) -> None:
    """Raise if PEFT has already been at this model."""
    if hasattr(model, "get_base_model") or any(hasattr(m, "lora_A") for m in model.modules()):
        raise ModelError(
            "This model already carries a PEFT adapter. Merge it with merge_and_unload() or give "
            "the base model."
        )


def _task_of(model: nn.Module) -> str | None:
    """Return PEFT's word for what the model's class says it does, if it says."""
    name = type(model).__name__
    return next((task for ending, task in _TASK_OF_CLASS.items() if name.endswith(ending)), None)


def _known_task(task: str) -> str:
    """Return `task` if PEFT knows it."""
    from peft import TaskType  # noqa: PLC0415 takes seconds

    known = [t.value for t in TaskType]
    if task not in known:
        raise ConfigError(
            f"Unknown task type {task!r}{nearest(task, known)}. PEFT knows {', '.join(known)}."
        )
    return task


def _heads(model: nn.Module, task: str | None) -> list[str]:
    """Return the names of a classifier's modules outside its backbone."""
    if task not in _TASKS_WITH_A_HEAD:
        return []
    backbone = getattr(model, "base_model_prefix", "")
    return [
        name
        for name, child in model.named_children()
        if name != backbone and next(child.parameters(), None) is not None
    ]


def _existing(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return `names` if each is a module of the model, in full or by its ending."""
    known = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(k == name or k.endswith(f".{name}") for k in known):
            raise ConfigError(f"The model has no module {name!r}{nearest(name, known)}.")
    return list(names)


def _any_conv1d(model: nn.Module, layout: AdapterLayout) -> bool:
    """Whether the projections keep their weights input-first, as GPT-2's do."""
    return any(hasattr(model.get_submodule(p.name), "nf") for p in layout.projections)
