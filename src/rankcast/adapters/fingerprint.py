"""Fingerprints: of a base model's weights, and of the logits that an adapter on it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rankcast.codec.header import same_base
from rankcast.errors import ModelError

N_TOKENS = 16
N_LOGITS = 8
_ORIGINAL = {"base_layer", "original_module"}
"""Under which PEFT's layers keep what they stand in for."""
_WRAPPERS = {*_ORIGINAL, "token_adapter"}
"""Parts of names that PEFT puts in."""


def base_fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's frozen weights, in hexadecimal.

    Names, shapes and float32 values of everything below the model's `base_model_prefix` count, in
    the order of the names. What a task adds beside that (a classification head) does not, nor do
    adapters, so that the model has one fingerprint with and without them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(model), key=lambda pair: pair[0]):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}:{tuple(values.shape)};".encode())
        digest.update(values.flatten().numpy().data)  # of a gigabyte, perhaps: no copy
    return digest.hexdigest()


def check_base(model: nn.Module, expected: str | None, name: str | None) -> None:
    """Raise unless a model is the one that an adapter was made for; None cannot be checked.

    Raises:
        ModelError: another base model; names both.
    """
    if expected is None:
        return
    actual = base_fingerprint(model)
    if not same_base(actual, expected):
        own = getattr(model, "name_or_path", "") or type(model).__name__
        raise ModelError(
            f"The adapter was made for {name or 'another model'} (fingerprint {expected[:12]}…), "
            f"this is {own} ({actual[:12]}…). Load the base model that it names, in the same "
            f"version and precision."
        )


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the frozen parameters below the model's prefix by their names without adapters.

    Those that share their numbers (tied embeddings) come once, under the first name below it.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    prefix = getattr(base, "base_model_prefix", "")
    inside = f"{prefix}." if prefix and hasattr(base, prefix) else ""
    added = _added_by_peft(base)
    seen: set[int] = set()
    for name, tensor in base.named_parameters(remove_duplicate=False):
        if not name.startswith(inside) or name in added or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        parts = name.removeprefix(inside).split(".")
        yield ".".join(part for part in parts if part not in _WRAPPERS), tensor


def _added_by_peft(base: nn.Module) -> set[str]:
    """Return the names of the parameters that adapters of any method brought into a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 takes seconds
    from peft.utils.other import AuxiliaryTrainingWrapper  # noqa: PLC0415 likewise

    kinds: Any = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {
        f"{where}.{name}"
        for where, layer in base.named_modules()
        if isinstance(layer, kinds)
        for name, _ in layer.named_parameters(remove_duplicate=False)
        if _ORIGINAL.isdisjoint(name.split("."))
    }


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return the frozen parameters by name, with and without the model's prefix."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    prefix = getattr(base, "base_model_prefix", "")
    plain = dict(base_tensors(model))
    return plain | {f"{prefix}.{name}": tensor for name, tensor in plain.items() if prefix}


@torch.no_grad()
def logits_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return the first logits that a model gives for a fixed input, for `answers_alike`.

    The input is N_TOKENS token ids that follow from the size of the vocabulary alone.
    """
    ids, logits = _answer(model)
    return {"input_ids": ids, "logits": [round(float(x), 6) for x in logits]}


def answers_alike(model: nn.Module, fingerprint: dict[str, Any], tolerance: float = 1e-3) -> bool:
    """Whether a model gives the logits of a fingerprint, up to a share of their largest."""
    _, logits = _answer(model, fingerprint["input_ids"])
    expected = torch.tensor(fingerprint["logits"])
    if expected.shape != logits.shape:
        return False
    return bool((logits - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1.0))


def _answer(model: Any, ids: list[int] | None = None) -> tuple[list[int], Tensor]:
    if ids is None:
        size = int(model.config.get_text_config().vocab_size)
        ids = [(7919 * (i + 1)) % size for i in range(N_TOKENS)]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tokens = torch.tensor([ids], device=device)
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    finally:
        model.train(training)
    return ids, logits.float().cpu().reshape(-1)[-N_LOGITS:]
