"""The DDIM stage of Algorithm 1 (lines 17–21): what the denoiser learns from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rankcast.allocation.utility import LearnedUtility, UtilityConfig
from rankcast.policy.airllm import AirLLM, make_condition
from rankcast.policy.diffusion_loss import denoising_loss, reward_weighted_loss, utility_guided_loss
from rankcast.policy.experience import Transition
from rankcast.policy.rank_code import bin_width, dequantise, encode
from rankcast.policy.schedule import check_choice
from rankcast.policy.teacher import Lesson, TeacherConfig
from rankcast.records import FloatArray

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


class DdimStage:
    """Updates the denoiser, and shows the actor what the denoiser is shown.

    Args:
        policy: the policy, changed in place.
        config: settings.
        utility: the belief behind the reward term.
        rng: source of the ranks in force that the actor is shown.
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
        self._follow = get_ema_multi_avg_fn(config.ema_decay)
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

    def teach(self, lesson: Lesson, gradient_steps: int, episode: int) -> float:
        """Update the denoiser and the actor on solved plans; return the mean denoising loss."""
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
                self._imitate_coarse(lesson, index, episode)
        self.policy.weights_changed()
        return float(np.mean(losses)) if losses else 0.0

    def remember(self, transition: Transition) -> None:
        """Keep what the literal reading of Eq. 19 learns from."""
        decision, r_max = transition.decision, self.policy.problem.layout.r_max
        codes = encode(torch.as_tensor(decision.ranks), r_max)
        condition = self.policy.condition(transition.observation, decision.coarse, explore=True)
        self._replay.extend(zip(codes, condition, transition.reward.tolist(), strict=True))

    def imitate_rewarded(self) -> float:
        """Eq. 19 read literally: executed plans, weighted by the reward that they earned."""
        d = self.policy.config.diffusion
        losses = []
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
            self._step_denoiser(loss)
            losses.append(float(loss.detach()))
        self.policy.weights_changed()
        return float(np.mean(losses))

    def _denoising_step(self, x0: Tensor, condition: Tensor) -> float:
        d = self.policy.config.diffusion
        loss = denoising_loss(
            self.policy.denoiser, self.policy.schedule, x0, condition, generator=self.generator,
            prediction=d.prediction, condition_dropout=d.condition_dropout,
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
        self._denoiser_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.denoiser.parameters(), 1.0)
        self._denoiser_optimizer.step()
        acting = list[Tensor](self.policy.acting_denoiser.parameters())
        trained = [p.detach() for p in self.policy.denoiser.parameters()]
        self._follow(acting, trained, torch.tensor(0))

    def _imitate_coarse(self, lesson: Lesson, index: Tensor, episode: int) -> None:
        """Show the actor the coarse description of the best plan, ever less."""
        config = self.config
        weight = config.teacher_weight / (1.0 + episode / config.teacher_half_life)
        if weight == 0.0:
            return
        actor = self.policy.actor_critic.actor
        seen = self._seen(lesson, index.numpy())
        error = (actor(seen) - _float(lesson.best_coarse)[index]).square().mean()
        self._actor_optimizer.zero_grad(set_to_none=True)
        (weight * error).backward()
        self._actor_optimizer.step()

    def _seen(self, lesson: Lesson, index: np.ndarray[Any, Any]) -> Tensor:
        """Return what the actor sees in the states of a lesson."""
        if lesson.received is None:
            return self.policy.actor_input_of(lesson.features[index], self.rng)
        received = 2.0 * lesson.received[index] / self.policy.problem.layout.r_max - 1.0
        return _float(np.concatenate([lesson.features[index], received], axis=1))


def modelled_reward(
    utility: LearnedUtility, policy: AirLLM, lesson: Lesson, index: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return R̂ = -Û - λη of codes (B, N), differentiable: gains interpolated between ranks.

    R̂ is measured in units of the total gain, so that κ does not depend on the task.
    """
    r_max = policy.problem.layout.r_max
    gains = _float(utility.mean_gains())
    removed = torch.cat([torch.zeros(len(gains), 1), gains.cumsum(dim=1)], dim=1)
    cost = policy.problem.component_costs(lesson.link)[index.numpy()]
    price = _float(policy.problem.link_weight * cost)
    paid = torch.cat([torch.zeros_like(price[..., :1]), price.cumsum(dim=2)], dim=2)
    scale = gains.sum().clamp_min(1e-8)

    def reward(codes: Tensor) -> Tensor:
        rank = ((codes + 1.0) / bin_width(r_max) - 0.5).clamp(0.0, r_max)
        floor = rank.detach().floor().clamp(max=r_max - 1).long()
        part = rank - floor
        low = removed.expand(len(codes), -1, -1).gather(2, floor[..., None]).squeeze(-1)
        slope = (gains - price).gather(2, floor[..., None]).squeeze(-1)
        spent = paid.gather(2, floor[..., None]).squeeze(-1)
        return (low - spent + part * slope).sum(dim=1) / scale

    return reward


def _float(array: FloatArray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)
