"""PEFT's AdaLoRA layers around the projections of a model, made elastic (Eq. 2).

`wrap` puts them there; `make_elastic` replaces the forward pass of each by W·x + s·P Λ Q·x with as
many components as a list of ranks says, which all layers share and which may change at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

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
    # PEFT's forward adds its own regulariser over all components, active or not.
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


@dataclass(eq=False, slots=True)
class ElasticState:
    """State that an adapted layer shares with the others.

    Attributes:
        ranks: active rank of every projection; one list, shared by all layers.
        index: this layer's place in it.
        scale: s, the factor on P Λ Q.
        adapter: name of the adapter in PEFT.
        step: if set, P and Q are rounded to multiples of it and s·Λ is taken as 1.
    """

    ranks: list[int]
    index: int
    scale: float
    adapter: str
    step: float | None = None


def make_elastic(layer: Any, state: ElasticState) -> None:
    """Let a PEFT AdaLoRA layer compute only its active components.

    P is stored with its columns contiguous, so that a prefix of components is one block of memory
    in P and in Q alike.
    """
    left: nn.Parameter = layer.lora_B[state.adapter]
    left.data = left.data.t().contiguous().t()
    layer.elastic = state
    layer.forward = MethodType(_forward, layer)
    layer.get_delta_weight = MethodType(_delta_weight, layer)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return base(x) + s·P[:, :r] Λ[:r] Q[:r] x, exactly base(x) at rank 0."""
    state: ElasticState = self.elastic
    rank = state.ranks[state.index]
    if self.disable_adapters:
        if self.merged:
            self.unmerge()
        return self.base_layer(x, *args, **kwargs)
    result: Tensor = self.base_layer(x, *args, **kwargs)
    if rank == 0 or self.merged:
        return result
    name = state.adapter
    Q, lam, P = self.lora_A[name], self.lora_E[name], self.lora_B[name]
    if rank < Q.shape[0]:
        Q, lam, P = Q[:rank], lam[:rank], P[:, :rank]
    if not torch.is_autocast_enabled(x.device.type):  # which would cast it back: two large copies
        x = self._cast_input_dtype(x, Q.dtype)
    x = self.lora_dropout[name](x)
    if state.step is not None:
        update = linear(linear(x, rounded(Q, state.step)), rounded(P, state.step))
        return result + update.to(result.dtype)
    weights = lam.view(-1) if state.scale == 1.0 else lam.view(-1) * state.scale
    update = linear(linear(x, Q) * weights, P)
    return result + update.to(result.dtype)


def rounded(weights: Tensor, step: float) -> Tensor:
    """Return weights rounded to multiples of a step, with the gradient of the unrounded ones.

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).
    """
    return weights + (torch.round(weights / step) * step - weights).detach()


def _delta_weight(self: Any, adapter: str) -> Tensor:
    """Return s·P Λ Q of the active components, laid out as the base weight (for merging)."""
    state: ElasticState = self.elastic
    rank = state.ranks[state.index]
    Q, lam, P = self.lora_A[adapter], self.lora_E[adapter], self.lora_B[adapter]
    delta = P[:, :rank] @ (lam[:rank] * Q[:rank]) * state.scale
    return delta.t() if self.fan_in_fan_out else delta


def initialise(
    Q: Tensor, lam: Tensor, P: Tensor, *, std: float | None, generator: torch.Generator
) -> None:
    """Set P to zero and Λ to one and draw Q, so that the update starts at zero and can grow.

    Differs from the paper: AdaLoRA draws P and Q and starts with Λ = 0, after which only Λ has a
    gradient and a step moves the weights along random directions. Starting with P = 0 learns
    several times faster at the same learning rate, because P points where the loss falls at once.
    `std` None draws Q with orthonormal rows, as Eq. 3 asks, else from N(0, std²).
    """
    r, d_in = Q.shape
    rows = torch.randn(r, d_in, generator=generator)
    if std is not None:
        rows = rows * std
    elif r <= d_in:
        rows = torch.linalg.qr(rows.mT).Q.mT
    else:
        rows = torch.nn.functional.normalize(rows)
    with torch.no_grad():
        Q.copy_(rows)
        lam.fill_(1.0)
        P.zero_()


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
    """Return PEFT's word for the task that the model's class is made for, if it has one."""
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
