"""Algorithm 1: PPO and DDIM trained in turn on shared experience.

One episode: act T_env steps (lines 3–14); update PPO on them (lines 15–16); update the denoiser
(lines 17–21). What the denoiser learns from depends on the reading of Eq. 19's reward term:

- `utility-guided` (default): plans solved from a Bayesian utility (`Teacher`), and the modelled
  reward R̂ = -Û - λη differentiated through a short chain. PPO's actor is also shown the coarse
  description of the solved plans, ever less as episodes pass.
- `reward-weighted`: the literal one; executed plans, weighted by the reward that they earned.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from rankcast.allocation.saturating import make_utility
from rankcast.env import RankAllocationVectorEnv
from rankcast.errors import ConfigError
from rankcast.policy.airllm import AirLLM
from rankcast.policy.ddim_stage import DdimStage, TrainingConfig
from rankcast.policy.experience import EpisodeMetrics, Transition, mean_of, rollout_batch
from rankcast.policy.ppo import ppo_update
from rankcast.policy.teacher import Teacher

__all__ = ["AirLLMTrainer", "EpisodeMetrics", "TrainingConfig", "Transition"]


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
        self.utility = make_utility(env.layout, self.config.utility)
        self.teacher = Teacher(
            policy.problem,
            self.utility,
            policy.describe,
            self.config.teacher,
            blindfold=policy.blindfold,
        )
        self.ddim = DdimStage(policy, self.config, self.utility, self.rng, self.generator)
        self.ppo_optimizer = torch.optim.Adam(
            policy.actor_critic.parameters(), lr=policy.config.ppo.learning_rate, fused=True
        )

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
            denoising = self.ddim.imitate_rewarded()
        self.episode += 1
        return EpisodeMetrics(
            self.episode,
            mean_of(t.reward for t in transitions),
            mean_of(t.task_loss for t in transitions),
            mean_of(t.link_cost for t in transitions),
            mean_of(t.decision.ranks for t in transitions),
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
            "ppo_optimizer": self.ppo_optimizer.state_dict(),
            "ddim": self.ddim.state_dict(),
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
        self.ddim.load_state_dict(state["ddim"])
        self.rng.bit_generator.state = state["rng"]
        self.generator.set_state(state["generator"])
        self.utility.load_state_dict(state["utility"])
        self.teacher.load_state_dict(state["teacher"])

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
            if self._refines and not self._uses_teacher:
                self.ddim.remember(transitions[-1])
            done = bool(terminated.any() or truncated.any())
        return transitions

    def _update_ppo(self, transitions: list[Transition]) -> tuple[float, float]:
        """Improve actor and critic on real reward (lines 15–16)."""
        if self.policy.config.proposal == "none":
            return 0.0, 0.0
        batch = rollout_batch(transitions, self.policy, self.env.observe())
        metrics = ppo_update(
            self.policy.actor_critic,
            self.ppo_optimizer,
            batch,
            self.policy.config.ppo,
            self.generator,
        )
        return metrics.surrogate, metrics.value_loss

    def teach(self, gradient_steps: int) -> float:
        """Update the denoiser and the actor on fresh solved plans; return the denoising loss."""
        lesson = self.teacher.lesson(self.rng)
        return self.ddim.teach(lesson, gradient_steps, self.episode)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
