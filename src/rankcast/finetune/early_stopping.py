"""When to stop training (Sec. V-A)."""

from __future__ import annotations

import math
from typing import Any

from rankcast.errors import ConfigError, RankcastError


class EarlyStopping:
    """Stop once the reward is good enough and accuracy has stopped improving (Sec. V-A).

    Training ends when the reward exceeds min(−λ, −0.5) and accuracy has not improved for
    `patience` evaluations in a row. The paper evaluates every 100 steps.

    Args:
        link_weight: λ of Eq. 10.
        patience: evaluations without improvement that are allowed, 5 in the paper.

    Raises:
        ConfigError: a negative λ or a patience below 1.
    """

    def __init__(self, link_weight: float, patience: int = 5) -> None:
        if not (math.isfinite(link_weight) and link_weight >= 0):
            raise ConfigError(f"The link weight must be a number from 0 up, got {link_weight}.")
        if patience < 1:
            raise ConfigError(f"Patience must be at least 1 evaluation, got {patience}.")
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
