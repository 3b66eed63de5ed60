"""Algorithm 1: PPO and DDIM trained in turn on shared experience.

One episode: act T_env steps (lines 3–14); update PPO on them (lines 15–16); update the denoiser
(lines 17–21). What the denoiser learns from depends on the reading of Eq. 19's reward term:

- `utility-guided` (default): plans solved from a Bayesian utility (`Teacher`), and the modelled
  reward R̂ = -Û - λη differentiated through a short chain. PPO's actor is also shown the coarse
  description of the solved plans, ever less as episodes pass.
- `reward-weighted`: the literal one; executed plans, weighted by the reward that they earned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rankcast.allocation.utility import BayesianUtility, UtilityConfig
from rankcast.env import RankAllocationVectorEnv
from rankcast.errors import ConfigError
from rankcast.policy.airllm import AirLLM, Decision, make_condition
from rankcast.policy.diffusion_loss import (
    denoising_loss,
    reward_weights,
    utility_guided_loss,
)
from rankcast.policy.gae import gae
from rankcast.policy.ppo import RolloutBatch, ppo_update
from rankcast.policy.rank_code import bin_width, dequantise, encode
from rankcast.policy.schedule import check_choice
from rankcast.policy.teacher import Lesson, Teacher, TeacherConfig
from rankcast.records import FloatArray, Observation

RewardTerm = Literal["utility-guided", "reward-weighted"]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings of Algorithm 1.

    Attributes:
        reward_term: the reading of Eq. 19.
        gradient_steps: updates of the denoiser per episode.
        warm_up_steps: updates before the first episode, on plans drawn from the prior.
        guided_every: every how many updates the reward term of `utility-guided` is evaluated;
            0 never.
        dequantise_width: noise on the rank codes, as a share of a bin.
        ema_decay: how slowly the acting denoiser follows the trained one.
        teacher_weight: weight of the actor's imitation of the solved plans at the start.
        teacher_half_life: episodes after which that weight has halved (hyperbolically).
        imitate_every: every how many updates of the denoiser the actor is shown solved plans.
        replay_size: transitions kept for `reward-weighted`.
        teacher: how plans for teaching are made.
        utility: prior and noise of the learned utility.
    """

    reward_term: RewardTerm = "utility-guided"
    gradient_steps: int = 40
    warm_up_steps: int = 200
    guided_every: int = 0
    dequantise_width: float = 0.5
    ema_decay: float = 0.99
    teacher_weight: float = 1.0
    teacher_half_life: float = 500.0
    imitate_every: int = 4
    replay_size: int = 10_000
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    utility: UtilityConfig = field(default_factory=UtilityConfig)

    def __post_init__(self) -> None:
        """Refuse an unknown reading."""
        check_choice("reward term", self.reward_term, get_args(RewardTerm))


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of B environments, as both stages share it."""

    observation: Observation
    decision: Decision
    reward: FloatArray
    task_loss: FloatArray
    link_cost: FloatArray
    terminated: np.ndarray[Any, np.dtype[np.bool_]]
    truncated: np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class EpisodeMetrics:
    """What an episode earned and how the updates went; means over steps and environments."""

    episode: int
    reward: float
    task_loss: float
    link_cost: float
    mean_rank: float
    denoising_loss: float
    surrogate: float
    value_loss: float
    stopped: bool


class AirLLMTrainer:
    """Trains a policy on an environment, one episode at a time.

    Args:
        env: the environments; all randomness of link and text is theirs.
        policy: the policy, changed in place.
        config: settings.
        seed: of exploration and of the updates.

    Raises:
        ConfigError: policy and environment have different layouts.
    """

    def __init__(
        self,
        env: RankAllocationVectorEnv,
        policy: AirLLM,
        config: TrainingConfig | None = None,
        seed: int = 0,
    ) -> None:
        if env.layout != policy.problem.layout:
            raise ConfigError("Policy and environment must have the same projections and r_max.")
        if env.config.link_weight != policy.problem.link_weight:
            raise ConfigError(
                f"Policy and environment must weigh the link alike; λ is "
                f"{policy.problem.link_weight} in one and {env.config.link_weight} in the other."
            )
        self.env, self.policy, self.config = env, policy, config or TrainingConfig()
        self.episode = 0
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.utility = BayesianUtility(env.layout, self.config.utility)
        self.teacher = Teacher(policy.problem, self.utility, policy.describe, self.config.teacher)
        d = policy.config.diffusion
        self.actor_optimizer = torch.optim.Adam(
            policy.actor_critic.parameters(), lr=policy.config.ppo.learning_rate, fused=True
        )
        self.imitation_optimizer = torch.optim.Adam(
            policy.actor_critic.actor.parameters(), lr=d.learning_rate, fused=True
        )
        self.denoiser_optimizer = torch.optim.Adam(
            policy.denoiser.parameters(), lr=d.learning_rate, fused=True
        )
        self._follow = get_ema_multi_avg_fn(self.config.ema_decay)
        self._replay: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=self.config.replay_size)

    def run_episode(self) -> EpisodeMetrics:
        """Act for one episode, then update PPO and the denoiser (Algorithm 1, lines 2–21).

        NumPy's and SciPy's BLAS run on one thread meanwhile: their matrices are small, and two
        thread pools that wait actively on the same cores cost a hundred times what they save.
        """
        with _blas().limit(limits=1, user_api="blas"):
            return self._run_episode()

    def _run_episode(self) -> EpisodeMetrics:
        if self.episode == 0:
            self.env.reset(seed=int(self.rng.integers(2**31)))
            self.teacher.remember(self.env.observe())
            if self._refines and self._uses_teacher:
                self.teach(self.config.warm_up_steps)
        transitions = self._act()
        surrogate, value_loss = self._update_ppo(transitions)
        denoising = 0.0
        if self._refines and self._uses_teacher:
            denoising = self.teach(self.config.gradient_steps)
        elif self._refines:
            denoising = self._imitate_rewarded()
        self.episode += 1
        return EpisodeMetrics(
            self.episode,
            _mean(t.reward for t in transitions),
            _mean(t.task_loss for t in transitions),
            _mean(t.link_cost for t in transitions),
            _mean(t.decision.ranks for t in transitions),
            denoising,
            surrogate,
            value_loss,
            bool(transitions[-1].terminated.any()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue, but for the environment's and learner's state."""
        return {
            "episode": self.episode,
            "policy": self.policy.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "imitation_optimizer": self.imitation_optimizer.state_dict(),
            "denoiser_optimizer": self.denoiser_optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state(),
            "utility": self.utility.state_dict(),
            "teacher": self.teacher.state_dict(),
            "replay": list(self._replay),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.episode = int(state["episode"])
        self.policy.load_state_dict(state["policy"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.imitation_optimizer.load_state_dict(state["imitation_optimizer"])
        self.denoiser_optimizer.load_state_dict(state["denoiser_optimizer"])
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        self.utility.load_state_dict(state["utility"])
        self.teacher.load_state_dict(state["teacher"])
        self._replay.clear()
        self._replay.extend(state["replay"])

    @property
    def _refines(self) -> bool:
        return self.policy.config.refinement != "none"

    @property
    def _uses_teacher(self) -> bool:
        return self.config.reward_term == "utility-guided"

    def _act(self) -> list[Transition]:
        """Roll out one episode (lines 2–14); the utility learns from every step."""
        if self.episode > 0:
            self.env.reset()
        transitions: list[Transition] = []
        done = False
        while not done:
            observation = self.env.observe()
            decision = self.policy.act(observation, self.generator, explore=True)
            _, reward, terminated, truncated, info = self.env.step(decision.ranks)
            reference_loss = info.get("reference_loss")
            transitions.append(
                Transition(
                    observation, decision, reward, info["task_loss"], info["link_cost"],
                    terminated, truncated,
                )
            )  # fmt: skip
            self.teacher.remember(observation)
            self.utility.update(decision.ranks, info["task_loss"], observation.text, reference_loss)
            self._remember_plan(transitions[-1])
            done = bool(terminated.any() or truncated.any())
        return transitions

    def _remember_plan(self, transition: Transition) -> None:
        """Keep what the literal reading of Eq. 19 learns from."""
        if not self._refines or self._uses_teacher:
            return
        decision, r_max = transition.decision, self.policy.problem.layout.r_max
        codes = encode(torch.as_tensor(decision.ranks), r_max)
        condition = self.policy.condition(transition.observation, decision.coarse, explore=True)
        self._replay.extend(zip(codes, condition, transition.reward.tolist(), strict=True))

    def _update_ppo(self, transitions: list[Transition]) -> tuple[float, float]:
        """Improve actor and critic on real reward (lines 15–16)."""
        config = self.policy.config
        if config.proposal == "none":
            return 0.0, 0.0
        rewards = _stack(t.reward for t in transitions)
        values = torch.stack([t.decision.value for t in transitions])
        with torch.no_grad():
            final = self.policy.actor_input(self.env.observe())
            last = self.policy.actor_critic.value(final)
        estimates = gae(
            rewards,
            values,
            torch.cat([values[1:], last[None]]),
            _stack(t.terminated for t in transitions),
            _stack(t.truncated for t in transitions),
            discount=config.ppo.discount,
            decay=config.ppo.decay,
        )
        batch = RolloutBatch(
            torch.cat([t.decision.actor_input for t in transitions]),
            torch.cat([t.decision.coarse for t in transitions]),
            torch.cat([t.decision.log_prob for t in transitions]),
            estimates.advantages.flatten(),
            estimates.returns.flatten(),
        )
        metrics = ppo_update(
            self.policy.actor_critic, self.actor_optimizer, batch, config.ppo, self.generator
        )
        return metrics.surrogate, metrics.value_loss

    def teach(self, gradient_steps: int) -> float:
        """Update the denoiser and the actor on solved plans; return the mean denoising loss."""
        lesson = self.teacher.lesson(self.rng)
        r_max, config = self.policy.problem.layout.r_max, self.config
        codes = encode(torch.as_tensor(lesson.ranks), r_max)
        condition = make_condition(lesson.features, _float(lesson.coarse), explore=lesson.explore)
        size = self.policy.config.diffusion.batch_size
        losses = []
        for step in range(gradient_steps):
            index = torch.randint(len(codes), (size,), generator=self.generator)
            x0 = dequantise(codes[index], r_max, self.generator, config.dequantise_width)
            guided = config.guided_every > 0 and step % config.guided_every == 0
            losses.append(
                self._guided_step(x0, condition[index], lesson, index)
                if guided
                else self._denoising_step(x0, condition[index])
            )
            if self.policy.config.proposal == "ppo" and step % config.imitate_every == 0:
                self._imitate_coarse(lesson, index)
        self.policy.weights_changed()
        return float(np.mean(losses)) if losses else 0.0

    def _denoising_step(
        self, x0: Tensor, condition: Tensor, weights: Tensor | None = None
    ) -> float:
        d = self.policy.config.diffusion
        loss = denoising_loss(
            self.policy.denoiser, self.policy.schedule, x0, condition, generator=self.generator,
            prediction=d.prediction, condition_dropout=d.condition_dropout, weights=weights,
        )  # fmt: skip
        self._step_denoiser(loss)
        return float(loss.detach())

    def _guided_step(self, x0: Tensor, condition: Tensor, lesson: Lesson, index: Tensor) -> float:
        """One update with Eq. 19's reward term, differentiated through a short chain."""
        d = self.policy.config.diffusion
        reward = modelled_reward(self.utility, self.policy, lesson, index)
        loss = utility_guided_loss(
            self.policy.denoiser, self.policy.schedule, x0, condition, reward,
            generator=self.generator, guidance_weight=d.guidance_weight,
            prediction=d.prediction, condition_dropout=d.condition_dropout,
            chain_steps=d.inference_steps,
        )  # fmt: skip
        self._step_denoiser(loss.total)
        return float(loss.denoising.detach())

    def _step_denoiser(self, loss: Tensor) -> None:
        self.denoiser_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.denoiser.parameters(), 1.0)
        self.denoiser_optimizer.step()
        acting = list[Tensor](self.policy.acting_denoiser.parameters())
        trained = [p.detach() for p in self.policy.denoiser.parameters()]
        self._follow(acting, trained, torch.tensor(0))

    def _imitate_coarse(self, lesson: Lesson, index: Tensor) -> None:
        """Show the actor the coarse description of the best plan, ever less."""
        config = self.config
        weight = config.teacher_weight / (1.0 + self.episode / config.teacher_half_life)
        if weight == 0.0:
            return
        actor = self.policy.actor_critic.actor
        seen = self.policy.actor_input_of(lesson.features[index.numpy()], self.rng)
        error = (actor(seen) - _float(lesson.best_coarse)[index]).square().mean()
        self.imitation_optimizer.zero_grad(set_to_none=True)
        (weight * error).backward()
        self.imitation_optimizer.step()

    def _imitate_rewarded(self) -> float:
        """Eq. 19 read literally: executed plans, weighted by the reward that they earned."""
        d = self.policy.config.diffusion
        losses = []
        for _ in range(self.config.gradient_steps):
            index = torch.randint(len(self._replay), (d.batch_size,), generator=self.generator)
            rows = [self._replay[i] for i in index.tolist()]
            rewards = torch.tensor([row[2] for row in rows])
            losses.append(
                self._denoising_step(
                    torch.stack([row[0] for row in rows]),
                    torch.stack([row[1] for row in rows]),
                    reward_weights(rewards, d.guidance_weight),
                )
            )
        self.policy.weights_changed()
        return float(np.mean(losses))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def modelled_reward(
    utility: BayesianUtility, policy: AirLLM, lesson: Lesson, index: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return R̂ = -Û - λη of codes (B, N), differentiable: gains interpolated between ranks.

    R̂ is measured in units of the total gain, so that κ does not depend on the task.
    """
    r_max = policy.problem.layout.r_max
    gains = _float(utility.mean_gains())
    removed = torch.cat([torch.zeros(len(gains), 1), gains.cumsum(dim=1)], dim=1)
    cost = policy.problem.cost_per_rank(lesson.link)[index.numpy()]
    price = _float(policy.problem.link_weight * cost)
    scale = gains.sum().clamp_min(1e-8)

    def reward(codes: Tensor) -> Tensor:
        rank = ((codes + 1.0) / bin_width(r_max) - 0.5).clamp(0.0, r_max)
        floor = rank.detach().floor().clamp(max=r_max - 1).long()
        part = rank - floor
        low = removed.expand(len(codes), -1, -1).gather(2, floor[..., None]).squeeze(-1)
        slope = gains.expand(len(codes), -1, -1).gather(2, floor[..., None]).squeeze(-1)
        return (low + part * slope - price * rank).sum(dim=1) / scale

    return reward


def _float(array: FloatArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _stack(arrays: Iterable[np.ndarray[Any, Any]]) -> Tensor:
    """Return (T, B) float32, or bool."""
    stacked = torch.as_tensor(np.stack(list(arrays)))
    return stacked if stacked.dtype == torch.bool else stacked.float()


def _mean(arrays: Iterable[np.ndarray[Any, Any]]) -> float:
    return float(np.mean(np.stack(list(arrays))))
