"""What a QAM symbol can carry: bit-interleaved mutual information against SNR.

G. Caire, G. Taricco and E. Biglieri, Bit-interleaved coded modulation, IEEE Trans. Inf. Theory
44(3), 1998, with Gray mapping over additive white Gaussian noise. It is the currency of link
abstraction: transmissions of a block that are combined, and resource elements of unequal SNR, add
up in it (mutual-information effective SNR mapping, MIESM: K. Brueninghaus et al., Link performance
models for system level simulations of broadband radio access systems, PIMRC 2005).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from rankcast.errors import ConfigError
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
    found = [_pam_information(levels, labels, nodes, weights, float(snr)) for snr in snrs]
    table = np.clip(2.0 * np.array(found), 0.0, bits_per_symbol)
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
    found = 0.0
    for bit in labels.T:
        same = np.where(bit[:, None] == bit, 0.0, -np.inf)  # (M, M')
        agree = np.logaddexp.reduce(metric + same[:, None, :], axis=2)
        found += 1.0 - float(((total - agree) * weights).sum(axis=1).mean()) / np.log(2.0)
    return found
