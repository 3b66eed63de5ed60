"""Generalised advantage estimation (Eq. 11)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankcast.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Advantages:
    """What an actor and a critic learn from, both (T, B).

    Attributes:
        advantages: Â_t.
        returns: Â_t + V(s_t), the critic's target of Eq. 12.
    """

    advantages: Tensor
    returns: Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float = 0.95,
    decay: float = 0.95,
) -> Advantages:
    """Return the advantages of T steps in B environments (Eq. 11).

    Differs from the paper: the sum ends where an episode does. A terminated step has no future, so
    nothing is bootstrapped; a truncated one has a future that was not seen, so the value of its
    final observation is bootstrapped. Either way no later step contributes.

    Args:
        rewards: (T, B) R_t.
        values: (T, B) V(s_t).
        next_values: (T, B) V(s_{t+1}), where s_{t+1} is the observation that the step led to: at
            the end of an episode its final observation, not the first of the next episode.
        terminated: (T, B) bool.
        truncated: (T, B) bool.
        discount: γ.
        decay: ζ.

    Raises:
        ConfigError: shapes that differ, or γ or ζ outside [0, 1].
    """
    shapes = {tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)}
    if len(shapes) != 1 or rewards.dim() != 2:
        raise ConfigError(f"GAE takes five arrays of one shape (T, B), got {sorted(shapes)}.")
    if not (0.0 <= discount <= 1.0 and 0.0 <= decay <= 1.0):
        raise ConfigError(f"γ and ζ must lie in [0, 1], got {discount} and {decay}.")
    terminated, truncated = terminated.bool(), truncated.bool()
    # torch.where, not a product: a NaN value of a state without a future must not spread.
    future = torch.where(terminated, torch.zeros_like(next_values), next_values)
    deltas = rewards + discount * future - values
    carry = discount * decay * (~(terminated | truncated)).to(rewards.dtype)
    running = torch.zeros_like(rewards[0])
    traces: list[Tensor] = []
    for delta, keep in zip(deltas.flip(0), carry.flip(0), strict=True):
        running = delta + keep * running
        traces.append(running)
    advantages = torch.stack(traces[::-1])
    return Advantages(advantages, advantages + values)
