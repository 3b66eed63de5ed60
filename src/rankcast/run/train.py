"""Train a run to its end, or to the moment it is asked to stop; continue it bit-exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.adapters.export import save_adapter
from rankcast.run.config import RunConfig
from rankcast.run.folder import RunFolder, load_state
from rankcast.run.journal import Journal
from rankcast.run.provenance import provenance
from rankcast.run.recording import EvaluationRow, StepRow, as_row
from rankcast.run.session import Session, check_same


@dataclass(frozen=True)
class Observer:
    """Who wants to know, and who may end a run.

    Attributes:
        on_step: sees every training step.
        on_evaluation: sees every look at the validation split.
        should_stop: asked after each episode; True ends the run with a checkpoint.
    """

    on_step: Callable[[StepRow], None] | None = None
    on_evaluation: Callable[[EvaluationRow], None] | None = None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended.

    Attributes:
        session: the run in memory.
        folder: its folder.
        finished: whether it came to its end; otherwise it can be resumed.
        result: what `result.json` holds; empty if it did not finish.
    """

    session: Session
    folder: RunFolder
    finished: bool
    result: dict[str, Any]


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: Sequence[str] = (),
    observer: Observer | None = None,
) -> TrainResult:
    """Train a run and leave everything that it is worth in its folder.

    Args:
        config: the run.
        resume: continue from the checkpoint in the run's folder.
        overwrite: replace a run that is in the folder.
        command: what the person typed, for `result.json`.
        observer: who is told of progress.

    Raises:
        ConfigError: the folder holds another run, and neither of the two is asked for.
        CheckpointError: there is nothing to resume, or it is of another configuration.
        RankcastError: data, model or link cannot be had as configured, or training diverged.
    """
    observer, folder = observer or Observer(), RunFolder(Path(config.output))
    if resume:  # before a model is loaded
        check_same(load_state(folder.checkpoint)["config"], config, folder)
    else:
        folder.refuse_other_run(overwrite=overwrite)
    session = Session(config)
    n_rows, elapsed_s = session.load(folder) if resume else (0, 0.0)
    if session.is_main:
        session.env.on_step = observer.on_step
    session.learner.accelerator.wait_for_everyone()  # all have looked at the folder
    if session.is_main and not resume:
        folder.begin(config)
    started = time.monotonic() - elapsed_s
    finished = _episodes(session, folder, observer, n_rows, started)
    result: dict[str, Any] = {}
    if finished:
        result = _result(session, command, time.monotonic() - started)
        if session.is_main:
            gains = session.trainer.utility.mean_gains()
            save_adapter(session.learner.adapter, folder.adapter, gains=gains)
            session.planner.save(folder)
            folder.write_json(folder.result, result)
    return TrainResult(session, folder, finished, result)


def _episodes(
    session: Session, folder: RunFolder, observer: Observer, n_rows: int, started: float
) -> bool:
    """Run episodes until the steps are done, and return whether they are."""
    config, is_main = session.config, session.is_main
    board = folder.tensorboard if config.tensorboard and is_main else None
    with Journal(folder.log if is_main else None, n_rows, board, session.step) as journal:
        while session.step < config.steps:
            stopped = _episode(session, observer, journal)
            interrupted = _any_process(session, observer.should_stop())
            due = session.trainer.episode % config.checkpoint_every == 0
            done = stopped or session.step >= config.steps
            if is_main and (due or interrupted or done):
                session.save(folder, journal.n_rows, time.monotonic() - started)
            if stopped:
                return True
            if interrupted and not done:
                return False
    return True


def _episode(session: Session, observer: Observer, journal: Journal) -> bool:
    """Run one episode, write it down, and return whether early stopping ends the run."""
    config, before = session.config, session.step
    metrics = session.trainer.run_episode()
    session.recent_rewards.append(metrics.reward)
    journal.write([as_row("step", row) for row in session.env.take_rows()])
    journal.write([as_row("episode", metrics) | {"step": session.step}])
    if session.step // config.eval_every == before // config.eval_every:
        return False
    seen = session.evaluate()
    session.recent_rewards = []
    journal.write([as_row("evaluation", seen)])
    if observer.on_evaluation is not None and session.is_main:
        observer.on_evaluation(seen)
    return session.stopping.update(seen.reward, seen.accuracy) and config.early_stopping


def _any_process(session: Session, flag: bool) -> bool:
    """Return whether any process has the flag up, so that all of them stop together."""
    accelerator = session.learner.accelerator
    raised = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(raised, reduction="sum") > 0)


def _result(session: Session, command: Sequence[str], wall_s: float) -> dict[str, Any]:
    """Judge the policy's plan for every link on both held-out splits."""
    config, planner = session.config, session.planner
    links = []
    for snr_db in config.link.values_db:
        plan = planner.plan(planner.link(snr_db))
        splits = {name: session.judge(name, plan.ranks) for name in ("validation", "test")}
        accuracy = {f"{name}_accuracy": seen.accuracy for name, seen in splits.items()}
        loss = {f"{name}_loss": seen.loss for name, seen in splits.items()}
        row = {
            "snr_db": snr_db,
            "mean_rank": float(np.mean(plan.ranks)),
            "payload_bits": plan.payload_bits,
            "transmission_time_s": plan.transmission_time_s,
            "link_cost": plan.link_cost,
        }
        links.append(row | accuracy | loss)
    return {
        "policy": session.policy.name,
        "steps": session.step,
        "episodes": session.trainer.episode,
        "wall_s": round(wall_s, 2),
        "links": links,
    } | provenance(config, command, str(session.learner.accelerator.device))
