"""Adapters that PEFT initialises with a part of the base model, such as PiSSA's.

As it loads one, PEFT takes the initial adapter out of the base model again. What it does to the
model as everybody has it is therefore the difference to that initial adapter, of twice the rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from rankcast.codec.formats.peft_config import rank_of, scale_of
from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import Factors
from rankcast.errors import CodecError

COMPUTED = ("pissa", "olora")
"""Initialisations that follow from the base model's weights alone."""
_TAKEN_OUT = re.compile(r"pissa|pissa_niter_\d+|olora|corda|lora_ga", re.IGNORECASE)
"""Those after which PEFT leaves the base model's weights less the scaled initial adapter. The
decomposition of `pissa_niter_N` is drawn at random, and another one each time."""


class Weights(Protocol):
    """A base model: `rankcast.codec.formats.base_folder.BaseFolder`."""

    def weight(self, name: str, /) -> Float32Array:
        """Return the weight of a module, as it is stored."""
        ...


def check_source(config: Mapping[str, Any], base: object, initial: object) -> None:
    """Raise unless the initial adapter can be had.

    Raises:
        CodecError: names the initialisation and what would help.
    """
    how = str(config["init_lora_weights"])
    if not _TAKEN_OUT.fullmatch(how):
        quantised = "LoftQ quantises the base model" if how == "loftq" else "it is not known"
        raise CodecError(
            f"The adapter has init_lora_weights: {how}, and {quantised}, so it cannot be carried "
            f"over to the unchanged one. Save the model that it was trained on as a base model of "
            f"its own, and the adapter with init_lora_weights: true."
        )
    is_computed = how.lower() in COMPUTED
    if initial is not None or (base is not None and is_computed):
        return
    of_base = "the base model (--base-model), or " if is_computed else ""
    raise CodecError(
        f"The adapter has init_lora_weights: {how}, so PEFT changes the base model's weights as it "
        f"loads it. Give {of_base}the adapter as it was before training (--initial-adapter): it is "
        f"packed as the difference, for the unchanged model. Or save it from training with "
        f"save_pretrained(..., path_initial_model_for_weight_conversion=...)."
    )


def computed(config: Mapping[str, Any], module: str, trained: Factors, base: Weights) -> Factors:
    """Return the initial adapter of a module, scale included, from the base model's weight.

    Both factors are as PEFT puts them into the adapter.

    Raises:
        CodecError: the weight has another shape than the adapter.
        ModelError: the model has no such weight.
    """
    weight = base.weight(module)
    outer = trained.left.shape[0], trained.right.shape[1]
    transposed = weight.shape == outer[::-1] and (
        outer[0] != outer[1] or bool(config.get("fan_in_fan_out"))
    )
    if weight.shape != (outer[::-1] if transposed else outer):
        raise CodecError(
            f"{module} maps {outer[1]} to {outer[0]} in the adapter, and the base model's weight "
            f"has the shape {weight.shape}. Name the model that the adapter was trained on."
        )
    rank = rank_of(config, module)
    if str(config["init_lora_weights"]).lower() == "pissa":
        u, s, vt = np.linalg.svd(weight.T if transposed else weight, full_matrices=False)
        return Factors(u[:, :rank] * s[:rank], vt[:rank])
    q, r = np.linalg.qr(weight)  # as it is stored, be it input-first
    return Factors(np.float32(scale_of(config, module)) * q[:, :rank], r[:rank])


def difference(config: Mapping[str, Any], trained: Factors, initial: Factors) -> Factors:
    """Return an adapter less the one that training began with, as PEFT takes that out of weights.

    Of weights that are stored input-first, PEFT takes OLoRA's transposed.

    Raises:
        CodecError: the two are of different maps.
    """
    left, right = initial.left, initial.right
    if str(config["init_lora_weights"]).lower() == "olora" and config.get("fan_in_fan_out"):
        left, right = right.T, left.T
    if left.shape[0] != trained.left.shape[0] or right.shape[1] != trained.right.shape[1]:
        raise CodecError("The initial adapter is of another model: its factors have other widths.")
    return Factors(np.hstack([trained.left, -left]), np.vstack([trained.right, right]))
