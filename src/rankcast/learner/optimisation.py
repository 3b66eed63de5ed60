"""One optimiser step over any number of processes, in any precision."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.optimizer import PrefixAdamW
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import ConfigError, RankcastError

MAX_SKIPPED = 50
"""Steps in a row that fp16 may skip while it looks for a loss scale."""


def make_accelerator(mixed_precision: str) -> Any:
    """Return an `accelerate.Accelerator` for the devices and processes that there are.

    Raises:
        ConfigError: the precision is not available here, or another was chosen earlier in this
            Python process.
    """
    from accelerate import Accelerator  # noqa: PLC0415

    if mixed_precision == "auto":
        has_cuda = torch.cuda.is_available()
        mixed_precision = (
            ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if has_cuda else "no"
        )
    try:
        return Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise ConfigError(f"Mixed precision {mixed_precision!r} cannot be used: {error}") from error


def trains_in_bfloat16(accelerator: Any, config: FinetuneConfig) -> bool:
    """Return whether a language model trains in bfloat16 by itself, on a CPU that multiplies in it.

    A step of 270 million weights takes two thirds of the processor time then. Other models stay in
    float32, so that their results do not depend on the processor.
    """
    if config.mixed_precision != "auto" or accelerator.device.type != "cpu":
        return False
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in ("amx_bf16", "avx512_bf16"))


class Optimisation:
    """Sum gradients over processes, clip them, and step AdamW over the active components.

    The model is not wrapped for distributed training: at rank 0 a projection takes no part in the
    graph, and which ones do changes at every step. The gradients that exist are the same on every
    process, because the ranks are, and are summed in one go.

    Args:
        adapter: what is trained.
        config: learning rate and its schedule, weight decay, clipping.
        accelerator: the processes and the precision.
    """

    def __init__(self, adapter: ElasticAdapter, config: FinetuneConfig, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._config = config
        self._parameters = list(adapter.trainable_parameters())
        self.optimizer = PrefixAdamW(adapter, lr=config.lr, weight_decay=config.weight_decay)
        self.n_steps = 0
        self._skipped = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of the loss; none if nothing is trainable."""
        if loss.requires_grad:
            self._accelerator.backward(loss)

    def step(self) -> None:
        """Step with the gradients of all processes and clear them.

        Raises:
            RankcastError: the gradients are not finite; with fp16, for many steps in a row.
        """
        held = [p for p in self._parameters if p.grad is not None]
        scaler = self._accelerator.scaler
        if held:
            self.sum_over_processes(held)
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(held, self._config.max_grad_norm)
            self._check(bool(torch.isfinite(norm)), may_skip=scaler is not None)
            for group in self.optimizer.param_groups:
                group["lr"] = self._config.lr_at(self.n_steps)
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
                scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self.n_steps += 1

    def sum_over_processes(self, held: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over the processes."""
        if self._accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in held if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        summed = self._accelerator.reduce(flat, reduction="sum")
        for gradient, part in zip(
            gradients, summed.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def _check(self, finite: bool, *, may_skip: bool) -> None:
        """Raise on gradients that no step can be taken with."""
        self._skipped = 0 if finite else self._skipped + 1
        if finite or (may_skip and self._skipped <= MAX_SKIPPED):
            return
        raise RankcastError(
            f"The gradients are not finite at step {self.n_steps}. Lower the learning rate "
            f"(now {self._config.lr}) or use bf16 or no mixed precision."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the moments, the step counts and the loss scale."""
        scaler = self._accelerator.scaler
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
            "n_steps": self.n_steps,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.n_steps, self._skipped = int(state["n_steps"]), int(state["skipped"])
