"""In which number format a model runs: a choice of each learner, not of the process."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The number formats of a model on a device; weights and optimiser are float32.

    Attributes:
        device_type: `cpu`, `cuda`, and so on.
        training: format of the forward pass in training; None for float32.
        judging: likewise outside training.
    """

    device_type: str
    training: torch.dtype | None = None
    judging: torch.dtype | None = None

    def autocast(self, *, training: bool) -> Any:
        """Return the context in which the model runs."""
        dtype = self.training if training else self.judging
        return nullcontext() if dtype is None else torch.autocast(self.device_type, dtype)

    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """Return what keeps small gradients of fp16 from vanishing; None for other formats."""
        if self.training is not torch.float16:
            return None
        return torch.amp.GradScaler(self.device_type)


def precision_for(config: FinetuneConfig, device: torch.device, *, is_causal: bool) -> Precision:
    """Return the formats that a configuration asks for.

    A language model on a CPU that multiplies in bfloat16 trains in it by itself: a step of 270
    million weights takes two thirds of the processor time then. It is judged in float32, and other
    models stay in float32 altogether, so that results do not depend on the processor.

    Raises:
        ConfigError: the device cannot do it.
    """
    wanted = config.mixed_precision
    if wanted == "auto":
        if device.type == "cpu":
            low = torch.bfloat16 if is_causal and _multiplies_in_bfloat16() else None
            return Precision(device.type, training=low)
        wanted = _best_on(device)
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 needs a GPU. Use mixed_precision bf16 or no on a CPU.")
    if wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("This GPU does not compute in bf16. Use mixed_precision fp16 or no.")
    dtype = _DTYPES.get(wanted)
    return Precision(device.type, dtype, dtype)


def _best_on(device: torch.device) -> str:
    """Return the name of the format that suits a device other than a CPU."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _multiplies_in_bfloat16() -> bool:
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in ("amx_bf16", "avx512_bf16"))
