"""Finish an adapter: some minutes of training on rounded weights, resumable, before it is coded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rankcast.adapters.coding import load_tensors, tensors_of
from rankcast.adapters.export import save_adapter
from rankcast.adapters.fingerprint import check_base
from rankcast.codec.container import Container
from rankcast.codec.packing import Source, pack, unpack
from rankcast.errors import CheckpointError
from rankcast.finetune.finish import Coding, Finish, prepare_finish, run_finish
from rankcast.finetune.learner import Evaluation
from rankcast.finetune.transformer import TransformerLearner
from rankcast.run import file_options
from rankcast.run.console import stderr, stdout
from rankcast.run.folder import load_state, save_state
from rankcast.run.learners import Workplace, workplace

CHECKPOINT_EVERY = 50
CHECKPOINT = "unfinished.pt"


def finish(command: file_options.Finish, stopping: Callable[[], bool]) -> bool:
    """Do what the command says and return whether the end was reached.

    Raises:
        CheckpointError: the folder holds the beginning of another finish.
        RankcastError: adapter, model or texts cannot be had, or training diverged.
    """
    how = Finish(
        command.steps, command.lr, command.relative_step, command.bit_weight,
        distil=not command.labels,
    )  # fmt: skip
    place = workplace(command.source, command)
    checkpoint = command.output / CHECKPOINT
    settings = {"source": str(command.source.resolve()), **asdict(how)}
    state = _begun(checkpoint, settings)
    coding = None if state is None else Coding(state["exponent"], tuple(state["offsets"]))
    learner, coding = prepare_finish(place.source.tensors, place.config, place.splits, how, coding)
    check_base(learner.adapter.model, place.source.base.fingerprint, place.source.base.name)
    before = learner.evaluate("validation")
    if state is not None:
        learner.load_state_dict(state["learner"])

    def keep() -> None:
        command.output.mkdir(parents=True, exist_ok=True)
        found = {"learner": learner.state_dict(), "settings": settings, **asdict(coding)}
        save_state(checkpoint, found)

    if not _train(learner, keep, stopping):
        stderr().print(f"Stopped after step {learner.n_steps}; the same command goes on.")
        return False
    save_adapter(learner.adapter, command.output, coding=asdict(coding))
    checkpoint.unlink(missing_ok=True)
    _report(command, place, learner, coding, before)
    return True


def _begun(checkpoint: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a finish that was interrupted, if there is one.

    Raises:
        CheckpointError: it is of other settings.
    """
    if not checkpoint.is_file():
        return None
    state = load_state(checkpoint)
    if state["settings"] != dict(settings):
        raise CheckpointError(
            f"{checkpoint} is of a finish with other settings ({state['settings']}). Give those, "
            f"another --output, or remove the file."
        )
    return state


def _train(
    learner: TransformerLearner, keep: Callable[[], None], stopping: Callable[[], bool]
) -> bool:
    """Train to the end with a progress bar and checkpoints; return whether it was reached."""
    columns = (
        TextColumn("finishing"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, console=stderr()) as progress:
        total = learner.config.total_steps
        task = progress.add_task("", total=total, completed=learner.n_steps, loss=float("nan"))

        def on_step(loss: float) -> bool:
            progress.update(task, completed=learner.n_steps, loss=loss)
            stop = stopping()
            if stop or learner.n_steps % CHECKPOINT_EVERY == 0:
                keep()
            return stop

        return run_finish(learner, on_step)


def _report(
    command: file_options.Finish,
    place: Workplace,
    learner: TransformerLearner,
    coding: Coding,
    before: Evaluation,
) -> None:
    """Say what the finished adapter is worth once it has been coded."""
    tensors = tensors_of(learner.adapter)
    source = Source(tensors, place.source.base, place.source.task, coding.offsets, coding.exponent)
    container: Container = pack(source, coding.exponent)
    load_tensors(learner.adapter, unpack(container))
    after, bits = learner.evaluate("validation"), 8 * len(container.to_bytes())
    plain = 32 * place.source.tensors.n_params
    said = {
        "folder": str(command.output),
        "bits": bits,
        "times_smaller": plain / bits,
        "loss_before": before.loss,
        "loss": after.loss,
        "accuracy_before": before.accuracy,
        "accuracy": after.accuracy,
        "n_texts": after.n_examples,
    }
    if command.json:
        print(json.dumps(said, indent=2))  # noqa: T201
        return
    stdout().print(
        f"{command.output}: codes {said['times_smaller']:.0f} times smaller than float32, "
        f"{bits / 8:,.0f} bytes. On {after.n_examples:,} validation texts loss {before.loss:.3f} "
        f"-> {after.loss:.3f}, accuracy {before.accuracy:.1%} -> {after.accuracy:.1%} as decoded. "
        f"Next: rankcast pack {command.output} --output NAME.rcast",
        soft_wrap=True,
    )
