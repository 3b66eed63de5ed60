"""Low-rank adapters in SVD form whose ranks may change between any two steps (Eq. 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from rankcast.adapters.layer import extra_modules, wrap
from rankcast.adapters.projections import find_projections
from rankcast.adapters.travelling import let_ranks_travel, loaded_ranks
from rankcast.codec.formats.native import EXTRA
from rankcast.errors import CheckpointError, ConfigError, ModelError
from rankcast.records import AdapterLayout, IntArray

Parameters = tuple[nn.Parameter, nn.Parameter, nn.Parameter]
"""Q, Λ and P of a projection."""


class ElasticAdapter:
    """Every projection's W + s·P Λ Q, of which the first r components are active.

    Differs from the paper: one set of P, Λ, Q of rank `r_max` serves every rank vector, because a
    prefix of its components is itself an adapter; s = alpha / r_max whatever rank is active. The
    active ranks are part of the model's `state_dict()` and of what PEFT and the Trainer save, and
    loading that makes them active again.

    Attributes:
        model: the wrapped model, a `peft.PeftModel`; train and call this one.
        layout: the N projections and their largest rank.
        scale: s.
    """

    def __init__(
        self, model: nn.Module, layout: AdapterLayout, layers: Sequence[nn.Module], ranks: list[int]
    ) -> None:
        """Use `ElasticAdapter.attach`."""
        self.model: Any = model
        self.layout = layout
        self.layers: tuple[Any, ...] = tuple(layers)
        self.scale: float = self.layers[0].elastic.scale
        self._adapter: str = self.layers[0].elastic.adapter
        self._ranks = ranks
        let_ranks_travel(self.model.base_model, self.layers)

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        *,
        r_max: int = 8,
        kinds: Sequence[str] | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        modules_to_save: Sequence[str] | None = None,
        init_std: float | None = None,
        task_type: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Wrap `model` so that its projections carry adapters, all at rank `r_max`.

        Args:
            model: a transformer; it is changed in place.
            r_max: largest rank of each projection.
            kinds: kinds of projection to adapt; None adapts all.
            alpha: s·r_max; None stands for r_max, hence s = 1.
            dropout: probability of dropping an input of Q.
            modules_to_save: modules trained and saved in full; None finds the head of a
                classifier.
            init_std: standard deviation of Q at the start; None makes its rows orthonormal. P
                starts at 0 and Λ at 1.
            task_type: PEFT's word for the task; None takes it from the model's class.
            seed: of Q.

        Raises:
            ModelError: nothing to adapt, or the model already carries a PEFT adapter.
            ConfigError: an unknown kind or task, or a number out of range.
        """
        alpha = float(r_max) if alpha is None else float(alpha)
        if not (alpha > 0 and 0 <= dropout < 1 and (init_std is None or init_std > 0)):
            raise ConfigError(
                f"alpha and init_std must be positive and dropout in [0, 1), got alpha={alpha}, "
                f"init_std={init_std}, dropout={dropout}."
            )
        layout = find_projections(model, kinds, r_max)
        ranks = [r_max] * layout.n_projections
        wrapped, layers = wrap(
            model,
            layout,
            ranks=ranks,
            alpha=alpha,
            dropout=dropout,
            modules_to_save=modules_to_save,
            task_type=task_type,
            init_std=init_std,
            seed=seed,
        )
        return cls(wrapped, layout, layers, ranks)

    @property
    def ranks(self) -> IntArray:
        """(N,) active ranks; a copy."""
        return np.array(self._ranks, dtype=np.int64)

    @property
    def loaded_ranks(self) -> IntArray | None:
        """(N,) ranks that came with the weights that PEFT or torch loaded last; None: none did."""
        ranks = loaded_ranks(self.layers)
        return None if ranks is None else np.array(ranks, dtype=np.int64)

    @property
    def rank_list(self) -> list[int]:
        """The N active ranks, as the list that the layers read; do not write to it."""
        return self._ranks

    def set_ranks(self, ranks: ArrayLike) -> None:
        """Make (N,) ranks active from the next forward pass on.

        Raises:
            ModelError: not one rank per projection.
            ConfigError: a rank that is no integer or outside 0..r_max.
        """
        new = np.asarray(ranks)
        if new.shape != (self.layout.n_projections,):
            raise ModelError(
                f"This adapter has {self.layout.n_projections} projections and needs a rank for "
                f"each, shape ({self.layout.n_projections},), got shape {new.shape}."
            )
        if new.dtype.kind not in "iu":
            raise ConfigError(f"Ranks must be integers, got {new.dtype}; round them first.")
        if new.min() < 0 or new.max() > self.layout.r_max:
            raise ConfigError(
                f"Ranks must lie in 0..{self.layout.r_max}, got {new.min()}..{new.max()}."
            )
        self._ranks[:] = new.tolist()

    @contextmanager
    def at_ranks(self, ranks: ArrayLike) -> Iterator[None]:
        """Make ranks active inside a `with` block and restore the former ones after it."""
        before = self._ranks.copy()
        self.set_ranks(ranks)
        try:
            yield
        finally:
            self._ranks[:] = before

    @contextmanager
    def at_steps(self, steps: Sequence[float] | None) -> Iterator[None]:
        """Compute with P and Q rounded to multiples of steps inside a `with` block.

        The adapter has to be balanced before (as `arrays.load_tensors` leaves it): s·Λ is taken
        as 1, which is what a coder sends. Gradients pass through the rounding.

        Args:
            steps: one for each projection; None rounds nothing.

        Raises:
            ModelError: another number of steps than there are projections.
        """
        states = [layer.elastic for layer in self.layers]
        if steps is not None and len(steps) != len(states):
            raise ModelError(f"{len(states)} projections need as many steps, got {len(steps)}.")
        before = [state.step for state in states]
        for index, state in enumerate(states):
            state.step = None if steps is None else float(steps[index])
        try:
            yield
        finally:
            for state, value in zip(states, before, strict=True):
                state.step = value

    def factors(self) -> tuple[Parameters, ...]:
        """Return the parameters (Q, Λ, P) of each projection: (r, d_in), (r, 1), (d_out, r)."""
        name = self._adapter
        return tuple((x.lora_A[name], x.lora_E[name], x.lora_B[name]) for x in self.layers)

    def components(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return P (d_out, r_max), the diagonal of Λ (r_max,) and Q (r_max, d_in), detached."""
        Q, lam, P = self.factors()[index]
        return P.detach(), lam.detach().view(-1), Q.detach()

    @torch.no_grad()
    def delta_weight(self, index: int, rank: int | None = None) -> Tensor:
        """Return s·P Λ Q of the first `rank` components (None: the active ones), (d_out, d_in)."""
        r = self._ranks[index] if rank is None else rank
        P, lam, Q = self.components(index)
        return self.scale * P[:, :r] @ (lam[:r, None] * Q[:r])

    def orthogonality(self) -> Tensor:
        """Return ‖PᵀP − I‖² + ‖QQᵀ − I‖² (Eq. 3) over the active components.

        Differs from the paper: averaged over the projections of rank above 0, so that its weight
        does not depend on how many take part.
        """
        groups: dict[tuple[int, int, Any], list[Tensor]] = {}
        active = 0
        for (Q, _, P), r in zip(self.factors(), self._ranks, strict=True):
            active += r > 0
            for rows in (Q, P.t()) if r else ():
                groups.setdefault((r, rows.shape[1], rows.device), []).append(rows[:r])
        total = self.factors()[0][0].new_zeros(())
        for (r, _, device), members in groups.items():
            block = torch.stack(members)
            gram = block @ block.mT - torch.eye(r, device=device, dtype=block.dtype)
            total = total + gram.square().sum().to(total.device)
        return total / max(active, 1)

    def other_parameters(self) -> list[nn.Parameter]:
        """Return what is trained beside the adapters, such as the classification head."""
        mine = {id(p) for factors in self.factors() for p in factors}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in mine]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained: Q, Λ, P of each projection, then the rest."""
        own = [p for factors in self.factors() for p in factors if p.requires_grad]
        return own + self.other_parameters()

    def extra_modules(self) -> dict[str, nn.Module]:
        """Return the modules that are trained and saved in full, by name in the base model."""
        return extra_modules(self.model, self._adapter)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of those modules by their names in the base model, sharing memory."""
        return {
            f"{name}.{part}": tensor
            for name, module in self.extra_modules().items()
            for part, tensor in module.state_dict().items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        """Return every tensor that is saved, by name, sharing memory."""
        tensors: dict[str, Tensor] = {}
        for p, (Q, lam, P) in zip(self.layout.projections, self.factors(), strict=True):
            named = {"P": P.detach(), "lam": lam.detach().view(-1), "Q": Q.detach()}
            tensors |= {f"{p.name}.{part}": tensor for part, tensor in named.items()}
        return tensors | {EXTRA + name: tensor for name, tensor in self.extra_tensors().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return P, Λ, Q of every projection and the modules saved in full, as copies."""
        return {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in self._tensors().items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `state_dict()` returned.

        Raises:
            CheckpointError: a tensor is missing, unknown or of another shape; nothing is changed.
        """
        own = self._tensors()
        for name in sorted(own.keys() ^ state.keys()):
            where = "missing from the checkpoint" if name in own else "unknown to this adapter"
            raise CheckpointError(f"The tensor {name!r} is {where}: it is of another model.")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise CheckpointError(
                    f"The tensor {name!r} has shape {tuple(state[name].shape)} in the checkpoint "
                    f"and {tuple(tensor.shape)} here: it is of another model or another r_max."
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])
