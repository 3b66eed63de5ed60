"""A learner as quick as the synthetic one whose losses are those of a real model."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankcast.learner.protocol import StepResult
from rankcast.records import AdapterLayout, IntArray, TextStats
from studies.surrogate.calibration import Calibration


class CalibratedLearner:
    """B copies of a calibrated model, stepped as one array operation.

    Each copy draws the stratum of its next batch and that batch's statistics; the loss is the
    stratum's under the active ranks, plus the noise of the batch, which the loss under full rank
    shares but for a small part of its own. The model does not learn: it is as trained as it was
    when it was probed.

    Args:
        calibration: what the losses are.
        n_envs: B.
        seed: of the texts and the noise; reset(seed) replaces it.
    """

    def __init__(self, calibration: Calibration, n_envs: int = 1, seed: int = 0) -> None:
        self.calibration, self._n_envs = calibration, n_envs
        groups, layout = calibration.groups, calibration.layout
        self._shares = np.cumsum([group.share for group in groups])[:-1]
        self._stats = np.array([[g.lexical_entropy, g.oov_rate] for g in groups])
        self._highest = np.array([[np.inf], [1.0]])
        tables = np.array([group.utility.removed for group in groups])
        self._table, self._table_size = tables.ravel(), tables[0].size
        self._columns = np.arange(layout.n_projections) * (layout.r_max + 1)
        self._offset = np.array([group.utility.offset for group in groups])
        self._amplitude = np.array([group.utility.amplitude for group in groups])
        self._saturates = np.array([group.utility.link == "exp" for group in groups])
        full = np.full((1, layout.n_projections), layout.r_max, dtype=np.int64)
        self._full_loss = np.array([group.utility.loss(full)[0] for group in groups])
        self._ranks = np.zeros((n_envs, layout.n_projections), dtype=np.int64)
        self.reset(seed)

    @property
    def layout(self) -> AdapterLayout:
        """The projections and their largest rank."""
        return self.calibration.layout

    @property
    def n_envs(self) -> int:
        """B."""
        return self._n_envs

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; a seed restarts texts and noise."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
            self._draw_texts()

    def next_text(self) -> TextStats:
        """Return the statistics of the batches that the next `step` will judge."""
        return TextStats(self._text[0].copy(), self._text[1].copy())

    def apply(self, ranks: IntArray) -> None:
        """Make (B, N) ranks the active ones."""
        self._ranks = np.array(ranks, dtype=np.int64)

    def step(self) -> StepResult:
        """Return the noisy losses of the active ranks, and those of full rank."""
        group = self._group
        at = self._ranks + self._columns + (group * self._table_size)[:, None]
        total = self._table.take(at).sum(axis=1)
        bent = np.where(self._saturates[group], np.exp(-total), -total)
        loss = self._offset[group] + self._amplitude[group] * bent
        noise = self._rng.standard_normal((2, self._n_envs))
        common = self.calibration.noise_std * noise[0]
        reference = self._full_loss[group] + common + self.calibration.paired_noise_std * noise[1]
        self._draw_texts()
        return StepResult(loss + common, reference)

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, the batches that come next, and the active ranks."""
        return {
            "rng": self._rng.bit_generator.state,
            "group": self._group.copy(),
            "text": self._text.copy(),
            "ranks": self._ranks.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._rng.bit_generator.state = state["rng"]
        self._group, self._text = np.array(state["group"]), np.array(state["text"])
        self._ranks = np.array(state["ranks"])

    def _draw_texts(self) -> None:
        """Draw group (B,) and statistics (2, B) of the next batches."""
        self._group = np.searchsorted(self._shares, self._rng.random(self._n_envs), side="right")
        mean, std = self._stats[self._group].transpose(2, 1, 0)
        drawn = mean + std * self._rng.standard_normal((2, self._n_envs))
        self._text = np.minimum(np.maximum(drawn, 0.0), self._highest)
