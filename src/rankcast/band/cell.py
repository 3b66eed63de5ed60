"""One band and its devices: what each wants, when, and what its link carries in every slot.

Shapes: `C` cells, `D` devices of a cell, `K` chunks, `T` slots, `Q` quantiles of the fading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rankcast.band.ladder import Ladder, stacked
from rankcast.errors import ConfigError, LinkError
from rankcast.link.capacity import RateModel, TruncatedShannon
from rankcast.link.jakes import JakesSnr
from rankcast.link.processes import SnrProcess
from rankcast.records import FloatArray, IntArray

N_QUANTILES = 16
_SAMPLES = 4096  # of the stationary fading, for its quantiles
_SLOT_S = 0.1


def slow_fading() -> SnrProcess:
    """Return the fading of a device that moves at 0.5 m/s, at 900 MHz, once in each 0.1 s."""
    return JakesSnr(0.0, speed_m_s=0.5, carrier_hz=900e6, step_s=_SLOT_S)


@dataclass(frozen=True)
class Cell:
    """The band that devices share, and how it is divided in time.

    Attributes:
        bandwidth_hz: of the whole band; who has a slot has all of it [Hz].
        slot_s: time of a slot [s]; the step of `fading` must be the same.
        n_slots: T, of an episode.
        fading: how the SNR of a device moves around its mean; its own mean is 0 dB.
        rate_model: from SNR to spectral efficiency, h known.

    Raises:
        LinkError: bandwidth, slot or number of slots not positive.
    """

    bandwidth_hz: float = 180e3
    slot_s: float = _SLOT_S
    n_slots: int = 300
    fading: SnrProcess = field(default_factory=slow_fading)
    rate_model: RateModel = field(default_factory=TruncatedShannon)

    def __post_init__(self) -> None:
        """Refuse an empty band."""
        for name, x in (("bandwidth", self.bandwidth_hz), ("slot", self.slot_s)):
            if not 0 < x < math.inf:
                raise LinkError(f"The {name} must be positive and finite, got {x}.")
        if self.n_slots < 1:
            raise LinkError(f"An episode needs at least one slot, got {self.n_slots}.")

    def rate_bps(self, snr_db: FloatArray) -> FloatArray:
        """Return what a device gets that has the whole band [bit/s], same shape."""
        return self.bandwidth_hz * self.rate_model.spectral_efficiency(snr_db)

    def fading_quantiles_db(self, seed: int = 0) -> FloatArray:
        """Return (Q,) fading at the middles of Q equally likely parts, rising [dB]."""
        drawn = self.fading.start(np.random.default_rng(seed), _SAMPLES).snr_db
        return np.quantile(drawn, (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES)

    def rates_of(self, mean_snr_db: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Draw the (T, C, D) rates [bit/s] of devices with (C, D) mean SNRs [dB]."""
        state = self.fading.start(rng, mean_snr_db.size)
        rates = np.empty((self.n_slots, *mean_snr_db.shape))
        for t in range(self.n_slots):
            rates[t] = self.rate_bps(mean_snr_db + state.snr_db.reshape(mean_snr_db.shape))
            state = self.fading.advance(state, rng)
        return rates


@dataclass(frozen=True, eq=False)
class Demands:
    """What the devices of C cells want: one file each, in a window of slots.

    Attributes:
        prefix_bits: (C, D, K + 1) see `Ladder`.
        worth: (C, D, K + 1) see `Ladder`.
        arrival: (C, D) first slot in which a device can be served.
        deadline: (C, D) first slot that is too late.
        mean_snr_db: (C, D) SNR without fading [dB].

    Raises:
        ConfigError: shapes that do not belong together, or a window without a slot.
    """

    prefix_bits: FloatArray
    worth: FloatArray
    arrival: IntArray
    deadline: IntArray
    mean_snr_db: FloatArray

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        one_each = (self.arrival, self.deadline, self.mean_snr_db)
        shapes = [x.shape for x in (self.prefix_bits, self.worth, *one_each)]
        if len(set(shapes[:2])) > 1 or any(s != shapes[0][:2] for s in shapes[2:]):
            raise ConfigError(
                f"Demands need two (C, D, K + 1) ladders and three (C, D), got {shapes}."
            )
        if (self.arrival < 0).any() or (self.deadline <= self.arrival).any():
            raise ConfigError("Every device needs a window of at least one slot, from slot 0 on.")

    @property
    def shape(self) -> tuple[int, int]:
        """(C, D)."""
        return self.arrival.shape[0], self.arrival.shape[1]

    @cached_property
    def file_bits(self) -> FloatArray:
        """(C, D) bits of whole files."""
        return self.prefix_bits[..., -1]


@dataclass(frozen=True)
class DemandConfig:
    """How demands are drawn.

    Attributes:
        n_devices: D.
        shortest_s: of the windows from arrival to deadline [s].
        longest_s: likewise; windows are uniform in between.
        mean_snr_db: mean over devices [dB].
        snr_std_db: standard deviation over devices: distance and shadowing [dB].

    Raises:
        ConfigError: no device, windows that are not positive, or a negative spread.
    """

    n_devices: int = 10
    shortest_s: float = 5.0
    longest_s: float = 20.0
    mean_snr_db: float = 8.0
    snr_std_db: float = 6.0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.n_devices < 1 or not 0 < self.shortest_s <= self.longest_s or self.snr_std_db < 0:
            raise ConfigError(f"Demands need a device, windows and a spread of at least 0: {self}.")


def draw_demands(
    cell: Cell,
    ladders: Sequence[Ladder],
    config: DemandConfig,
    rng: np.random.Generator,
    n_cells: int = 1,
) -> Demands:
    """Draw the demands of C cells: ladders and arrivals uniform, mean SNRs Gaussian.

    Windows end within the episode: a device arrives at any slot from which its window fits.

    Raises:
        ConfigError: the longest window is longer than an episode, or no ladder.
    """
    windows = np.rint(np.array([config.shortest_s, config.longest_s]) / cell.slot_s).astype(int)
    if windows[1] > cell.n_slots or windows[0] < 1:
        raise ConfigError(
            f"Windows of {config.shortest_s} to {config.longest_s} s do not fit into "
            f"{cell.n_slots} slots of {cell.slot_s} s."
        )
    shape = (n_cells, config.n_devices)
    bits, worth = stacked(ladders)
    which = rng.integers(len(ladders), size=shape)
    window = rng.integers(windows[0], windows[1] + 1, size=shape)
    arrival = np.floor(rng.random(shape) * (cell.n_slots - window + 1)).astype(np.int64)
    snr_db = config.mean_snr_db + config.snr_std_db * rng.standard_normal(shape)
    return Demands(bits[which], worth[which], arrival, arrival + window, snr_db)
