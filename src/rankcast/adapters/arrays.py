"""An adapter in training as the arrays that are coded, and decoded arrays on a model in memory."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.fingerprint import check_base, tensors_by_name
from rankcast.codec.formats.peft import write_peft
from rankcast.codec.header import Header
from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Carriage, Factors
from rankcast.errors import ModelError


def balanced_tensors_of(adapter: ElasticAdapter) -> AdapterTensors:
    """Return the active components with both factors of each at the same norm.

    Tensors that the base model has, too, travel as a difference from it.
    """
    factors = []
    for i, r in enumerate(adapter.rank_list):
        P, lam, Q = adapter.components(i)
        left = array_of(adapter.scale * P[:, :r] * lam[:r])
        factors.append(Factors(left, array_of(Q[:r])).balanced())
    return AdapterTensors(adapter.layout.projections, tuple(factors), *_modules_of(adapter))


def tensors_of(adapter: ElasticAdapter) -> AdapterTensors:
    """Return the active components with s·Λ shared out evenly between both factors.

    With a balanced adapter (s·Λ = 1, as `load_tensors` leaves it) these are P and Q themselves.
    Tensors that the base model has, too, travel as a difference from it.

    Raises:
        ModelError: a singular value below zero, which has no root: balance the adapter first.
    """
    factors = []
    for i, r in enumerate(adapter.rank_list):
        P, lam, Q = adapter.components(i)
        size = adapter.scale * lam[:r]
        if bool((size < 0).any()):
            raise ModelError("A singular value is below zero; balance the adapter first.")
        root = size.sqrt()
        factors.append(Factors(array_of(P[:, :r] * root), array_of(root[:, None] * Q[:r])))
    return AdapterTensors(adapter.layout.projections, tuple(factors), *_modules_of(adapter))


def _modules_of(adapter: ElasticAdapter) -> tuple[dict[str, Float32Array], dict[str, Carriage]]:
    """Return the tensors beside the projections, and how each travels."""
    own = tensors_by_name(adapter.model)
    modules: dict[str, Float32Array] = {}
    carriage: dict[str, Carriage] = {}
    for name, tensor in adapter.extra_tensors().items():
        original = own.get(name)
        modules[name] = array_of(tensor if original is None else tensor - original)
        carriage[name] = "full" if original is None else "difference"
    return modules, carriage


@torch.no_grad()
def load_tensors(adapter: ElasticAdapter, tensors: AdapterTensors) -> None:
    """Put decoded or foreign factors into an adapter, components beyond their ranks at zero.

    The active ranks become those of `tensors`; s·Λ becomes 1 and modules are replaced. An
    optimiser's moments no longer fit.

    Raises:
        ModelError: other projections, a rank beyond r_max, or modules that the adapter lacks.
    """
    layout = adapter.layout
    if tensors.projections != layout.projections:
        raise ModelError("The factors are of other projections than this adapter's.")
    if tensors.ranks.size and tensors.ranks.max() > layout.r_max:
        raise ModelError(
            f"The factors have rank {tensors.ranks.max()}, this adapter has at most "
            f"{layout.r_max}; attach it with a larger r_max."
        )
    extra = adapter.extra_tensors()
    unknown = sorted(tensors.modules.keys() - extra.keys())
    if unknown:
        raise ModelError(f"This adapter has no module for {', '.join(unknown)}.")
    for i, factors in enumerate(tensors.factors):
        load_factors(adapter, i, factors)
    load_modules(adapter, tensors)
    adapter.set_ranks(tensors.ranks)


@torch.no_grad()
def load_factors(adapter: ElasticAdapter, i: int, factors: Factors) -> None:
    """Put factors into one projection, components beyond their rank at zero; s·Λ becomes 1.

    The active ranks stay as they are.
    """
    Q, lam, P = adapter.factors()[i]
    for parameter in (Q, P):
        parameter.zero_()
    P[:, : factors.rank] = torch.from_numpy(factors.left).to(P)
    Q[: factors.rank] = torch.from_numpy(factors.right).to(Q)
    lam.fill_(1.0 / adapter.scale)


@torch.no_grad()
def load_modules(adapter: ElasticAdapter, tensors: AdapterTensors) -> None:
    """Put decoded tensors into the modules beside the projections."""
    own, extra = tensors_by_name(adapter.model), adapter.extra_tensors()
    for name, values in tensors.modules.items():
        value = torch.from_numpy(values).to(extra[name])
        if tensors.carriage[name] == "difference":
            value = value + own[name].to(value)
        extra[name].copy_(value)


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
        write_peft(in_full(tensors, model), folder, task_type=header.task.get("task_type"))
        return PeftModel.from_pretrained(model, folder)


def in_full(tensors: AdapterTensors, model: nn.Module) -> AdapterTensors:
    """Return the adapter with the base model's tensors added to what travelled as a difference.

    Raises:
        ModelError: the base model lacks such a tensor, or has it in another shape.
    """
    relative = [name for name, how in tensors.carriage.items() if how == "difference"]
    if not relative:
        return tensors
    own, modules = tensors_by_name(model), dict(tensors.modules)
    for name in relative:
        values = modules[name]
        if name not in own or tuple(own[name].shape) != values.shape:
            raise ModelError(
                f"The adapter adds {values.shape} numbers to {name}, which this model lacks or "
                f"has in another shape; load the base model that the adapter names."
            )
        modules[name] = np.asarray(array_of(own[name]) + values, np.float32)
    carriage = {**tensors.carriage, **dict.fromkeys(relative, "full")}
    return replace(tensors, modules=modules, carriage=carriage)


def array_of(tensor: Tensor) -> Float32Array:
    """Return a tensor as a float32 array."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
