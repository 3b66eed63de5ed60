"""Train one adapter for a file of a given size; continue it bit-exactly.

From the first text (`train_to_size`) or from an adapter that is trained (`rankcast qat`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rankcast.adapters.arrays import load_tensors
from rankcast.adapters.export import save_adapter
from rankcast.codec.container import Container
from rankcast.codec.packing import Coding
from rankcast.codec.versions import Versions
from rankcast.config.plain import to_plain
from rankcast.config.run import RunConfig
from rankcast.files import put_file
from rankcast.learner.byte_budget import (
    ByteBudgetTraining,
    packer,
    ranks_for,
    small_steps,
    usual_training,
)
from rankcast.learner.datasets import load_dataset
from rankcast.learner.protocol import Evaluation
from rankcast.learner.transformer import TransformerLearner
from rankcast.provenance import describe_device, package_versions
from rankcast.training.folder import RunFolder, load_state, save_state
from rankcast.training.journal import Journal
from rankcast.training.level_policy import PlannedLink, check_links, judge_plans, learn_plans
from rankcast.training.run import any_process, check_same

CHECKPOINT_EVERY = 50


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One training step.

    Attributes:
        step: counted from 1.
        loss: of its batch, or the divergence from the answers that are learned [nats].
        n_bytes: of the file as it would be now; None while training as usual.
    """

    step: int
    loss: float
    n_bytes: float | None


