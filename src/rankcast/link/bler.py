"""How often a code block is lost: BLER against SNR, fitted to simulated blocks.

A waterfall is Φ((m - s)/w): a normal distribution function of the SNR s [dB] with the SNR m at
which half of the blocks are lost and the width w. Both come from simulations with Sionna
(`experiments/bler`), of blocks of a few sizes, and are interpolated between them on the scale of
1/√k, on which the distance to capacity falls (Y. Polyanskiy, H. V. Poor and S. Verdú, Channel
coding rate in the finite blocklength regime, IEEE Trans. Inf. Theory 56(5), 2010). Outside the
simulated sizes the nearest one holds; below a BLER of about 1 % the fit extrapolates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from rankcast.errors import ConfigError, LinkError
from rankcast.link.late import scipy
from rankcast.link.nr import Mcs
from rankcast.records import FloatArray

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


@dataclass(frozen=True, slots=True)
class Waterfall:
    """BLER of code blocks of one size under one scheme.

    Attributes:
        n_info_bits: k.
        middle_db: m, where half of them are lost [dB].
        width_db: w, standard deviation of the fitted curve [dB].
        middle_se_db: standard error of m [dB].
        width_se_db: standard error of w [dB].
    """

    n_info_bits: int
    middle_db: float
    width_db: float
    middle_se_db: float = 0.0
    width_se_db: float = 0.0

    def snr_db_at(self, bler: float) -> float:
        """Return the SNR [dB] at which so many blocks are lost."""
        return self.middle_db - self.width_db * float(scipy("special").ndtri(bler))


@dataclass(frozen=True)
class BlerTable:
    """Waterfalls of every scheme.

    Attributes:
        waterfalls: by bits per symbol and R·1024, of increasing size.
        source: how they were made, for a person.
    """

    waterfalls: Mapping[tuple[int, float], tuple[Waterfall, ...]]
    source: str

    def bler(self, mcs: Mcs, n_info_bits: int, snr_db: FloatArray) -> FloatArray:
        """Return the share of code blocks that are lost at each SNR [dB], same shape.

        Raises:
            ConfigError: a scheme that was not simulated.
        """
        curve = self.waterfall(mcs, n_info_bits)
        return scipy("special").ndtr((curve.middle_db - np.asarray(snr_db)) / curve.width_db)

    def waterfall(self, mcs: Mcs, n_info_bits: int) -> Waterfall:
        """Return the waterfall of blocks of a size, interpolated.

        Raises:
            ConfigError: a scheme that was not simulated.
        """
        known = self.waterfalls.get((mcs.bits_per_symbol, mcs.rate_x1024))
        if known is None:
            raise ConfigError(
                f"No simulated block errors for {mcs.bits_per_symbol} bits a symbol at rate "
                f"{mcs.rate_x1024:g}/1024."
            )
        at = 1.0 / np.sqrt([curve.n_info_bits for curve in known[::-1]])
        wanted = 1.0 / np.sqrt(n_info_bits)
        names = ("middle_db", "width_db", "middle_se_db", "width_se_db")
        values = (
            float(np.interp(wanted, at, [getattr(curve, name) for curve in known[::-1]]))
            for name in names
        )
        return Waterfall(n_info_bits, *values)

    def to_plain(self) -> dict[str, Any]:
        """Return the table as plain data, for a file."""
        schemes = [
            {
                "bits_per_symbol": order,
                "rate_x1024": rate,
                "waterfalls": [asdict(c) for c in curves],
            }
            for (order, rate), curves in self.waterfalls.items()
        ]
        return {"source": self.source, "schemes": schemes}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> BlerTable:
        """Rebuild a table from `to_plain()` or its file."""
        found: dict[tuple[int, float], tuple[Waterfall, ...]] = {}
        for entry in plain["schemes"]:
            curves = sorted((Waterfall(**c) for c in entry["waterfalls"]),
                            key=lambda c: c.n_info_bits)  # fmt: skip
            found[entry["bits_per_symbol"], float(entry["rate_x1024"])] = tuple(curves)
        return cls(found, plain["source"])


@cache
def nr_bler() -> BlerTable:
    """Return the table that comes with rankcast: ideal receiver, additive white Gaussian noise."""
    text = resources.files("rankcast.link").joinpath("nr_bler.json").read_text("utf-8")
    return BlerTable.from_plain(json.loads(text))


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
        return -float(
            (lost * scipy("special").log_ndtr(z) + kept * scipy("special").log_ndtr(-z)).sum()
        )

    start = np.array([np.average(snr_db, weights=lost * kept + 1e-6), np.log(0.2)])
    best = scipy("optimize").minimize(cost, start, method="Nelder-Mead",
                             options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000})  # fmt: skip
    middle, width = float(best.x[0]), float(np.exp(best.x[1]) + _NARROWEST_DB)
    errors = np.sqrt(np.diag(np.linalg.pinv(_information(middle, width, snr_db, lost + kept))))
    return Waterfall(n_info_bits, middle, width, float(errors[0]), float(errors[1]))


def _information(
    middle: float, width: float, snr_db: FloatArray, n_blocks: FloatArray
) -> FloatArray:
    """Return the (2, 2) Fisher information about middle and width."""
    z = (middle - snr_db) / width
    share = np.clip(scipy("special").ndtr(z), 1e-9, 1 - 1e-9)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    weight = n_blocks * density**2 / (share * (1 - share)) / width**2
    gradient = np.stack([np.ones_like(z), -z])
    return (gradient * weight) @ gradient.T
