"""AdamW that steps only the active components and leaves the rest exactly as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import CheckpointError, ConfigError

Views = tuple[Tensor, Tensor, Tensor]
"""A block of a parameter and of both its moments."""
Work = list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
"""Parameter, both moments, gradient and step count of blocks on one device and of one dtype."""


class PrefixAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) over the first r components of each projection.

    Components beyond the active rank at `step()` keep their values, moments and step counts, and
    their weights do not decay; bias correction counts the steps that a component took part in.
    What is trained beside the adapters, such as a classification head, gets ordinary AdamW as the
    second parameter group. Moments are kept component by component, hence P's transposed.

    Args:
        adapter: the adapter to train.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        """Prepare the state; nothing is allocated for the moments yet."""
        if not (lr >= 0 and eps > 0 and weight_decay >= 0 and all(0 <= b < 1 for b in betas)):
            raise ConfigError(
                f"lr and weight_decay must not be negative, eps must be positive and betas in "
                f"[0, 1), got lr={lr}, weight_decay={weight_decay}, eps={eps}, betas={betas}."
            )
        self.adapter = adapter
        self._counts = [[0] * adapter.layout.r_max for _ in range(adapter.layout.n_projections)]
        self._views: dict[tuple[int, int, int], Views] = {}
        self._addresses: tuple[int, ...] = ()
        self._numbers: dict[torch.device, Tensor] = {}
        groups: list[dict[str, Any]] = [{"params": [p for f in adapter.factors() for p in f]}]
        if others := adapter.other_parameters():
            groups.append({"params": others})
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step with the active ranks."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._forget_stale_views()
        scalars: dict[tuple[int, torch.device], Tensor] = {}
        for number, group in enumerate(self.param_groups):
            gather = self._gather_prefixes if number == 0 else self._gather_whole
            for work in gather(group["params"], scalars).values():
                _fused_adamw(work, group)
        return loss

    def reset_state(self) -> None:
        """Forget moments and step counts of all components."""
        for parameter in self.param_groups[0]["params"]:
            self.state.pop(parameter, None)
        self._counts = [[0] * len(row) for row in self._counts]
        self._views.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return torch's optimiser state and the step count of every component (N, r_max)."""
        counts = torch.tensor(self._counts, dtype=torch.int64)
        return super().state_dict() | {"component_steps": counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`; the state is copied.

        Raises:
            CheckpointError: the state is of another adapter or another optimiser.
        """
        counts = state_dict.get("component_steps")
        shape = (len(self._counts), len(self._counts[0]))
        if counts is None or tuple(counts.shape) != shape:
            got = "none" if counts is None else f"shape {tuple(counts.shape)}"
            raise CheckpointError(
                f"This optimiser state was not made for this adapter: it needs step counts of "
                f"shape {shape}, got {got}."
            )
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({k: v.clone() for k, v in state.items() if isinstance(v, Tensor)})
        self._counts = counts.tolist()
        self._views.clear()

    def _gather_prefixes(
        self, parameters: list[nn.Parameter], scalars: dict[tuple[int, torch.device], Tensor]
    ) -> dict[tuple[torch.device, torch.dtype], Work]:
        """Count the step of every active component and list their blocks of memory."""
        jobs: dict[tuple[torch.device, torch.dtype], Work] = {}
        for i, rank in enumerate(self.adapter.rank_list):
            Q, lam, P = parameters[3 * i : 3 * i + 3]
            if rank == 0 or Q.grad is None or P.grad is None:
                continue
            counts = self._counts[i]
            counts[:rank] = [count + 1 for count in counts[:rank]]
            job = jobs.setdefault((Q.device, Q.dtype), [])
            gradients = (Q.grad, lam.grad, P.grad.t())  # Λ has none while weights are rounded
            for start, stop in _runs(counts, rank):
                step = self._scalar(counts[start], Q.device, scalars)
                for j, gradient in enumerate(gradients):
                    if gradient is None:
                        continue
                    views = self._views.get((3 * i + j, start, stop))
                    if views is None:
                        views = self._make_views(parameters, 3 * i + j, start, stop)
                    job.append((*views, gradient[start:stop].contiguous(), step))
        return jobs

    def _gather_whole(
        self, parameters: list[nn.Parameter], scalars: dict[tuple[int, torch.device], Tensor]
    ) -> dict[tuple[torch.device, torch.dtype], Work]:
        """List the tensors that are no adapter components."""
        jobs: dict[tuple[torch.device, torch.dtype], Work] = {}
        for p in parameters:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
            step = self._scalar(state["step"], p.device, scalars)
            job = jobs.setdefault((p.device, p.dtype), [])
            job.append((p, state["exp_avg"], state["exp_avg_sq"], p.grad, step))
        return jobs

    def _make_views(
        self, parameters: list[nn.Parameter], place: int, start: int, stop: int
    ) -> Views:
        """Return one block of a parameter and of its two moments, and remember it."""
        p = parameters[place]
        rows = _rows(p, transposed=place % 3 == 2)
        state = self.state[p]
        if not state:
            state.update(exp_avg=torch.zeros_like(rows), exp_avg_sq=torch.zeros_like(rows))
        views = (rows[start:stop], state["exp_avg"][start:stop], state["exp_avg_sq"][start:stop])
        self._views[place, start, stop] = views
        return views

    def _forget_stale_views(self) -> None:
        """Drop the remembered blocks if a parameter has moved, say to another device."""
        addresses = tuple(p.data_ptr() for p in self.param_groups[0]["params"])
        if addresses != self._addresses:
            self._addresses = addresses
            self._views.clear()

    def _scalar(
        self, value: int, device: torch.device, scalars: dict[tuple[int, torch.device], Tensor]
    ) -> Tensor:
        """Return a step count as the tensor that the fused kernel reads."""
        scalar = scalars.get((value, device))
        if scalar is None:
            table = self._numbers.get(device)
            if table is None or value >= len(table):
                size = 1 << max(12, value.bit_length())
                table = torch.arange(size, dtype=torch.float32, device=device)
                self._numbers[device] = table
            scalar = scalars[value, device] = table[value]
        return scalar


def _runs(counts: list[int], rank: int) -> list[tuple[int, int]]:
    """Split 0..rank into runs of components with equal step counts.

    A later component is never active without the earlier ones, so counts never rise.
    """
    if counts[0] == counts[rank - 1]:
        return [(0, rank)]
    cuts = [k for k in range(1, rank) if counts[k] != counts[k - 1]]
    return list(zip([0, *cuts], [*cuts, rank], strict=True))


def _rows(parameter: nn.Parameter, *, transposed: bool) -> Tensor:
    """Return a parameter with one component per row, in memory that holds row after row."""
    rows = parameter.detach()
    if not transposed:
        return rows
    if not rows.t().is_contiguous():  # something copied P without its strides
        parameter.data = rows.t().contiguous().t()
        rows = parameter.detach()
    return rows.t()


def _fused_adamw(work: Work, group: dict[str, Any]) -> None:
    """Run torch's fused AdamW kernel, its only private function that is used here.

    The public `torch.optim.adamw` advances the step counts that it is given; blocks of components
    share theirs, which must be read only.
    """
    parameters, means, squares, gradients, steps = map(list, zip(*work, strict=True))
    torch._fused_adamw_(
        parameters,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=float(group["lr"]),
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
