"""What an agent sees: the observation as a vector, and its space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rankcast.records import AdapterLayout, Observation

N_STATE = 5  # entries of the observation vector that precede the ranks
_LOW = (-60.0, 0.0, -6.0, 0.0, 0.0)
_HIGH = (60.0, 12.0, 6.0, 20.0, 1.0)


def observation_space(layout: AdapterLayout) -> gym.spaces.Box:
    """Return the space of one observation vector (5 + N,)."""
    n = layout.n_projections
    low = np.array([*_LOW, *[0.0] * n], dtype=np.float32)
    high = np.array([*_HIGH, *[1.0] * n], dtype=np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


def to_vector(observation: Observation, r_max: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the (B, 5 + N) float32 vector of an observation; see `RankAllocationEnv`.

    What lies beyond the space, such as a very deep fade, is shown as its bound.
    """
    link, text = observation.link, observation.text
    head = np.column_stack(
        [
            link.snr_db,
            np.log10(link.bandwidth_hz),
            np.log10(link.deadline_s),
            text.lexical_entropy,
            text.oov_rate,
        ]
    )
    head = np.clip(head, _LOW, _HIGH)
    return np.concatenate([head, observation.ranks / r_max], axis=1).astype(np.float32)
