"""Whether a model with an adapter in it answers as that adapter should (needs torch and PEFT).

What was published carries the logits of the whole adapter. Those of a shorter prefix are worked out
here, from the decoded tensors and the base model without PEFT's layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankcast.adapters.fingerprint import answers_alike, logits_fingerprint
from rankcast.adapters.install import in_full
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.delivery.edge.activation import Candidate
from rankcast.errors import DeliveryError

_MOST_IDS = 4096
_TOLERANCE = 1e-2
"""Of a weight update that was read back from the model, as a share of its norm; half precision."""


def prove(model: Any, name: str, candidate: Candidate, tolerance: float) -> None:
    """Check weights and logits of the adapter in force.

    Args:
        model: of PEFT.
        name: of the adapter in it; it is the active one.
        candidate: what it should be.
        tolerance: of logits, as a share of their largest.

    Raises:
        DeliveryError: the model does not answer as it should.
    """
    label, published = candidate.release.label, candidate.container.header.fingerprint
    _compare_weights(model, name, candidate)
    if candidate.container.is_whole and published is not None:
        _check_ids(model, published)
        if not answers_alike(model, dict(published), tolerance):
            raise DeliveryError(
                f"With {label} the model does not answer as it did where the adapter was "
                f"published. Check that it has the same version, precision and head."
            )
    found = np.array(logits_fingerprint(model)["logits"])  # before anything switches adapters
    if not np.isfinite(found).all():
        raise DeliveryError(f"With {label} the model answers NaN or infinity.")
    expected = np.array(_expected(model, name, candidate.tensors)["logits"])
    if not np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1.0):
        raise DeliveryError(
            f"With {label} in force the model does not answer as base model and adapter together "
            f"should: PEFT or the model computes something else."
        )


def _expected(model: Any, name: str, tensors: AdapterTensors) -> dict[str, Any]:
    """Return the fingerprint that base model and adapter should give together."""
    base = model.get_base_model()
    with ExitStack() as stack:
        stack.enter_context(_resting(model, name))
        for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
            if factors.rank:
                layer = base.get_submodule(projection.name).base_layer
                stack.callback(layer.register_forward_hook(_adding(factors)).remove)
        stack.enter_context(_with_modules(base, in_full(tensors, model).modules))
        return logits_fingerprint(base)


def _adding(factors: Factors) -> Any:
    """Return a hook of a linear layer that adds ΔW x to what it gives."""

    def add(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        del layer
        left = torch.as_tensor(factors.left, dtype=out.dtype, device=out.device)
        right = torch.as_tensor(factors.right, dtype=out.dtype, device=out.device)
        return out + given[0].to(out.dtype) @ right.T @ left.T

    return add


@contextmanager
def _resting(model: Any, name: str) -> Iterator[None]:
    model.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        model.base_model.enable_adapter_layers()
        model.set_adapter(name, inference_mode=True)


@contextmanager
def _with_modules(base: nn.Module, modules: Mapping[str, Any]) -> Iterator[None]:
    """Let a model's own tensors be those that travelled with the adapter, until the block ends."""
    own = {name.replace(".original_module.", "."): p for name, p in base.named_parameters()}
    before = {name: own[name].data for name in modules}
    try:
        for name, values in modules.items():
            own[name].data = torch.as_tensor(values).to(before[name])
        yield
    finally:
        for name, data in before.items():
            own[name].data = data


def _compare_weights(model: Any, name: str, candidate: Candidate) -> None:
    """Raise unless every projection of the model adds the weights that were decoded.

    Raises:
        DeliveryError: one does not.
    """
    base, tensors = model.get_base_model(), candidate.tensors
    for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
        if not factors.rank:
            continue
        layer = base.get_submodule(projection.name)
        left = layer.lora_B[name].weight.detach().float().cpu().numpy()
        right = layer.lora_A[name].weight.detach().float().cpu().numpy()
        expected = factors.delta_weight()
        error = np.linalg.norm(layer.scaling[name] * (left @ right) - expected)
        if not error <= _TOLERANCE * np.linalg.norm(expected):
            raise DeliveryError(
                f"{projection.name} did not take the weights of {candidate.release.label}."
            )


def _check_ids(model: Any, fingerprint: Mapping[str, Any]) -> None:
    """Refuse token ids that this model does not know, before a device crashes on them.

    Raises:
        DeliveryError: no list of tokens of the vocabulary.
    """
    size = int(model.config.get_text_config().vocab_size)
    ids = fingerprint.get("input_ids")
    if (
        not isinstance(ids, list)
        or not 0 < len(ids) <= _MOST_IDS
        or not all(isinstance(i, int) and 0 <= i < size for i in ids)
        or not isinstance(fingerprint.get("logits"), list)
    ):
        raise DeliveryError(
            "The proof that came with the adapter is none that this model can repeat: its "
            "tokens are not in the vocabulary. Ask whoever published."
        )
