"""An adapter in training, as the arrays that are coded, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rankcast.adapters.fingerprint import tensors_by_name
from rankcast.adapters.svd import ElasticAdapter
from rankcast.codec.quantise import Float32Array
from rankcast.codec.tensors import AdapterTensors, Carriage, Factors
from rankcast.errors import ModelError


def tensors_of(adapter: ElasticAdapter) -> AdapterTensors:
    """Return the components in force with s·Λ shared out evenly between both factors.

    After `canonical.balance` these are P and Q themselves. Tensors that the base model has, too,
    travel as a difference from it.

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
        factors.append(Factors(_array(P[:, :r] * root), _array(root[:, None] * Q[:r])))
    own = tensors_by_name(adapter.model)
    modules: dict[str, Float32Array] = {}
    carriage: dict[str, Carriage] = {}
    for name, module in adapter.extra_modules().items():
        for part, tensor in module.state_dict().items():
            full = f"{name}.{part}"
            original = own.get(full)
            modules[full] = _array(tensor if original is None else tensor - original)
            carriage[full] = "full" if original is None else "difference"
    return AdapterTensors(adapter.layout.projections, tuple(factors), modules, carriage)


@torch.no_grad()
def load_tensors(adapter: ElasticAdapter, tensors: AdapterTensors) -> None:
    """Put decoded or foreign factors into an adapter, components beyond their ranks at zero.

    Ranks in force become those of `tensors`; s·Λ becomes 1 and modules are replaced. An optimiser's
    moments no longer fit.

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
    own = tensors_by_name(adapter.model)
    parts = {
        f"{name}.{part}": tensor
        for name, module in adapter.extra_modules().items()
        for part, tensor in module.state_dict().items()
    }
    unknown = sorted(tensors.modules.keys() - parts.keys())
    if unknown:
        raise ModelError(f"This adapter has no module for {', '.join(unknown)}.")
    for (Q, lam, P), f in zip(adapter.factors(), tensors.factors, strict=True):
        for parameter in (Q, P):
            parameter.zero_()
        P[:, : f.rank] = torch.from_numpy(f.left).to(P)
        Q[: f.rank] = torch.from_numpy(f.right).to(Q)
        lam.fill_(1.0 / adapter.scale)
    for name, values in tensors.modules.items():
        value = torch.from_numpy(values).to(parts[name])
        if tensors.carriage[name] == "difference":
            value = value + own[name].to(value)
        parts[name].copy_(value)
    adapter.set_ranks(tensors.ranks)


def _array(tensor: Tensor) -> Float32Array:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
