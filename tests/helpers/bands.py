"""Small cells: links without fading whose rates are round numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankcast.band.cell import Cell, DemandConfig, Demands, draw_demands
from rankcast.band.delivery import Delivery
from rankcast.band.ladder import Ladder, stacked
from rankcast.link.processes import StaticSnr
from rankcast.records import FloatArray

LADDERS = (
    Ladder.of_losses([20e3, 40e3, 90e3], [0.5, 0.4, 0.35], 0.7),
    Ladder.of_losses([8e3, 60e3], [0.62, 0.3], 0.7),
)


@dataclass(frozen=True)
class TenBits:
    """A rate model that gives 10 bit/s for each decibel of SNR on a band of 1 Hz."""

    def spectral_efficiency(self, snr_db: FloatArray) -> FloatArray:
        return 10.0 * np.asarray(snr_db)


def by_hand(
    ladders: list[Ladder], windows: list[tuple[int, int]], rate_bps: list[float], n_slots: int
) -> Delivery:
    """Return one cell with slots of 1 s, constant rates, and a window of slots for each device."""
    cell = Cell(1.0, 1.0, n_slots, StaticSnr(0.0), TenBits())
    bits, worth = stacked(ladders)
    arrival, deadline = (np.array([window[i] for window in windows])[None] for i in (0, 1))
    snr_db = np.array([rate_bps]) / 10.0
    demands = Demands(bits[None], worth[None], arrival, deadline, snr_db)
    return Delivery(cell, demands, np.repeat(np.array([[rate_bps]]), n_slots, axis=0))


def busy(seed: int, n_devices: int = 8, n_cells: int = 3) -> Delivery:
    """Return fading cells with more wanted than fits."""
    rng = np.random.default_rng(seed)
    cell = Cell(bandwidth_hz=12e3, n_slots=120)
    config = DemandConfig(n_devices, shortest_s=2.0, longest_s=8.0)
    demands = draw_demands(cell, LADDERS, config, rng, n_cells)
    return Delivery(cell, demands, cell.rates_of(demands.mean_snr_db, rng))
