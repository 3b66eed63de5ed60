"""Let gains depend on the text: linear in what a policy is shown of the next texts.

g(H, ρ) = g_0 + g_H·z_H + g_ρ·z_ρ, z_H = (H - 2.5) / 0.5 and z_ρ = (ρ - 0.1) / 0.05, both cut to ±2.
A part that the policy is not shown has no coefficients: a belief that knows more than the policy
would teach it plans for texts that it cannot tell apart.

Shapes: `B` texts, `J` parts shown, `K` gains, `S` beliefs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import block_diag

from rankcast.config.policy import StateName
from rankcast.records import FloatArray, TextStats

NOMINAL_ENTROPY, NOMINAL_OOV_RATE = 2.5, 0.1
"""The text at which z is 0, and which stands for one that is not known."""

ENTROPY_UNIT, OOV_UNIT = 0.5, 0.05
_FARTHEST = 2.0  # a line that was fitted to some texts says little far from them


@dataclass(frozen=True, slots=True)
class TextGains:
    """The parts of the text that gains depend on; without any, gains are the same for all texts.

    Attributes:
        amplitude: prior standard deviation of g_H and of g_ρ, as a share of that of g_0.
        hidden: parts of the state that the policy is not shown.
    """

    amplitude: float = 0.0
    hidden: Sequence[StateName] = ()

    @property
    def size(self) -> int:
        """J."""
        return len(self._shown) if self.amplitude > 0 else 0

    @property
    def _shown(self) -> list[int]:
        parts: tuple[StateName, ...] = ("entropy", "oov")
        return [i for i, part in enumerate(parts) if part not in self.hidden]

    def normalised(self, text: TextStats) -> FloatArray:
        """Return (B, J) z of each part that gains depend on."""
        z = np.column_stack(
            [
                (np.asarray(text.lexical_entropy) - NOMINAL_ENTROPY) / ENTROPY_UNIT,
                (np.asarray(text.oov_rate) - NOMINAL_OOV_RATE) / OOV_UNIT,
            ]
        )
        return np.clip(z, -_FARTHEST, _FARTHEST)[:, self._shown if self.size else []]

    def spread(self, features: FloatArray, z: FloatArray) -> FloatArray:
        """Return (B, (1 + J)·K) features of all coefficients, from (B, K) features and (B, J) z."""
        return np.concatenate([features, *(features * part[:, None] for part in z.T)], axis=1)

    def of_texts(self, coefficients: FloatArray, text: TextStats | None) -> FloatArray:
        """Return the (B, K) gains for texts.

        Args:
            coefficients: (S, (1 + J)·K), one belief for all texts or one for each.
            text: B texts, or one for all beliefs; None for the nominal one.
        """
        first, *others = np.split(coefficients, 1 + self.size, axis=1)
        if text is None or not others:
            return first
        for z, slope in zip(self.normalised(text).T, others, strict=True):
            first = first + z[:, None] * slope
        return first

    def prior(
        self, head: tuple[FloatArray, FloatArray], own: tuple[FloatArray, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Return mean (D,) and precision (D, D) of a head and all coefficients, independent.

        Args:
            head: mean and precision of what stands before the gains.
            own: mean (K,) and precision (K, K) of g_0.
        """
        (before, head_precision), (mean, precision) = head, own
        others = [precision / self.amplitude**2] * self.size if self.size else []
        whole = np.asarray(block_diag(head_precision, precision, *others), dtype=np.float64)
        return np.concatenate([before, mean, np.zeros(self.size * len(mean))]), whole