@dataclass(frozen=True)
class SmallerFile:
    """A file beside a larger one, and what is decoded from it, on the validation texts."""

    target_bytes: int
    file: Container
    after: Evaluation

    def to_plain(self) -> dict[str, Any]:
        """Return it for machines."""
        return {"bytes": self.file.n_bits // 8, **self.after.to_plain()}


@dataclass(frozen=True)
class SizedAdapter:
    """A file of a given size and what the size costs.

    Attributes:
        file: the file.
        rank: components of the projection that has most.
        before: the adapter in float32, before its weights were rounded.
        price: what one more bit would gain, by the price at the end of training [nats].
        prefixes: as decoded from each prefix of the file, the whole last. All on the validation
            texts.
        coding: steps and prefixes for which it was trained.
        smaller: files to which its weights were trained down afterwards.
    """

    file: Container
    rank: int
    before: Evaluation
    price: float
    prefixes: tuple[Evaluation, ...]
    coding: Coding
    smaller: tuple[SmallerFile, ...] = ()

    @property
    def after(self) -> Evaluation:
        """What is decoded from the whole file."""
        return self.prefixes[-1]

    def write(self, folder: RunFolder) -> None:
        """Write all files."""
        put_file(folder.file, self.file.to_bytes())
        for smaller in self.smaller:
            put_file(folder.smaller_file(smaller.target_bytes), smaller.file.to_bytes())

    def to_plain(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "bytes": self.file.n_bits // 8,
            "prefixes": [
                {"bytes": p.n_bytes, **e.to_plain()}
                for p, e in zip(self.file.ladder, self.prefixes, strict=True)
            ],
            "rank": self.rank,
            "price_nats_per_bit": self.price,
            **self.before.to_plain("_before"),
            **self.after.to_plain(),
            "n_texts": self.after.n_examples,
            **({"smaller": [file.to_plain() for file in self.smaller]} if self.smaller else {}),
        }


class SizedTraining:
    """A training for a file of a given size, with its checkpoint.

    Args:
        training: at its first step.
        checkpoint: the file to keep it in.
        settings: what a checkpoint has to agree with.
        before: what the float32 adapter is worth, if it is known already.
    """

    def __init__(
        self,
        training: ByteBudgetTraining,
        checkpoint: Path,
        settings: Mapping[str, Any],
        before: Evaluation | None = None,
    ) -> None:
        self.training, self._checkpoint, self._settings = training, checkpoint, dict(settings)
        self._before = before

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what the checkpoint holds."""
        self.training.load_state_dict(state["training"])
        before = state["before"]
        self._before = None if before is None else Evaluation(**before)

    def save(self, **more: Any) -> None:
        """Write the checkpoint."""
        before = None if self._before is None else asdict(self._before)
        kept = {"training": self.training.state_dict(), "before": before, **self._settings, **more}
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save_state(self._checkpoint, kept)

    def step(self) -> SizeRow:
        """Train a batch; measure the float32 adapter first where rounding is about to begin."""
        training = self.training
        if self._before is None and training.rounding_is_next:
            self._before = training.learner.evaluate("validation")
        loss = training.step()
        return SizeRow(training.n_steps, loss, training.n_bytes)

    def finish(self, adapter: Path) -> SizedAdapter:
        """Write the adapter's folder, for `rankcast pack`, and return what was made."""
        training, learner = self.training, self.training.learner
        files = [*training.larger, (*training.finish(), training.price)]
        smaller = [
            self._smaller(size, made[0])
            for size, made in zip(training.config.smaller_bytes, files[1:], strict=True)
        ]
        file, coding, price = files[0]
        load_tensors(learner.adapter, file.tensors())
        if learner.accelerator.is_main_process:
            save_adapter(learner.adapter, adapter, coding=coding)
        rank = int(learner.adapter.ranks.max(initial=0))
        prefixes = []
        for _, tensors in file.decoded():
            load_tensors(learner.adapter, tensors)
            prefixes.append(learner.evaluate("validation"))
        before = self._before or prefixes[-1]
        return SizedAdapter(file, rank, before, price, tuple(prefixes), coding, tuple(smaller))

    def _smaller(self, target_bytes: int, file: Container) -> SmallerFile:
        load_tensors(self.training.learner.adapter, file.tensors())
        return SmallerFile(target_bytes, file, self.training.learner.evaluate("validation"))


@dataclass(frozen=True)
class SizeResult:
    """Where a run ended.

    Attributes:
        folder: its folder.
        step: steps taken.
        adapter: what it came to; None if it was stopped, and can be resumed.
        result: what `result.json` holds; empty if it did not finish.
        is_main: whether this process writes files and talks to people.
        links: what each link gets by the policy, if one was asked for.
    """

    folder: RunFolder
    step: int
    adapter: SizedAdapter | None
    result: dict[str, Any]
    is_main: bool
    links: tuple[PlannedLink, ...] = ()


def train_to_size(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
    on_step: Callable[[SizeRow], None] | None = None,
    on_episode: Callable[[int], None] = lambda done: None,  # noqa: ARG005
    should_stop: Callable[[], bool] = lambda: False,
) -> SizeResult:
    """Train an adapter whose file has at most `config.codec.target_bytes`.

    Leaves `adapter.rcast`, `adapter/` and `result.json` in the run's folder, and a file such as
    `adapter-495.rcast` for each of `codec.smaller_bytes`. With `codec.plan_episodes` a policy then
    learns which projections each link is to get from which file, and `policy.pt` is left, too; a
    run that is stopped while it learns begins to learn anew.

    Args:
        config: the run; its link and its policy matter for `codec.plan_episodes` alone.
        resume: continue from the checkpoint in the run's folder.
        overwrite: replace a run that is in the folder.
        command: what the person typed, for `result.json`.
        on_step: sees every training step.
        on_episode: called with the number of episodes that the policy has had.
        should_stop: asked after each step; True ends the run with a checkpoint.

    Raises:
        ConfigError: no size; or the folder holds another run, and neither of the two is asked for.
        CheckpointError: there is nothing to resume, or it is of another configuration.
        InfeasibleSizeError: even a file without any weights is larger.
        InfeasibleDeadlineError: nothing arrives over a link that is to be planned for.
        RankcastError: data or model cannot be had as configured, or training diverged.
    """
    folder = RunFolder(Path(config.output))
    check_links(config)
    state = load_state(folder.checkpoint) if resume else None
    if state is not None:
        check_same(state["config"], config, folder)
    else:
        folder.refuse_other_run(overwrite=overwrite)
    learner = _learner(config)
    training = ByteBudgetTraining(learner, config.codec, config.steps, packer(learner))
    run = SizedTraining(training, folder.checkpoint, {"config": to_plain(config)})
    n_rows, elapsed_s = 0, 0.0
    if state is not None:
        run.load(state)
        n_rows, elapsed_s = int(state["n_rows"]), float(state["elapsed_s"])
    learner.accelerator.wait_for_everyone()  # all have looked at the folder
    is_main = learner.accelerator.is_main_process
    if is_main and not resume:
        folder.begin(config)
    started = time.monotonic() - elapsed_s
    journal = Journal(
        folder.log if is_main else None,
        n_rows,
        folder.tensorboard if config.tensorboard and is_main else None,
        training.n_steps,
    )

    def keep(n_rows: int) -> None:
        if is_main:
            run.save(n_rows=n_rows, elapsed_s=time.monotonic() - started)

    with closing(journal):
        seen = on_step if is_main else None
        _train(run, config, journal, on_step=seen, keep=keep, should_stop=should_stop)
    stopped = SizeResult(folder, training.n_steps, None, {}, is_main)
    if training.n_steps < config.steps:
        return stopped
    adapter = run.finish(folder.adapter)
    if is_main:
        adapter.write(folder)
    links = _plan(learner, adapter, config, folder, on_episode=on_episode, should_stop=should_stop)
    if links is None:
        return stopped
    result = adapter.to_plain() | _provenance(config, command, time.monotonic() - started)
    result |= {"links": [link.to_plain() for link in links]} if links else {}
    if is_main:
        folder.write_json(folder.result, result)
    return replace(stopped, adapter=adapter, result=result, links=links)


def _train(
    run: SizedTraining,
    config: RunConfig,
    journal: Journal,
    *,
    on_step: Callable[[SizeRow], None] | None,
    keep: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Train to the end, or to the moment it is asked to stop.

    Args:
        run: the training.
        config: the run.
        journal: takes the row of each step.
        on_step: sees it, too.
        keep: writes a checkpoint after which the journal had so many rows.
        should_stop: asked after each step.
    """
    training, interrupted = run.training, False
    while training.n_steps < config.steps and not interrupted:
        row = run.step()
        journal.write("step", [row])
        if on_step is not None:
            on_step(row)
        interrupted = any_process(training.learner, should_stop())
        over = training.n_steps == config.steps and config.codec.plan_episodes > 0
        if training.n_steps % CHECKPOINT_EVERY == 0 or interrupted or over:
            keep(journal.n_rows)


def _plan(
    learner: TransformerLearner,
    adapter: SizedAdapter,
    config: RunConfig,
    folder: RunFolder,
    *,
    on_episode: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> tuple[PlannedLink, ...] | None:
    """Let a policy learn what each link is to get, if that is asked for; None if it was stopped."""
    if not config.codec.plan_episodes:
        return ()
    versions = Versions.of((adapter.file, *(smaller.file for smaller in adapter.smaller)))
    planner = learn_plans(learner, versions, config, on_episode=on_episode, should_stop=should_stop)
    if planner is None:
        return None
    if learner.accelerator.is_main_process:
        planner.save(folder)
    return tuple(judge_plans(planner, learner))


def _learner(config: RunConfig) -> TransformerLearner:
    """Return a learner with room for the ranks of the sizes and of teachers, at the usual scale.

    Raises:
        ConfigError: there is no size.
    """
    codec, steps = config.codec, small_steps(config.codec, config.steps)
    usual, data = usual_training(config.finetune, codec, steps), load_dataset(config.data)
    scale = 1.0 if usual.alpha is None else usual.alpha / usual.r_max
    learner = TransformerLearner(replace(usual, r_max=1, alpha=scale), data)
    rank = max(ranks_for(codec, learner.layout)[-1], usual.r_max if codec.teachers else 1)
    if rank == 1:
        return learner
    return TransformerLearner(replace(usual, r_max=rank, alpha=scale * rank), data)


def _provenance(config: RunConfig, command: Sequence[str], wall_s: float) -> dict[str, Any]:
    """Return how a result was made."""
    return {
        "steps": config.steps,
        "wall_s": round(wall_s, 2),
        "seeds": {"run": config.seed, "data": config.data.seed, "finetune": config.finetune.seed},
        "command": " ".join(command),
        "device": describe_device(),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "config": to_plain(config),
    }
