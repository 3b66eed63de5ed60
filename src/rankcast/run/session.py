"""A run in memory: learner, environment and policy, made from one configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.env import EnvConfig
from rankcast.errors import CheckpointError
from rankcast.finetune.datasets import load_dataset
from rankcast.finetune.early_stopping import EarlyStopping
from rankcast.finetune.transformer import TransformerLearner
from rankcast.policy.airllm import AirLLM
from rankcast.policy.training import AirLLMTrainer
from rankcast.records import FloatArray, IntArray
from rankcast.run.config import RunConfig
from rankcast.run.folder import RunFolder, load_state, save_state
from rankcast.run.planning import Planner
from rankcast.run.recording import EvaluationRow, RecordingEnv
from rankcast.run.schema import first_difference, to_plain

MAY_DIFFER = ("output", "checkpoint_every", "tensorboard")
"""Settings that may change when a run is continued."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A split under one plan.

    Attributes:
        accuracy: share of right answers.
        loss: mean task loss.
        correct: (n,) share of right answers of each text.
    """

    accuracy: float
    loss: float
    correct: FloatArray


class Session:
    """Everything that a run holds.

    Args:
        config: the run.

    Raises:
        RankcastError: data, model, link or policy cannot be had as configured.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.learner = TransformerLearner(config.finetune, load_dataset(config.data))
        link = config.link
        self.problem = link.problem(self.learner.layout)
        self.problem.require_feasible(link.states(link.expected_db))
        env = EnvConfig(link.bandwidth_hz, link.deadline_s, link.link_weight, config.horizon)
        self.env = RecordingEnv(self.learner, link.snr_process(), self.problem.link_costs, env)
        self.policy = AirLLM(self.problem, config.policy, config.seed)
        self.trainer = AirLLMTrainer(self.env, self.policy, config.training, config.seed)
        self.stopping = EarlyStopping(link.link_weight, config.patience)
        self.recent_rewards: list[float] = []
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
        return Planner.of_trainer(self.trainer, self.config)

    def evaluate(self) -> EvaluationRow:
        """Judge the validation split under the policy's plan for the reference link."""
        snr_db, planner = self.config.link.reference_db, self.planner
        plan = planner.plan(planner.link(snr_db))
        seen = self.learner.evaluate("validation", plan.ranks, self.config.eval_max_examples)
        reward = float(np.mean(self.recent_rewards)) if self.recent_rewards else float("-inf")
        mean_rank = float(plan.ranks.mean())
        return EvaluationRow(self.step, snr_db, seen.accuracy, seen.loss, mean_rank, reward)

    def judge(self, split: str, ranks: IntArray) -> Judgement:
        """Judge a whole split under (N,) ranks; each plan once as long as nothing is trained."""
        key = (self.step, split, *ranks.tolist())
        if key not in self._judged:
            loss, correct, count = self.learner.judge_texts(split, ranks, None)
            total = max(count.sum(), 1)
            self._judged[key] = Judgement(
                float(correct.sum() / total),
                float(loss.sum() / total),
                correct / np.maximum(count, 1),
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
            "recent_rewards": self.recent_rewards,
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
        self.recent_rewards = list(state["recent_rewards"])
        return int(state["n_rows"]), float(state["elapsed_s"])


def check_same(saved: dict[str, Any], config: RunConfig, folder: RunFolder) -> None:
    """Refuse to continue a run under other settings.

    Raises:
        CheckpointError: names the first setting that differs.
    """
    now = to_plain(config)
    for name in MAY_DIFFER:
        saved, now = saved | {name: None}, now | {name: None}
    difference = first_difference(saved, now)
    if difference:
        raise CheckpointError(
            f"{folder.checkpoint} belongs to another run: {difference}. Continue it with its own "
            f"settings (`rankcast train {folder.config} --resume`), or name another --output."
        )
