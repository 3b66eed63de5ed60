"""Count lost blocks in simulations, and fit a waterfall to the counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, special

from rankcast.errors import LinkError
from rankcast.link.bler import Waterfall
from rankcast.records import FloatArray

if TYPE_CHECKING:
    import torch

    from rankcast.phy.code_blocks import CodeBlocks

_NARROWEST_DB = 0.01


@dataclass(frozen=True, slots=True)
class Count:
    """Blocks that were simulated at one SNR.

    Attributes:
        snr_db: Es/N0 of every symbol [dB].
        n_blocks: sent.
        n_lost: not decoded.
    """

    snr_db: float
    n_blocks: int
    n_lost: int


def through_awgn(
    blocks: CodeBlocks, bits: torch.Tensor, snr_db: float, generator: torch.Generator
) -> torch.Tensor:
    """Return (B, k) bits after one transmission over additive white Gaussian noise at Es/N0 [dB].

    Args:
        blocks: how the bits are coded.
        bits: (B, k).
        snr_db: Es/N0 of every symbol [dB].
        generator: of the noise, on the device of the bits.
    """
    import torch  # noqa: PLC0415

    from rankcast.phy.code_blocks import noise  # noqa: PLC0415

    sent = blocks.symbols(bits)
    variance = torch.tensor(10.0 ** (-snr_db / 10.0), device=bits.device)
    received = sent + noise(sent.shape, variance, generator)
    return blocks.decode([blocks.llrs(received, variance)])


def fit_waterfall(n_info_bits: int, counts: Sequence[Count]) -> Waterfall:
    """Return the waterfall of greatest likelihood (probit regression on dB).

    Raises:
        LinkError: counts that decide nothing: without one lost and one decoded block, without one
            lost at a higher SNR than one decoded, or with no fewer losses at higher SNR.
    """
    snr_db = np.array([c.snr_db for c in counts], dtype=np.float64)
    lost = np.array([c.n_lost for c in counts], dtype=np.float64)
    kept = np.array([c.n_blocks for c in counts], dtype=np.float64) - lost
    if lost.sum() == 0 or kept.sum() == 0:
        raise LinkError("A waterfall needs blocks that were lost and blocks that were not.")
    if snr_db[lost > 0].max() <= snr_db[kept > 0].min():
        raise LinkError(
            "A waterfall needs a block that was lost above the SNR of one that was not."
        )
    if np.average(snr_db, weights=lost) >= np.average(snr_db, weights=kept):
        raise LinkError("A waterfall needs blocks that are lost less often at higher SNR.")

    def cost(x: FloatArray) -> float:
        z = (x[0] - snr_db) / (np.exp(x[1]) + _NARROWEST_DB)
        return -float((lost * special.log_ndtr(z) + kept * special.log_ndtr(-z)).sum())

    start = np.array([np.average(snr_db, weights=lost * kept + 1e-6), np.log(0.2)])
    best = optimize.minimize(cost, start, method="Nelder-Mead",
                             options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000})  # fmt: skip
    middle, width = float(best.x[0]), float(np.exp(best.x[1]) + _NARROWEST_DB)
    errors = np.sqrt(np.diag(np.linalg.pinv(_information(middle, width, snr_db, lost + kept))))
    return Waterfall(n_info_bits, middle, width, float(errors[0]), float(errors[1]))


def _information(
    middle: float, width: float, snr_db: FloatArray, n_blocks: FloatArray
) -> FloatArray:
    """Return the (2, 2) Fisher information about middle and width."""
    z = (middle - snr_db) / width
    share = np.clip(special.ndtr(z), 1e-9, 1 - 1e-9)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    weight = n_blocks * density**2 / (share * (1 - share)) / width**2
    gradient = np.stack([np.ones_like(z), -z])
    return (gradient * weight) @ gradient.T
