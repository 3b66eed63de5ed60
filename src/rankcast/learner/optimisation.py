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


def make_accelerator() -> Any:
    """Return an `accelerate.Accelerator` for the device and the processes that there are.

    Its precision, which a whole Python process shares, is not used: see `Precision`.

    Raises:
        ConfigError: there is none for the settings of `accelerate` in the environment.
    """
    from accelerate import Accelerator  # noqa: PLC0415

    try:
        return Accelerator()
    except ValueError as error:
        raise ConfigError(f"`accelerate` cannot be used as it is set up here: {error}") from error


class Optimisation:
    """Sum gradients over processes, clip them, and step AdamW over the active components.

    The model is not wrapped for distributed training: at rank 0 a projection takes no part in the
    graph, and which ones do changes at every step. The gradients that exist are the same on every
    process, because the ranks are, and are summed in one go.

    Args:
        adapter: what is trained.
        config: learning rate and its schedule, weight decay, clipping.
        accelerator: the processes.
        scaler: of the loss; None for none.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        config: FinetuneConfig,
        accelerator: Any,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._accelerator, self.scaler = accelerator, scaler
        self._config = config
        self._parameters = list(adapter.trainable_parameters())
        self.optimizer = PrefixAdamW(adapter, lr=config.lr, weight_decay=config.weight_decay)
        self.n_steps = 0
        self._skipped = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this process's part of the loss; none if nothing is trainable."""
        if loss.requires_grad:
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self) -> None:
        """Step with the gradients of all processes and clear them.

        Raises:
            RankcastError: the gradients are not finite; with fp16, for many steps in a row.
        """
        held = [p for p in self._parameters if p.grad is not None]
        scaler = self.scaler
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
        scaler = self.scaler
        return {
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
            "n_steps": self.n_steps,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.n_steps, self._skipped = int(state["n_steps"]), int(state["skipped"])
