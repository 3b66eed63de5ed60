"""Block error rates of 5G NR's codes against SNR, fitted to simulated blocks.

A waterfall is Φ((m - s)/w): a normal distribution function of the SNR s [dB] with the SNR m at
which half of the blocks are lost and the width w. Both come from simulations with Sionna
(`studies/bler`), of blocks of a few sizes, and are interpolated between them on the scale of
1/√k, on which the distance to capacity falls (Y. Polyanskiy, H. V. Poor and S. Verdú, Channel
coding rate in the finite blocklength regime, IEEE Trans. Inf. Theory 56(5), 2010). Outside the
simulated sizes the nearest one holds; below a BLER of about 1 % the fit extrapolates.

Blocks that are sent more than once, and resource elements of unequal SNR, add up in the mutual
information of their QAM symbols (mutual-information effective SNR mapping, MIESM: K. Brueninghaus
et al., Link performance models for system level simulations of broadband radio access systems,
PIMRC 2005), with Gray mapping and bit-interleaved coded modulation over additive white Gaussian
noise (G. Caire, G. Taricco and E. Biglieri, Bit-interleaved coded modulation, IEEE Trans. Inf.
Theory 44(3), 1998).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from rankcast.errors import ConfigError
from rankcast.link.capacity import scipy
from rankcast.link.nr import Mcs
from rankcast.records import FloatArray, IntArray

ORDERS = (2, 4, 6, 8)
"""Bits of a symbol: QPSK, 16QAM, 64QAM, 256QAM."""
_GRID_DB = np.arange(-20.0, 40.25, 0.25)
_NODES = 32  # of Gauss and Hermite


def mutual_information(bits_per_symbol: int, snr_db: FloatArray) -> FloatArray:
    """Return the bits that each symbol carries at Es/N0 [dB], same shape.

    Proportional to the SNR below the tabulated range, Q_m above it.

    Raises:
        ConfigError: not 2, 4, 6 or 8 bits a symbol.
    """
    table = _table(bits_per_symbol)
    snr_db = np.asarray(snr_db, dtype=np.float64)
    below = table[0] * 10.0 ** ((np.minimum(snr_db, _GRID_DB[0]) - _GRID_DB[0]) / 10.0)
    return np.where(snr_db < _GRID_DB[0], below, np.interp(snr_db, _GRID_DB, table))


def effective_snr_db(bits_per_symbol: int, information: FloatArray) -> FloatArray:
    """Return the SNR [dB] at which one symbol carries so many bits, same shape.

    Clipped to the tabulated range: as good as never, and as good as always.

    Raises:
        ConfigError: not 2, 4, 6 or 8 bits a symbol.
    """
    table = _table(bits_per_symbol)
    rising = np.concatenate([[True], np.diff(table) > 0])
    return np.interp(np.asarray(information, dtype=np.float64), table[rising], _GRID_DB[rising])


@cache
def _table(bits_per_symbol: int) -> FloatArray:
    """Return mutual information on the grid: twice that of a quadrature, which is a Gray PAM."""
    if bits_per_symbol not in ORDERS:
        raise ConfigError(f"A QAM symbol of NR has {ORDERS} bits, got {bits_per_symbol}.")
    n_bits = bits_per_symbol // 2
    size = 2**n_bits
    gray = np.arange(size) ^ (np.arange(size) >> 1)
    levels = np.arange(1 - size, size, 2) / np.sqrt(2.0 * (size**2 - 1) / 3.0)
    labels = (gray[:, None] >> np.arange(n_bits)) & 1
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    weights = weights / np.sqrt(np.pi)
    snrs = 10.0 ** (_GRID_DB / 10.0)
    each = [_pam_information(levels, labels, nodes, weights, float(snr)) for snr in snrs]
    table = np.clip(2.0 * np.array(each), 0.0, bits_per_symbol)
    table = np.maximum.accumulate(table)
    table.setflags(write=False)
    return table


def _pam_information(
    levels: FloatArray, labels: IntArray, nodes: FloatArray, weights: FloatArray, snr: float
) -> float:
    """Return Σ over bits of 1 - E[log2(1 + p(y | other bit) / p(y | this bit))].

    Args:
        levels: (M,) amplitudes with mean power 1/2.
        labels: (M, m) bits of each.
        nodes: (J,) of the quadrature over a standard normal noise times √2.
        weights: (J,) summing to one.
        snr: Es/N0, linear; the noise of a quadrature has variance 1/(2·snr).
    """
    received = levels[:, None] + nodes / np.sqrt(snr)  # (M, J)
    metric = -snr * np.square(received[:, :, None] - levels)  # (M, J, M')
    total = np.logaddexp.reduce(metric, axis=2)
    information = 0.0
    for bit in labels.T:
        same = np.where(bit[:, None] == bit, 0.0, -np.inf)  # (M, M')
        agree = np.logaddexp.reduce(metric + same[:, None, :], axis=2)
        information += 1.0 - float(((total - agree) * weights).sum(axis=1).mean()) / np.log(2.0)
    return information


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

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> BlerTable:
        """Return the table in a file of `studies.bler.make_table`."""
        waterfalls: dict[tuple[int, float], tuple[Waterfall, ...]] = {}
        for entry in plain["schemes"]:
            curves = sorted((Waterfall(**c) for c in entry["waterfalls"]),
                            key=lambda c: c.n_info_bits)  # fmt: skip
            waterfalls[entry["bits_per_symbol"], float(entry["rate_x1024"])] = tuple(curves)
        return cls(waterfalls, plain["source"])


@cache
def nr_bler() -> BlerTable:
    """Return the table that comes with rankcast: ideal receiver, additive white Gaussian noise."""
    text = resources.files("rankcast.link").joinpath("nr_bler.json").read_text("utf-8")
    return BlerTable.from_plain(json.loads(text))
