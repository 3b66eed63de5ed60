"""A learner whose optimum is known: for measuring policies, not models.

U(r) = 0.70 - Σ_m Σ_{i ≤ r_m} gain_{m,i} with gain_{m,i} = A_m·exp(-i/τ_m), A_m = 0.02·exp(1.2·z_m),
z ~ N(0, 1), τ_m ~ U(0.7, 4.7), scaled to sum 0.45 and observed with N(0, 0.05²) noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.learner.protocol import StepResult
from rankcast.records import AdapterLayout, FloatArray, IntArray, Projection, TextStats

_KINDS = ("q", "k", "v", "o", "fc1", "fc2")


def transformer_layout(
    n_layers: int = 6, d_hidden: int = 384, d_ffn: int = 1536, r_max: int = 8
) -> AdapterLayout:
    """Return the six projections of each layer of an encoder; MiniLM's widths by default."""
    widths = {"fc1": (d_hidden, d_ffn), "fc2": (d_ffn, d_hidden)}
    return AdapterLayout(
        tuple(
            Projection(f"layer.{layer}.{kind}", layer, kind, *widths.get(kind, (d_hidden,) * 2))
            for layer in range(n_layers)
            for kind in _KINDS
        ),
        r_max,
    )


@dataclass(frozen=True)
class SyntheticUtility:
    """A task loss with known gains.

    Attributes:
        gains: (N, R) loss removed by each component, decreasing along R.
        base_loss: U at rank 0 [nats].
        interactions: (N, N) upper-triangular coefficients of the products of centred ranks, or
            None for an additive utility.
    """

    gains: FloatArray
    base_loss: float = 0.70
    interactions: FloatArray | None = None

    @classmethod
    def draw(
        cls, rng: np.random.Generator, layout: AdapterLayout, interaction_share: float = 0.0
    ) -> SyntheticUtility:
        """Draw a utility.

        Args:
            rng: source of the gains and interactions.
            layout: N and R.
            interaction_share: variance of the pairwise interactions under uniform random ranks,
                as a share of the variance of the additive part.
        """
        n, r_max = layout.n_projections, layout.r_max
        amplitude = 0.02 * np.exp(1.2 * rng.standard_normal(n))
        tau = rng.uniform(0.7, 4.7, n)
        gains = amplitude[:, None] * np.exp(-np.arange(1, r_max + 1) / tau[:, None])
        gains *= 0.45 / gains.sum()
        return cls.with_interactions(gains, rng, interaction_share)

    @classmethod
    def with_interactions(
        cls, gains: FloatArray, rng: np.random.Generator, interaction_share: float
    ) -> SyntheticUtility:
        """Return a utility of (N, R) gains, with interactions drawn beside them; see `draw`."""
        if interaction_share == 0.0:
            return cls(gains)
        n, r_max = gains.shape
        additive = cls(gains)
        pairs = np.triu(rng.standard_normal((n, n)), k=1)
        # Independent centred ranks make the variance of Σ J_mk·x_m·x_k equal to Σ J_mk²·v².
        levels = _centred(np.arange(r_max + 1), r_max)
        variance = float((levels**2).mean())
        removed = np.concatenate([np.zeros((n, 1)), gains.cumsum(axis=1)], axis=1)
        target = interaction_share * removed.var(axis=1).sum()
        pairs *= np.sqrt(target / ((pairs**2).sum() * variance**2))
        return cls(gains, additive.base_loss, pairs)

    def loss(self, ranks: IntArray) -> FloatArray:
        """Return (B,) noise-free U(r) of (B, N) ranks."""
        r_max = self.gains.shape[1]
        active = np.arange(1, r_max + 1) <= np.asarray(ranks)[..., None]
        loss = self.base_loss - (active * self.gains).sum(axis=(1, 2))
        if self.interactions is not None:
            x = _centred(ranks, r_max)
            loss -= np.einsum("bm,mk,bk->b", x, self.interactions, x)
        return loss


class SyntheticLearner:
    """B copies of a synthetic utility, stepped as one array operation.

    Args:
        layout: N and R.
        utility: the loss behind all copies.
        n_envs: B.
        noise_std: standard deviation of an observed loss.
        seed: of the noise; reset(seed) replaces it.
    """

    def __init__(
        self,
        layout: AdapterLayout,
        utility: SyntheticUtility,
        n_envs: int = 1,
        noise_std: float = 0.05,
        seed: int = 0,
    ) -> None:
        self._layout, self.utility = layout, utility
        self._n_envs, self.noise_std = n_envs, noise_std
        self._rng = np.random.default_rng(seed)
        self._ranks = np.zeros((n_envs, layout.n_projections), dtype=np.int64)

    @property
    def layout(self) -> AdapterLayout:
        """The projections and their largest rank."""
        return self._layout

    @property
    def n_envs(self) -> int:
        """B."""
        return self._n_envs

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; a seed restarts the noise."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)

    def next_text(self) -> TextStats:
        """Return constant statistics: the synthetic utility does not depend on the text."""
        return TextStats(np.full(self._n_envs, 2.5), np.full(self._n_envs, 0.1))

    def apply(self, ranks: IntArray) -> None:
        """Activate (B, N) ranks."""
        self._ranks = np.array(ranks, dtype=np.int64)

    def step(self) -> StepResult:
        """Return the noisy losses of the active ranks."""
        noise = self._rng.normal(0.0, self.noise_std, self._n_envs)
        return StepResult(self.utility.loss(self._ranks) + noise)

    def state_dict(self) -> dict[str, Any]:
        """Return the noise generator's state and the active ranks."""
        return {"rng": self._rng.bit_generator.state, "ranks": self._ranks.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._rng.bit_generator.state = state["rng"]
        self._ranks = np.array(state["ranks"])


def _centred(ranks: IntArray, r_max: int) -> FloatArray:
    """Map ranks 0..r_max to [-1, 1]."""
    return 2.0 * np.asarray(ranks) / r_max - 1.0
