"""Train a run to its end, or to the moment it is asked to stop; continue it bit-exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankcast.adapters.export import save_adapter
from rankcast.allocation.problem import AllocationProblem
from rankcast.config.plain import first_difference, to_plain
from rankcast.config.run import EnvConfig, RunConfig
from rankcast.env.mdp import AllocationMdp, Outcome
from rankcast.errors import CheckpointError, ConfigError, RankcastError
from rankcast.learner.datasets import load_dataset
from rankcast.learner.protocol import Evaluation
from rankcast.learner.transformer import TransformerLearner
from rankcast.link.build import expected_db, link_states, reference_db, snr_process
from rankcast.link.rate_models import rate_model_of
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer, EpisodeMetrics
from rankcast.presets import config_of
from rankcast.provenance import describe_device, package_versions
from rankcast.records import FloatArray, IntArray, LinkState
from rankcast.training.folder import RunFolder, load_state, save_state
from rankcast.training.journal import EvaluationRow, Journal, StepRow
from rankcast.training.planner import Planner, cost_of


class EarlyStopping:
    """Stop once the reward is good enough and accuracy has stopped improving (Sec. V-A).

    Training ends when the reward exceeds min(−λ, −0.5) and accuracy has not improved for
    `patience` evaluations in a row. The paper evaluates every 100 steps.

    Args:
        link_weight: λ of Eq. 10.
        patience: evaluations without improvement that are allowed, 5 in the paper.
    """

    def __init__(self, link_weight: float, patience: int = 5) -> None:
        self.reward_threshold = min(-link_weight, -0.5)
        self.patience = patience
        self.best_accuracy = -math.inf
        self.stale = 0

    def update(self, reward: float, accuracy: float) -> bool:
        """Take in one evaluation and return whether training should stop.

        Raises:
            RankcastError: reward or accuracy is not a number.
        """
        if math.isnan(reward) or math.isnan(accuracy):
            raise RankcastError(
                f"Cannot judge an evaluation with reward {reward} and accuracy {accuracy}: "
                f"the training has diverged; lower the learning rate."
            )
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.stale = accuracy, 0
        else:
            self.stale += 1
        return self.stale >= self.patience and reward > self.reward_threshold

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy and the evaluations since."""
        return {"best_accuracy": self.best_accuracy, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.best_accuracy = float(state["best_accuracy"])
        self.stale = int(state["stale"])


MAY_DIFFER = ("output", "checkpoint_every", "tensorboard")
"""Settings that may change when a run is continued."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A split under one plan.

    Attributes:
        accuracy: share of right answers.
        loss: mean task loss.
        correct: (n,) share of right answers of each text.
        exact_match: of a language model: share of texts that were right in every token.
    """

    accuracy: float
    loss: float
    correct: FloatArray
    exact_match: float | None = None

    def to_plain(self) -> dict[str, float]:
        """Return all but the single texts, without what does not apply."""
        return Evaluation(self.loss, self.accuracy, len(self.correct), self.exact_match).to_plain()


class Session:
    """A run in memory: learner, environment and policy, made from one configuration.

    Args:
        config: the run.
        on_step: called with the row of every training step.

    Raises:
        RankcastError: data, model, link or policy cannot be had as configured.
    """

    def __init__(self, config: RunConfig, on_step: Callable[[StepRow], None] | None = None) -> None:
        self.config, link = config, config.link
        process = snr_process(link)  # what cannot be is refused before a model is loaded
        links = link_states(link, expected_db(process, link))
        rate_model_of(link)
        self.reference_db = reference_db(process, link)
        self.learner = TransformerLearner(config.finetune, load_dataset(config.data))
        self.problem = AllocationProblem.from_config(link, self.learner.layout)
        self.problem.require_feasible(links)
        self.env = AllocationMdp(
            self.learner,
            process,
            self.problem,
            EnvConfig(link.bandwidth_hz, link.deadline_s, config.horizon),
            on_step=self._record,
        )
        self.policy = AirLLM(self.problem, config.policy, config.seed)
        self.trainer = AirLLMTrainer(self.env, self.policy, config.training, config.seed)
        self.stopping = EarlyStopping(link.link_weight, config.patience)
        self._on_step = on_step
        self._rows: list[StepRow] = []
        self._rewards: list[float] = []
        self._judged: dict[tuple[Any, ...], Judgement] = {}

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.learner.accelerator.is_main_process

    @property
    def step(self) -> int:
        """Training steps taken."""
        return self.learner.n_steps

    @property
    def planner(self) -> Planner:
        """The policy as it stands."""
        trainer, text = self.trainer, self.trainer.teacher.mean_text()
        return Planner(self.problem, self.policy, trainer.utility, text, self.config)

    def run_episode(self) -> tuple[list[StepRow], EpisodeMetrics]:
        """Train for one episode; return its steps and what it came to."""
        metrics = self.trainer.run_episode()
        self._rewards.append(metrics.reward)
        rows, self._rows = self._rows, []
        return rows, metrics

    def evaluate(self) -> EvaluationRow:
        """Judge the validation split under the policy's plan for the reference link.

        The row's reward is the mean of the episodes since the evaluation before.
        """
        planner, rewards = self.planner, self._rewards
        plan = planner.plan(planner.link(self.reference_db))
        judged = self.learner.evaluate("validation", plan.ranks, self.config.eval_max_examples)
        reward = float(np.mean(rewards)) if rewards else float("-inf")
        self._rewards = []
        return EvaluationRow(
            self.step,
            self.reference_db,
            judged.accuracy,
            judged.loss,
            float(plan.ranks.mean()),
            reward,
        )

    def judge(self, split: str, ranks: IntArray) -> Judgement:
        """Judge a whole split under (N,) ranks; each plan once as long as nothing is trained."""
        key = (self.step, split, *ranks.tolist())
        if key not in self._judged:
            loss, correct, count = self.learner.judge_texts(split, ranks, None)
            found = self.learner.evaluation_of(loss, correct, count)
            self._judged[key] = Judgement(
                found.accuracy, found.loss, correct / np.maximum(count, 1), found.exact_match
            )
        return self._judged[key]

    def save(self, folder: RunFolder, n_rows: int, elapsed_s: float) -> None:
        """Write a checkpoint, after which the journal had `n_rows` rows."""
        state = {
            "config": to_plain(self.config),
            "n_rows": n_rows,
            "elapsed_s": elapsed_s,
            "learner": self.learner.state_dict(),
            "env": self.env.state_dict(),
            "trainer": self.trainer.state_dict(),
            "stopping": self.stopping.state_dict(),
            "recent_rewards": self._rewards,
        }
        save_state(folder.checkpoint, state)

    def load(self, folder: RunFolder) -> tuple[int, float]:
        """Continue from a checkpoint; return its rows and the seconds spent until then.

        Raises:
            CheckpointError: no checkpoint, a truncated one, or one of another configuration; names
                the first setting that differs.
        """
        state = load_state(folder.checkpoint)
        check_same(state["config"], self.config, folder)
        self.learner.load_state_dict(state["learner"])
        self.env.load_state_dict(state["env"])
        self.trainer.load_state_dict(state["trainer"])
        self.stopping.load_state_dict(state["stopping"])
        self._rewards = list(state["recent_rewards"])
        return int(state["n_rows"]), float(state["elapsed_s"])

    def _record(self, link: LinkState, ranks: IntArray, outcome: Outcome) -> None:
        """Keep the row of a step, and show it to whoever watches."""
        reference = outcome.reference_loss
        row = StepRow(
            self.step,
            float(link.snr_db[0]),
            float(outcome.reward[0]),
            float(outcome.task_loss[0]),
            None if reference is None else float(reference[0]),
            float(outcome.link_cost[0]),
            float(ranks.mean()),
        )
        self._rows.append(row)
        if self._on_step is not None and self.is_main:
            self._on_step(row)


def check_same(saved: dict[str, Any], config: RunConfig, folder: RunFolder) -> None:
    """Refuse to continue a run under other settings.

    Raises:
        CheckpointError: names the first setting that differs.
    """
    before, now = to_plain(config_of(saved)), to_plain(config)
    for name in MAY_DIFFER:
        before, now = before | {name: None}, now | {name: None}
    difference = first_difference(before, now)
    if difference:
        raise CheckpointError(
            f"{folder.checkpoint} belongs to another run: {difference}. Continue it with its own "
            f"settings (`rankcast train {folder.config} --resume`), or name another --output."
        )


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
    on_step: Callable[[StepRow], None] | None = None,
    on_evaluation: Callable[[EvaluationRow], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a run and leave everything that it is worth in its folder.

    Args:
        config: the run.
        resume: continue from the checkpoint in the run's folder.
        overwrite: replace a run that is in the folder.
        command: what the person typed, for `result.json`.
        on_step: sees every training step.
        on_evaluation: sees every look at the validation split.
        should_stop: asked after each episode; True ends the run with a checkpoint.

    Raises:
        ConfigError: the folder holds another run, and neither of the two is asked for; or a run
            for a file of a given size.
        CheckpointError: there is nothing to resume, or it is of another configuration.
        RankcastError: data, model or link cannot be had as configured, or training diverged.
    """
    if config.codec.target_bytes is not None:
        raise ConfigError(
            "A run with codec.target_bytes trains one file and no policy: call "
            "rankcast.train_to_size, or leave target_bytes out."
        )
    folder = RunFolder(Path(config.output))
    if resume:  # before a model is loaded
        check_same(load_state(folder.checkpoint)["config"], config, folder)
    else:
        folder.refuse_other_run(overwrite=overwrite)
    session = Session(config, on_step)
    n_rows, elapsed_s = session.load(folder) if resume else (0, 0.0)
    session.learner.accelerator.wait_for_everyone()  # all have looked at the folder
    if session.is_main and not resume:
        folder.begin(config)
    started = time.monotonic() - elapsed_s
    board = folder.tensorboard if config.tensorboard and session.is_main else None
    log = folder.log if session.is_main else None
    finished, interrupted = session.step >= config.steps, False
    with closing(Journal(log, n_rows, board, session.step)) as journal:
        while not (finished or interrupted):
            before = session.step
            steps, metrics = session.run_episode()
            journal.write("step", steps)
            journal.write("episode", [metrics], step=session.step)
            stopped = _evaluate_if_due(session, journal, before, on_evaluation)
            interrupted = any_process(session.learner, should_stop())
            finished = stopped or session.step >= config.steps
            due = session.trainer.episode % config.checkpoint_every == 0
            if session.is_main and (due or interrupted or finished):
                session.save(folder, journal.n_rows, time.monotonic() - started)
    result: dict[str, Any] = {}
    if finished:
        result = _result(session, command, time.monotonic() - started)
        if session.is_main:
            planner = session.planner
            gains = planner.utility.mean_gains(planner.text)[0]
            save_adapter(session.learner.adapter, folder.adapter, gains=gains)
            planner.save(folder)
            folder.write_json(folder.result, result)
    return TrainResult(session, folder, finished, result)


def _evaluate_if_due(
    session: Session,
    journal: Journal,
    before: int,
    on_evaluation: Callable[[EvaluationRow], None] | None,
) -> bool:
    """Evaluate after every so many steps, and return whether the run should end early.

    Args:
        session: the run.
        journal: takes the evaluation's row.
        before: steps taken before the last episode.
        on_evaluation: sees the row.
    """
    config = session.config
    if session.step // config.eval_every == before // config.eval_every:
        return False
    row = session.evaluate()
    journal.write("evaluation", [row])
    if on_evaluation is not None and session.is_main:
        on_evaluation(row)
    return session.stopping.update(row.reward, row.accuracy) and config.early_stopping


def any_process(learner: TransformerLearner, flag: bool) -> bool:
    """Return whether any process has the flag up, so that all of them stop together."""
    accelerator = learner.accelerator
    raised = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(raised, reduction="sum") > 0)


def _result(session: Session, command: Sequence[str], wall_s: float) -> dict[str, Any]:
    """Judge the policy's plan for every link on both held-out splits."""
    config, planner = session.config, session.planner
    links = []
    for snr_db in config.link.iid.values_db:
        plan = planner.plan(planner.link(snr_db))
        splits = {name: session.judge(name, plan.ranks) for name in ("validation", "test")}
        row = {"snr_db": snr_db} | cost_of(plan)
        for name, judged in splits.items():
            row |= {f"{name}_{key}": value for key, value in judged.to_plain().items()}
        links.append(row)
    return {
        "policy": session.policy.name,
        "steps": session.step,
        "episodes": session.trainer.episode,
        "wall_s": round(wall_s, 2),
        "links": links,
        "seeds": {"run": config.seed, "data": config.data.seed, "finetune": config.finetune.seed},
        "command": " ".join(command),
        "device": describe_device(str(session.learner.accelerator.device)),
        "threads": torch.get_num_threads(),
        "versions": package_versions(),
        "config": to_plain(config),
    }
