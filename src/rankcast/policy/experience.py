"""What a rollout leaves behind, and PPO's use of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.policy.airllm import AirLLM, Decision
from rankcast.policy.gae import gae
from rankcast.policy.ppo import RolloutBatch
from rankcast.records import FloatArray, Observation


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


def rollout_batch(
    transitions: list[Transition], policy: AirLLM, final: Observation
) -> RolloutBatch:
    """Return an episode with its advantages (Eq. 11), time and environments flattened.

    Args:
        transitions: the episode's steps, in order.
        policy: whose critic values the final state.
        final: the state that the last step led to.
    """
    values = torch.stack([t.decision.value for t in transitions])
    with torch.no_grad():
        last = policy.actor_critic.value(policy.actor_input(final))
    estimates = gae(
        _stack(t.reward for t in transitions),
        values,
        torch.cat([values[1:], last[None]]),
        _stack(t.terminated for t in transitions),
        _stack(t.truncated for t in transitions),
        discount=policy.config.ppo.discount,
        decay=policy.config.ppo.decay,
    )
    return RolloutBatch(
        torch.cat([t.decision.actor_input for t in transitions]),
        torch.cat([t.decision.coarse for t in transitions]),
        torch.cat([t.decision.log_prob for t in transitions]),
        estimates.advantages.flatten(),
        estimates.returns.flatten(),
    )


def mean_of(arrays: Iterable[np.ndarray[Any, Any]]) -> float:
    """Return the mean over steps and environments."""
    return float(np.mean(np.stack(list(arrays))))


def _stack(arrays: Iterable[np.ndarray[Any, Any]]) -> Tensor:
    """Return (T, B) float32, or bool."""
    stacked = torch.as_tensor(np.stack(list(arrays)))
    return stacked if stacked.dtype == torch.bool else stacked.float()
