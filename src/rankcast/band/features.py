"""What a device sees of itself and of its cell, as numbers near 1."""

from __future__ import annotations

import numpy as np

from rankcast.band.delivery import Frame
from rankcast.band.lagrangian import airtime_plan
from rankcast.band.schedulers import largest_reachable, steepest
from rankcast.records import FloatArray, IntArray

FEATURES = (
    "active",
    "log10 rate_kbps",
    "log10 mean rate_kbps",
    "log10 left_s",
    "share of the file received",
    "gain of the next step",
    "log10 airtime_s of the next step",
    "gain of all in reach",
    "share of devices active",
    "log10 price per second",
)
LIMIT = 10.0
"""No feature is larger, nor smaller than its negative."""
_SMALLEST = 1e-4  # below any time and price that matter: keeps logarithms finite


def features(frame: Frame) -> FloatArray:
    """Return (C, D, 10) float32-safe numbers, `FEATURES`; all 0 where a device cannot be served."""
    active = frame.active
    mean_bps = frame.rate_quantiles_bps.mean(axis=-1)
    step, _ = steepest(frame)
    rows = [
        active,
        _log10(frame.rate_bps / 1e3),
        _log10(mean_bps / 1e3),
        _log10(frame.slots_left.astype(np.float64) * frame.slot_s),
        frame.received_bits / frame.demands.file_bits,
        _at(frame.gain_of, step),
        _log10(_at(frame.bits_to, step) / mean_bps),
        _at(frame.gain_of, largest_reachable(frame)),
        np.broadcast_to(active.mean(axis=1, keepdims=True), active.shape),
        np.broadcast_to(_log10(airtime_plan(frame).price)[:, None], active.shape),
    ]
    seen = np.stack([np.asarray(row, dtype=np.float64) for row in rows], axis=-1)
    return np.clip(np.where(active[..., None], seen, 0.0), -LIMIT, LIMIT)


def _at(values: FloatArray, prefix: IntArray) -> FloatArray:
    return np.take_along_axis(values, prefix[..., None], axis=-1)[..., 0]


def _log10(x: FloatArray) -> FloatArray:
    return np.log10(np.maximum(x, _SMALLEST))
