"""LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604): LoRA between frozen singular vectors.

ΔW = U_r · R · Σ_r V_rᵀ with the strongest r singular triples of the frozen weight, which both sides
have, and a trained core R of r × r numbers. PEFT has no such adapter. Here it is PEFT's LoRA whose
A is computed as R · Σ_r V_rᵀ and whose B is U_r, so that it saves an ordinary LoRA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from rankcast.errors import ModelError

CORE_SPREAD = 1e-5
"""Standard deviation of R before training, as in the paper."""


class Mixed(nn.Module):
    """A linear map whose weight is R · Σ_r V_rᵀ, in place of LoRA's A; it is saved as that weight.

    Args:
        core: R, (r, r); trained.
        basis: Σ_r V_rᵀ, (r, d_in).
    """

    basis: Tensor

    def __init__(self, core: Tensor, basis: Tensor) -> None:
        super().__init__()
        self.core = nn.Parameter(core)
        self.register_buffer("basis", basis, persistent=False)

    @property
    def weight(self) -> Tensor:
        """(r, d_in) weight; PEFT looks at its type."""
        return self.core @ self.basis

    def forward(self, x: Tensor) -> Tensor:
        """Return R · Σ_r V_rᵀ · x."""
        return F.linear(F.linear(x, self.basis), self.core)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.weight
        destination[f"{prefix}weight"] = weight if keep_vars else weight.detach()


def strongest_triples(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U_r, (d_out, r), and Σ_r V_rᵀ, (r, d_in), of a weight of (d_out, d_in).

    The sign of each triple is such that the largest entry of its left vector is positive.
    """
    left, sizes, right = torch.linalg.svd(weight.double(), full_matrices=False)
    left, right = left[:, :rank], sizes[:rank, None] * right[:rank]
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return (left * largest.sign()).float(), (right * largest.sign().T).float()


def freeze_into_lora_xs(model: Any, adapter: str, generator: torch.Generator) -> None:
    """Turn the LoRA of a PEFT model into LoRA-XS of the same rank, in place.

    Args:
        model: a `peft.PeftModel` with LoRA on linear maps, at a scale of alpha / r.
        adapter: its name.
        generator: source of the first cores.

    Raises:
        ModelError: the model has no LoRA of this name.
    """
    layers = list(_layers(model, adapter))
    if not layers:
        raise ModelError(f"There is no LoRA named {adapter!r} to turn into LoRA-XS.")
    for _, layer in layers:
        B, rank = layer.lora_B[adapter], layer.r[adapter]
        left, basis = strongest_triples(layer.get_base_layer().weight.detach(), rank)
        B.weight.data.copy_(left)
        B.weight.requires_grad_(False)
        core = CORE_SPREAD * torch.randn(rank, rank, generator=generator)
        layer.lora_A[adapter] = Mixed(core, basis)


def cores(model: Any, adapter: str) -> Mapping[str, Tensor]:
    """Return the core of each module by its name in the base model; empty for other adapters."""
    return {
        name: layer.lora_A[adapter].core.detach().clone()
        for name, layer in _layers(model, adapter)
        if isinstance(layer.lora_A[adapter], Mixed)
    }


def _layers(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and the module of each linear map with a LoRA of this name."""
    for name, module in model.get_base_model().named_modules():
        if adapter in getattr(module, "lora_A", {}):
            yield name, module
