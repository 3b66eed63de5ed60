"""Ranks that follow the link inside `transformers.Trainer`.

    adapter = ElasticAdapter.attach(model, r_max=8)
    problem = AllocationProblem(adapter.layout, LinkCostModel.for_layout(adapter.layout, Awgn()))
    callback = RankcastCallback(adapter, UniformAllocator(problem), IidSnr(), problem.link_costs)
    trainer = Trainer(
        adapter.model, arguments, train_dataset=data,
        optimizers=(PrefixAdamW(adapter, lr=1e-3), None),
    )
    callback.attach(trainer)
    trainer.train()

`PrefixAdamW` leaves the components beyond the active ranks untouched; an ordinary AdamW would decay
them. Under DistributedDataParallel set `ddp_find_unused_parameters=True`, because a
projection of rank 0 has no gradient.

The ranks stand in each checkpoint's weights (`rankcast.adapters.travelling`): resuming,
`load_best_model_at_end` and loading by hand make those active that the weights were saved at. FSDP
and DeepSpeed, which shard weights and write checkpoints in their own ways, are not supported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rankcast.adapters.elastic import ElasticAdapter
from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.problem import Allocator
from rankcast.errors import CheckpointError, ConfigError
from rankcast.files import put_file
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import SnrProcess, SnrState
from rankcast.records import IntArray, LinkState, Observation, Plan, TextStats

RANKS_FILE = "rankcast_ranks.json"
_FORMAT_VERSION = 1


class RankcastCallback(TrainerCallback):
    """Asks an allocator for ranks every few steps and activates them before the step.

    The plan is logged as `mean_rank`, `link_cost`, `payload_bits` and `snr_db`, and saved with
    every checkpoint, so that a resumed run goes on with the same ranks and the same link. With
    `load_best_model_at_end` the best checkpoint's ranks and link are active after the training.

    Args:
        adapter: whose ranks change; train `adapter.model`.
        allocator: what answers "which ranks?".
        link: an SNR process, or a function from the training step to one `LinkState`.
        link_costs: turns ranks and a link into bits and η.
        every_n_steps: optimiser steps for which a plan stays active.
        bandwidth_hz: W [Hz], where `link` is a process.
        deadline_s: T_max [s], where `link` is a process.
        text: (1,) statistics shown to the allocator. A callback does not see the next batch, so
            they stand for the whole training set; None takes 2.5 nats and no unknown words.
        utility: a belief that learns from the logged losses. A logged loss is a mean over
            `logging_steps`; it is used only if one plan was active for all of them, so let
            `logging_steps` divide `every_n_steps`.
        orthogonality_weight: factor on the regulariser of Eq. 3, whose gradient is added at the
            start of each step. The losses that the Trainer logs do not contain it.
        seed: of the link and the allocator.

    Raises:
        ConfigError: a number out of range, or link costs of other projections.
    """

    def __init__(
        self,
        adapter: ElasticAdapter,
        allocator: Allocator,
        link: SnrProcess | Callable[[int], LinkState],
        link_costs: LinkCostModel,
        *,
        every_n_steps: int = 1,
        bandwidth_hz: float = 100e6,
        deadline_s: float = 1.0,
        text: TextStats | None = None,
        utility: LearnedUtility | None = None,
        orthogonality_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 1 or not 0 <= orthogonality_weight < np.inf:
            raise ConfigError(
                f"every_n_steps must be at least 1 and orthogonality_weight not negative, got "
                f"{every_n_steps} and {orthogonality_weight}."
            )
        if link_costs.n_projections != adapter.layout.n_projections:
            raise ConfigError(
                f"The link costs are of {link_costs.n_projections} projections, the adapter "
                f"has {adapter.layout.n_projections}; make them with LinkCostModel.for_layout."
            )
        self.adapter, self.allocator, self.link, self.link_costs = (
            adapter, allocator, link, link_costs,
        )  # fmt: skip
        self.every_n_steps = every_n_steps
        self.bandwidth_hz, self.deadline_s = bandwidth_hz, deadline_s
        self.text = text or TextStats(np.array([2.5]), np.array([0.0]))
        self.utility = utility
        self.orthogonality_weight = orthogonality_weight
        self.link_state: LinkState | None = None
        self._rng = np.random.default_rng(seed)
        self._snr: SnrState | None = None
        self._plan_since = 0  # step at which the active ranks were chosen
        self._logged_until = 0
        self._restored_step: int | None = None

    @property
    def plan(self) -> Plan | None:
        """The active ranks with what they cost on the link that they were chosen for."""
        if self.link_state is None:
            return None
        return self.link_costs.plan(self.adapter.ranks, self.link_state)

    def attach(self, trainer: Any) -> None:
        """Add the callback to a trainer, ahead of those that report, so that they see the plan.

        `Trainer(callbacks=[callback])` does as well, but TensorBoard and the like run before it
        then, and the plan only appears in the Trainer's own log history.
        """
        handler = trainer.callback_handler
        handler.callbacks = [self, *(other for other in handler.callbacks if other is not self)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue with the checkpoint's ranks, if the run is a resumed one.

        Raises:
            CheckpointError: the checkpoint holds no ranks, or those of another adapter or of other
                weights than the Trainer loaded.
            ConfigError: the regulariser together with fp16, whose gradients are scaled.
        """
        del control, kwargs
        if args.fp16 and self.orthogonality_weight > 0:
            raise ConfigError(
                "orthogonality_weight adds unscaled gradients and does not go with fp16; use bf16."
            )
        if state.global_step > 0 and self._restored_step != state.global_step:
            self._resume(_checkpoint_folder(args, state.global_step))
        self._restored_step = None
        self._logged_until = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Activate new ranks, if it is time.

        Raises:
            InfeasibleDeadlineError: not even the smallest plan arrives on the link of this moment.
        """
        del args, control, kwargs
        if state.global_step % self.every_n_steps == 0 or self.link_state is None:
            self._choose(state.global_step)
        if self.orthogonality_weight > 0:
            (self.orthogonality_weight * self.adapter.orthogonality()).backward()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the active plan to what is logged, and let the belief learn from the loss."""
        del args, control, kwargs
        plan = self.plan
        if logs is None or plan is None or "loss" not in logs:
            return
        assert self.link_state is not None
        entries = {
            "mean_rank": float(plan.ranks.mean()),
            "link_cost": plan.link_cost,
            "payload_bits": plan.payload_bits,
            "snr_db": float(self.link_state.snr_db[0]),
        }
        logs.update(entries)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(entries)
        if self.utility is not None and self._plan_since <= self._logged_until:
            self.utility.update(plan.ranks[None], np.array([float(logs["loss"])]), self.text)
        self._logged_until = state.global_step

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the ranks beside the checkpoint's weights."""
        del control, kwargs
        folder = _checkpoint_folder(args, state.global_step)
        if args.should_save and folder.is_dir():
            self.save(folder, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go back to the best model's link, if the Trainer went back to that model.

        Its ranks came with its weights. Where its link is not known, there is no `plan` any more.
        """
        del control, kwargs
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.link_state = self._link_beside(Path(state.best_model_checkpoint) / RANKS_FILE)

    def save(self, folder: str | os.PathLike[str], step: int) -> None:
        """Write ranks, link and generator to a folder, atomically."""
        link = self.link_state
        content = {
            "format_version": _FORMAT_VERSION,
            "step": step,
            "projections": [p.name for p in self.adapter.layout.projections],
            "ranks": self.adapter.ranks.tolist(),
            "plan_since": self._plan_since,
            "link": None
            if link is None
            else {name: float(getattr(link, name)[0]) for name in _LINK_FIELDS},
            "snr": None
            if self._snr is None
            else {name: array.tolist() for name, array in self._snr.to_arrays().items()},
            "rng": self._rng.bit_generator.state,
        }
        put_file(Path(folder) / RANKS_FILE, (json.dumps(content, indent=2) + "\n").encode())

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Continue from a checkpoint folder.

        `Trainer.train(resume_from_checkpoint=…)` does it by itself where the folder lies in the
        Trainer's output directory; otherwise call this before.

        Raises:
            CheckpointError: no readable file of ranks, or ranks of another adapter.
        """
        path = Path(folder) / RANKS_FILE
        content = self._read(path)
        with _readable(path):
            link, snr = _link_of(content), content["snr"]
            process = None if snr is None else SnrState.from_arrays(snr)
            plan_since, step = int(content["plan_since"]), int(content["step"])
            self.adapter.set_ranks(content["ranks"])
            self._rng.bit_generator.state = content["rng"]
        self.link_state, self._snr = link, process
        self._plan_since, self._restored_step = plan_since, step

    def _resume(self, folder: Path) -> None:
        """Load a folder, if it is the one that the Trainer loaded the weights from."""
        loaded, path = self.adapter.loaded_ranks, folder / RANKS_FILE
        if loaded is not None and self._read(path).get("ranks") != loaded.tolist():
            raise CheckpointError(
                f"{path} holds other ranks than the weights that the Trainer loaded, so it is of "
                f"another checkpoint. Call load(folder) with theirs before train()."
            )
        self.load(folder)

    def _link_beside(self, path: Path) -> LinkState | None:
        """Return the link in a file that holds the active ranks; None if there is no such file."""
        try:
            content = self._read(path)
            with _readable(path):
                same = content["ranks"] == self.adapter.ranks.tolist()
                return _link_of(content) if same else None
        except CheckpointError:
            return None

    def _read(self, path: Path) -> dict[str, Any]:
        """Return what a file of ranks of this adapter holds."""
        with _readable(path):
            content = json.loads(path.read_text("utf-8"))
            if content["format_version"] != _FORMAT_VERSION:
                raise CheckpointError(
                    f"{path} has format {content['format_version']}, this version reads "
                    f"{_FORMAT_VERSION}."
                )
            if content["projections"] != [p.name for p in self.adapter.layout.projections]:
                raise CheckpointError(f"{path} was written for an adapter of other projections.")
        return content

    def _choose(self, step: int) -> None:
        """Observe the link and activate the allocator's ranks."""
        link = self._next_link(step)
        observation = Observation(link, self.text, self.adapter.ranks[None])
        ranks = _of_first_process(self.allocator.allocate(observation, self._rng))
        self.adapter.set_ranks(ranks[0])
        self.link_state, self._plan_since = link, step

    def _next_link(self, step: int) -> LinkState:
        """Return the link of this moment.

        Raises:
            ConfigError: a function that returned more than one link.
        """
        if isinstance(self.link, SnrProcess):
            self._snr = (
                self.link.start(self._rng, 1)
                if self._snr is None
                else self.link.advance(self._snr, self._rng)
            )
            return LinkState(
                self._snr.snr_db, np.array([self.bandwidth_hz]), np.array([self.deadline_s])
            )
        link = self.link(step)
        if link.size != 1:
            raise ConfigError(f"A Trainer has one link, the function returned {link.size}.")
        return link


_LINK_FIELDS = ("snr_db", "bandwidth_hz", "deadline_s")


def _link_of(content: dict[str, Any]) -> LinkState | None:
    """Return the link that a file of ranks names."""
    link = content["link"]
    return None if link is None else LinkState(*(link[k] for k in _LINK_FIELDS))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Explain whatever is wrong with a file of ranks.

    Raises:
        CheckpointError: something is.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no readable file of ranks ({error!r}). Resume from a checkpoint that "
            f"was saved with this callback, or call load(folder) before train()."
        ) from error


def _checkpoint_folder(args: TrainingArguments, step: int) -> Path:
    """Return where the Trainer keeps the checkpoint of a step."""
    folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    given = args.resume_from_checkpoint
    return Path(given) if not folder.is_dir() and isinstance(given, str) else folder


def _of_first_process(ranks: IntArray) -> IntArray:
    """Return the first process's ranks in every process."""
    import torch  # noqa: PLC0415
    from accelerate import PartialState  # noqa: PLC0415
    from accelerate.utils import broadcast  # noqa: PLC0415

    state = PartialState()
    if state.num_processes == 1:
        return ranks
    shared: Any = broadcast(torch.as_tensor(ranks, device=state.device))
    return shared.cpu().numpy()
