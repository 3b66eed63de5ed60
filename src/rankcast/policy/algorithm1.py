"""Algorithm 1: PPO and DDIM trained in turn on shared experience.

`AirLLMTrainer.run_episode` is the paper's loop; comments give its lines. The data that the denoiser
learns from (`DenoiserTrainer`) depend on the reading of Eq. 19's reward term:

- `utility-guided` (default): plans solved from a Bayesian utility (`Teacher`), and the modelled
  reward R̂ = -Û - λη differentiated through a short chain. PPO's actor is also shown the coarse
  description of the solved plans, with a weight that falls as episodes pass.
- `reward-weighted`: the literal one; executed plans, weighted by the reward that they earned.

Differs from the paper, where the policy always acts while it learns: in a share of the episodes
(`TrainingConfig.teacher_share`) the teacher acts, by exact Thompson sampling. The denoiser copies
its teacher's best plans well, but its exploring plans vary less than the draws that it is taught
on, so the belief learns less from them (`studies/exploration`). The policy acts in the other
episodes, and PPO learns from these alone. What is deployed is the policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import floor
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from rankcast.allocation.beliefs import LearnedUtility
from rankcast.allocation.saturating import make_utility
from rankcast.allocation.waterfilling import PriceFactor
from rankcast.config.policy import TrainingConfig
from rankcast.env.mdp import AllocationMdp, Outcome
from rankcast.errors import ConfigError
from rankcast.policy.airllm import AirLLM, Decision, make_condition
from rankcast.policy.diffusion_loss import (
    denoising_loss,
    modelled_reward,
    reward_weighted_loss,
    utility_guided_loss,
)
from rankcast.policy.ppo import RolloutBatch, gae, ppo_update
from rankcast.policy.rank_code import dequantise, encode
from rankcast.policy.teacher import Lesson, Teacher
from rankcast.records import FloatArray, IntArray, Observation


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of B links, as both stages share it.

    Attributes:
        observation: the states.
        ranks: (B, N) executed plans ã.
        outcome: what came of them.
        decision: how the policy decided, or None where the teacher acted.
    """

    observation: Observation
    ranks: IntArray
    outcome: Outcome
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class EpisodeMetrics:
    """The reward of an episode and how the updates went; means over steps and links.

    Where the teacher acted, `surrogate` and `value_loss` are 0: PPO had nothing to learn from.
    """

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
    """Trains a policy on an MDP, one episode at a time.

    Args:
        env: the MDP; all randomness of link and text is its own.
        policy: the policy, changed in place.
        config: settings.
        seed: of exploration and of the updates.
        price: factor on λ·η by link under which plans for teaching are solved; None: 1.

    Raises:
        ConfigError: policy and MDP are of different problems.
    """

    def __init__(
        self,
        env: AllocationMdp,
        policy: AirLLM,
        config: TrainingConfig | None = None,
        seed: int = 0,
        price: PriceFactor | None = None,
    ) -> None:
        if env.problem is not policy.problem:
            raise ConfigError(
                "Policy and environment must share one AllocationProblem, so that they have the "
                "same projections, r_max and λ; give both the same object."
            )
        self.env, self.policy, self.config = env, policy, config or TrainingConfig()
        self.episode = 0
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.utility = make_utility(
            env.layout,
            self.config.utility,
            policy.problem.component_weights,
            policy.config.blind,
            policy.problem.expected_gains,
        )
        self.teacher = Teacher(
            policy.problem,
            self.utility,
            policy.describe,
            self.config.teacher,
            price,
            mask=policy.mask,
        )
        self.ppo_optimizer = torch.optim.Adam(
            policy.actor_critic.parameters(), lr=policy.config.ppo.learning_rate, fused=True
        )
        self.denoiser = DenoiserTrainer(policy, self.config, self.utility, self.rng, self.generator)

    def run_episode(self) -> EpisodeMetrics:
        """Act for one episode, then update PPO and the denoiser (Algorithm 1, lines 2–21).

        NumPy's and SciPy's BLAS run on one thread meanwhile: their matrices are small, and two
        thread pools that wait actively on the same cores cost a hundred times what they save.
        """
        with _blas().limit(limits=1, user_api="blas"):
            # Line 2: the initial state; before the first episode, a warm-up of the denoiser.
            self._reset()
            # Lines 3–14: act, and collect the batch.
            batch = self._act()
            # Lines 15–16: PPO on real reward.
            surrogate, value_loss = self._update_ppo(batch)
            # Lines 17–21: the denoiser.
            denoising = self._update_denoiser()
        self.episode += 1
        return EpisodeMetrics(
            self.episode,
            _mean(t.outcome.reward for t in batch),
            _mean(t.outcome.task_loss for t in batch),
            _mean(t.outcome.link_cost for t in batch),
            _mean(t.ranks for t in batch),
            denoising,
            surrogate,
            value_loss,
            bool(batch[-1].outcome.terminated.any()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue, but for the state of the MDP and its learner."""
        return {
            "episode": self.episode,
            "policy": self.policy.state_dict(),
            "ppo_optimizer": self.ppo_optimizer.state_dict(),
            "ddim": self.denoiser.state_dict(),
            "rng": self.rng.bit_generator.state,
            "generator": self.generator.get_state(),
            "utility": self.utility.state_dict(),
            "teacher": self.teacher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.episode = int(state["episode"])
        self.policy.load_state_dict(state["policy"])
        self.ppo_optimizer.load_state_dict(state["ppo_optimizer"])
        self.denoiser.load_state_dict(state["ddim"])
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        self.utility.load_state_dict(state["utility"])
        self.teacher.load_state_dict(state["teacher"])

    @property
    def _uses_teacher(self) -> bool:
        return self.config.reward_term == "utility-guided"

    def _reset(self) -> None:
        """Begin an episode; the first one begins with plans drawn from the prior."""
        if self.episode > 0:
            self.env.reset()
            return
        self.env.reset(seed=int(self.rng.integers(2**31)))
        self.teacher.remember(self.env.observe())
        if self.policy.refines and self._uses_teacher:
            self._teach(self.config.warm_up_steps)

    def _act(self) -> list[Transition]:
        """Take the steps of one episode (lines 3–14); the utility learns from every one."""
        batch: list[Transition] = []
        taught = self._taught(self.episode)
        while not batch or not batch[-1].outcome.done:
            observation = self.env.observe()
            # Lines 4–11: coarse action, refinement, decoding; or the teacher's draw.
            decision = (
                None if taught else self.policy.act(observation, self.generator, explore=True)
            )
            ranks = decision.ranks if decision else self.teacher.act(observation, self.rng)
            # Lines 12–13: apply the ranks, pay for the link (Eq. 10), keep the transition.
            outcome = self.env.step(ranks)
            batch.append(Transition(observation, ranks, outcome, decision))
            self.teacher.remember(observation)
            self.utility.update(ranks, outcome.task_loss, observation.text, outcome.reference_loss)
            if self.policy.refines and not self._uses_teacher:
                self.denoiser.remember(batch[-1])
        return batch

    def _taught(self, episode: int) -> bool:
        """Return whether the teacher acts in an episode, counted from 0.

        Its episodes lie evenly among the others: after n episodes they are n times the share,
        rounded. It acts only where it teaches.
        """
        if not (self.policy.refines and self._uses_teacher):
            return False
        before, after = (floor(self.config.teacher_share * n + 0.5) for n in (episode, episode + 1))
        return after > before

    def _update_ppo(self, batch: list[Transition]) -> tuple[float, float]:
        """Improve actor and critic on real reward (lines 15–16); return J_CLIP and J_V.

        Only episodes in which the policy acts count: in the teacher's the actions are not the
        actor's, and their density under the actor says nothing about how they were chosen.
        """
        decisions = [t.decision for t in batch if t.decision is not None]
        if self.policy.config.proposal == "none" or not decisions:
            return 0.0, 0.0
        metrics = ppo_update(
            self.policy.actor_critic,
            self.ppo_optimizer,
            self._with_advantages(decisions, [t.outcome for t in batch]),
            self.policy.config.ppo,
            self.generator,
        )
        return metrics.surrogate, metrics.value_loss

    def _with_advantages(
        self, decisions: Sequence[Decision], outcomes: Sequence[Outcome]
    ) -> RolloutBatch:
        """Return an episode with its advantages (Eq. 11), time and links flattened."""
        policy, final = self.policy, self.env.observe()
        values = torch.stack([d.value for d in decisions])
        with torch.no_grad():
            last = policy.actor_critic.value(policy.actor_input(final))
        estimates = gae(
            _stack(o.reward for o in outcomes),
            values,
            torch.cat([values[1:], last[None]]),
            _stack(o.terminated for o in outcomes),
            _stack(o.truncated for o in outcomes),
            discount=policy.config.ppo.discount,
            decay=policy.config.ppo.decay,
        )
        return RolloutBatch(
            torch.cat([d.actor_input for d in decisions]),
            torch.cat([d.coarse for d in decisions]),
            torch.cat([d.log_prob for d in decisions]),
            estimates.advantages.flatten(),
            estimates.returns.flatten(),
        )

    def _update_denoiser(self) -> float:
        """Update the denoiser (lines 17–21); return the mean loss."""
        if not self.policy.refines:
            return 0.0
        if self._uses_teacher:
            return self._teach(self.config.gradient_steps)
        return self.denoiser.learn_rewarded()

    def _teach(self, gradient_steps: int) -> float:
        """Update denoiser and actor on fresh solved plans; return the denoising loss."""
        return self.denoiser.learn(self.teacher.lesson(self.rng), gradient_steps, self.episode)


class DenoiserTrainer:
    """Updates the denoiser (lines 17–21), and shows the actor what the denoiser is shown.

    Args:
        policy: the policy, changed in place.
        config: settings.
        utility: the belief behind the reward term.
        rng: source of the active ranks that the actor is shown.
        generator: source of everything else.
    """

    def __init__(
        self,
        policy: AirLLM,
        config: TrainingConfig,
        utility: LearnedUtility,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> None:
        self.policy, self.config, self.utility = policy, config, utility
        self.rng, self.generator = rng, generator
        lr = policy.config.diffusion.learning_rate
        self._denoiser_optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr, fused=True)
        self._actor_optimizer = torch.optim.Adam(
            policy.actor_critic.actor.parameters(), lr, fused=True
        )
        self._replay: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=config.replay_size)

    def state_dict(self) -> dict[str, Any]:
        """Return optimisers and replay."""
        return {
            "denoiser_optimizer": self._denoiser_optimizer.state_dict(),
            "actor_optimizer": self._actor_optimizer.state_dict(),
            "replay": list(self._replay),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._denoiser_optimizer.load_state_dict(state["denoiser_optimizer"])
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])
        self._replay.clear()
        self._replay.extend(state["replay"])

    def learn(self, lesson: Lesson, gradient_steps: int, episode: int) -> float:
        """Update denoiser and actor on solved plans; return the mean denoising loss.

        The loop over τ of line 17 is one random τ per sample, as is usual in diffusion training.
        """
        r_max, config = self.policy.problem.layout.r_max, self.config
        codes = encode(torch.as_tensor(lesson.ranks), r_max)
        condition = make_condition(lesson.features, _float(lesson.coarse), explore=lesson.explore)
        size = self.policy.config.diffusion.batch_size
        losses: list[float] = []
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
                self._show_actor(lesson, index, episode)
        return float(np.mean(losses)) if losses else 0.0

    def remember(self, transition: Transition) -> None:
        """Keep an executed plan for `learn_rewarded`."""
        decision, r_max = transition.decision, self.policy.problem.layout.r_max
        assert decision is not None, "where rewards are learned from, the policy acts"
        codes = encode(torch.as_tensor(transition.ranks), r_max)
        condition = self.policy.condition(transition.observation, decision.coarse, explore=True)
        rewards = transition.outcome.reward.tolist()
        self._replay.extend(zip(codes, condition, rewards, strict=True))

    def learn_rewarded(self) -> float:
        """Update the denoiser on executed plans, weighted by reward: Eq. 19 read literally."""
        d = self.policy.config.diffusion
        losses: list[float] = []
        for _ in range(self.config.gradient_steps):
            index = torch.randint(len(self._replay), (d.batch_size,), generator=self.generator)
            codes, conditions, rewards = zip(
                *(self._replay[i] for i in index.tolist()), strict=True
            )
            loss = reward_weighted_loss(
                self.policy.denoiser, self.policy.schedule, torch.stack(codes),
                torch.stack(conditions), torch.tensor(rewards), generator=self.generator,
                guidance_weight=d.guidance_weight, prediction=d.prediction,
                condition_dropout=d.condition_dropout,
            )  # fmt: skip
            self._descend(loss)
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _denoising_step(self, x0: Tensor, condition: Tensor) -> float:
        """Take one step on the first term of Eq. 19."""
        d = self.policy.config.diffusion
        loss = denoising_loss(
            self.policy.denoiser, self.policy.schedule, x0, condition, generator=self.generator,
            prediction=d.prediction, condition_dropout=d.condition_dropout,
        )  # fmt: skip
        self._descend(loss)
        return float(loss.detach())

    def _guided_step(self, x0: Tensor, condition: Tensor, lesson: Lesson, index: Tensor) -> float:
        """Take one step on both terms of Eq. 19, the reward through a short chain."""
        d, problem = self.policy.config.diffusion, self.policy.problem
        at = index.numpy()
        cost = problem.component_costs(lesson.link)[at]
        text = lesson.text.select(at) if self.config.utility.text_amplitude else None
        reward = modelled_reward(self.utility.mean_gains(text), problem.link_weight * cost)
        loss = utility_guided_loss(
            self.policy.denoiser, self.policy.schedule, x0, condition, reward,
            generator=self.generator, guidance_weight=d.guidance_weight,
            prediction=d.prediction, condition_dropout=d.condition_dropout,
            chain_steps=d.inference_steps,
        )  # fmt: skip
        self._descend(loss.total)
        return float(loss.denoising.detach())

    def _descend(self, loss: Tensor) -> None:
        """Take a gradient step (line 20); what acts follows slowly."""
        self._denoiser_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.denoiser.parameters(), 1.0)
        self._denoiser_optimizer.step()
        self.policy.follow_trained(self.config.ema_decay)

    def _show_actor(self, lesson: Lesson, index: Tensor, episode: int) -> None:
        """Show the actor the coarse description of the best plan, with a falling weight."""
        config = self.config
        weight = config.teacher_weight / (1.0 + episode / config.teacher_half_life)
        if weight == 0.0:
            return
        at = index.numpy()
        received = None if lesson.received is None else lesson.received[at]
        seen = self.policy.lesson_input(lesson.features[at], received, self.rng)
        actor = self.policy.actor_critic.actor
        error = (actor(seen) - _float(lesson.best_coarse)[index]).square().mean()
        self._actor_optimizer.zero_grad(set_to_none=True)
        (weight * error).backward()
        self._actor_optimizer.step()


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _mean(arrays: Iterable[np.ndarray[Any, Any]]) -> float:
    """Return the mean over steps and links."""
    return float(np.mean(np.stack(list(arrays))))


def _stack(arrays: Iterable[np.ndarray[Any, Any]]) -> Tensor:
    """Return (T, B) float32, or bool."""
    stacked = torch.as_tensor(np.stack(list(arrays)))
    return stacked if stacked.dtype == torch.bool else stacked.float()


def _float(array: FloatArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)
