"""A device on a path: distance decides the mean, shadowing goes with the place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rankcast.errors import LinkError
from rankcast.link.processes import SnrState, checked_size, shadowing_correlation
from rankcast.records import FloatArray, IntArray

_MEAN_POINTS = 10_000  # of the midpoint rule along the path


@dataclass(frozen=True)
class PathSnr:
    """SNR along straight lines between waypoints, back and forth, with shadowing.

    The mean falls with 10·n·log10 of the distance to the base station; the shadowing is normal in
    dB with spatial correlation e^{-d / d_corr} (Gudmundson, 1991), so that it moves as fast as the
    device does. Every sequence starts at a random point of the path.

    Attributes:
        waypoints_m: (x, y) of at least two corners [m]; the base station is at the origin.
        speed_m_s: [m/s].
        step_s: time between decisions [s].
        snr_at_100_m_db: mean SNR at 100 m [dB].
        exponent: n; 2 in free space, 3.9 in UMa without line of sight (TR 38.901, about).
        std_db: of the shadowing [dB].
        decorrelation_m: d_corr [m].
        nearest_m: no distance counts as less than this [m].

    Raises:
        LinkError: fewer than two waypoints, a path without length, or a value out of its range.
    """

    waypoints_m: tuple[tuple[float, float], ...]
    speed_m_s: float
    step_s: float
    snr_at_100_m_db: float
    exponent: float = 3.9
    std_db: float = 6.0
    decorrelation_m: float = 50.0
    nearest_m: float = 10.0

    def __post_init__(self) -> None:
        """Check every range."""
        points = np.array(self.waypoints_m, dtype=np.float64)
        if points.ndim != 2 or points.shape[1:] != (2,) or not self._length_m > 0:
            raise LinkError(
                f"A path needs at least two (x, y) corners that differ, got {self.waypoints_m}."
            )
        shadowing_correlation(self.speed_m_s, self.step_s, self.decorrelation_m)
        values = (self.exponent, self.std_db, self.nearest_m)
        if not (np.isfinite(points).all() and math.isfinite(self.snr_at_100_m_db)
                and all(0 <= v < math.inf for v in values) and self.nearest_m > 0):  # fmt: skip
            raise LinkError("Exponent, spread and nearest distance must be at least 0 and finite.")

    def start(self, rng: np.random.Generator, size: int) -> SnrState:
        """Draw a place on the path and its shadowing."""
        place_m = rng.uniform(0.0, 2 * self._length_m, checked_size(size))
        shadowing_db = self.std_db * rng.standard_normal(size)
        return self._state(place_m, shadowing_db, np.zeros(size, dtype=np.int64))

    def advance(self, state: SnrState, rng: np.random.Generator) -> SnrState:
        """Move on by a step."""
        walked = self.speed_m_s * self.step_s
        correlation = shadowing_correlation(self.speed_m_s, self.step_s, self.decorrelation_m)
        noise = rng.standard_normal(len(state.age))
        place_m = np.mod(state.hidden[:, 0] + walked, 2 * self._length_m)
        innovation = math.sqrt(1 - correlation**2) * self.std_db
        shadowing_db = correlation * state.hidden[:, 1] + innovation * noise
        return self._state(place_m, shadowing_db, state.age + 1)

    def distance_m(self, place_m: FloatArray) -> FloatArray:
        """Return the distance from the base station after so much of the path, there and back."""
        there = np.where(place_m > self._length_m, 2 * self._length_m - place_m, place_m)
        points = np.array(self.waypoints_m, dtype=np.float64)
        x, y = (np.interp(there, self._corners_m, axis) for axis in points.T)
        return np.maximum(np.hypot(x, y), self.nearest_m)

    @property
    def mean_snr_db(self) -> float:
        """The mean over the path, and so over time [dB]."""
        middles_m = (np.arange(_MEAN_POINTS) + 0.5) * self._length_m / _MEAN_POINTS
        return float(self._path_db(middles_m).mean())

    @property
    def _corners_m(self) -> FloatArray:
        points = np.array(self.waypoints_m, dtype=np.float64)
        legs = np.linalg.norm(np.diff(points, axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(legs)])

    @property
    def _length_m(self) -> float:
        return float(self._corners_m[-1]) if len(self.waypoints_m) > 1 else 0.0

    def _state(self, place_m: FloatArray, shadowing_db: FloatArray, age: IntArray) -> SnrState:
        snr_db = self._path_db(place_m) + shadowing_db
        return SnrState(snr_db, age, np.column_stack([place_m, shadowing_db]))

    def _path_db(self, place_m: FloatArray) -> FloatArray:
        """Return SNR without shadowing."""
        loss_db = 10.0 * self.exponent * np.log10(self.distance_m(place_m) / 100.0)
        return self.snr_at_100_m_db - loss_db
