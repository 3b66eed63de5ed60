"""5G NR's modulation and coding schemes, and how a slot turns them into blocks of bits.

The base install knows the standard's arithmetic; the coding itself is Sionna's
(`rankcast.phy`).

Standards: 3GPP TS 38.214 (MCS tables, transport block size), TS 38.212 (segmentation), TS 38.211
(slots), TS 38.101-1 (resource blocks of a channel). One layer, one codeword, full allocation.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rankcast.errors import ConfigError, LinkError

McsTable = Literal["64qam", "256qam"]
"""TS 38.214, table 5.1.3.1-1 (`64qam`) or 5.1.3.1-2 (`256qam`)."""

SUBCARRIERS = 12
"""Of a resource block."""
SYMBOLS = 14
"""Of a slot."""
_LARGEST_PRB = 275  # TS 38.211, 4.4.2
_COUNTED_ELEMENTS = 156  # of a resource block, at most (TS 38.214, 5.1.3.2)


@dataclass(frozen=True, slots=True)
class Mcs:
    """A modulation and coding scheme.

    Attributes:
        index: I_MCS in its table.
        bits_per_symbol: Q_m: 2 (QPSK), 4 (16QAM), 6 (64QAM) or 8 (256QAM).
        rate_x1024: R·1024, the target code rate.
    """

    index: int
    bits_per_symbol: int
    rate_x1024: float

    @property
    def code_rate(self) -> float:
        """R."""
        return self.rate_x1024 / 1024

    @property
    def efficiency(self) -> float:
        """Q_m·R [bit per resource element]."""
        return self.bits_per_symbol * self.code_rate


def mcs_table(name: McsTable) -> tuple[Mcs, ...]:
    """Return the schemes of a table of TS 38.214 in the order of their indices.

    Raises:
        ConfigError: unknown table.
    """
    if name not in _RATES_X1024:
        raise ConfigError(f"There is no MCS table {name!r}. Known: {', '.join(_RATES_X1024)}.")
    schemes = [(order, rate) for order, rates in _RATES_X1024[name].items() for rate in rates]
    return tuple(Mcs(index, order, rate) for index, (order, rate) in enumerate(schemes))


@dataclass(frozen=True)
class Carrier:
    """The resources that a transfer has in every slot.

    Attributes:
        bandwidth_hz: of the channel, guard bands included [Hz].
        subcarrier_hz: spacing of subcarriers [Hz].
        n_prb: resource blocks.
        control_symbols: of 14 that carry no data; 2, one each for PDCCH and DM-RS, is the 14 %
            overhead of TS 38.306.

    Raises:
        LinkError: a spacing that NR does not have, no resource block, or more of them than the band
            or a carrier of NR holds.
    """

    bandwidth_hz: float
    subcarrier_hz: float
    n_prb: int
    control_symbols: int = 2

    def __post_init__(self) -> None:
        """Refuse what fits no band."""
        if self.subcarrier_hz not in _SPACINGS_HZ:
            known = ", ".join(f"{hz / 1e3:g}" for hz in _SPACINGS_HZ)
            raise LinkError(
                f"NR has subcarriers of {known} kHz, got {self.subcarrier_hz / 1e3:g} kHz."
            )
        whole = all(float(n).is_integer() for n in (self.n_prb, self.control_symbols))
        if self.n_prb < 1 or not 0 <= self.control_symbols < SYMBOLS or not whole:
            raise LinkError(
                f"A carrier needs a resource block and a data symbol, got {self.n_prb} blocks and "
                f"{self.control_symbols} of {SYMBOLS} symbols for control."
            )
        if self.n_prb > _LARGEST_PRB:
            raise LinkError(
                f"A carrier of NR has at most {_LARGEST_PRB} resource blocks, got {self.n_prb}; "
                f"take a wider spacing of subcarriers."
            )
        if not self.occupied_hz <= self.bandwidth_hz < math.inf:
            raise LinkError(
                f"{self.n_prb} resource blocks take {self.occupied_hz:g} Hz, more than the "
                f"{self.bandwidth_hz:g} Hz of the channel."
            )

    @classmethod
    def for_bandwidth(cls, bandwidth_hz: float) -> Carrier:
        """Return the carrier of TS 38.101-1 for a bandwidth, or a share of one where it has none.

        30 kHz spacing from 20 MHz on, 15 kHz below. Between the standard's bandwidths, and below
        5 MHz, as many blocks as nine tenths of it hold: an allocation inside a wider carrier.

        Raises:
            LinkError: not even one resource block fits (200 kHz), or more than a carrier may have
                (110 MHz).
        """
        if not 0 < bandwidth_hz < math.inf:
            raise LinkError(f"Bandwidth must be a positive number of Hz, got {bandwidth_hz}.")
        spacing_hz = 30e3 if bandwidth_hz >= 20e6 else 15e3
        n_prb = _PRB[spacing_hz].get(bandwidth_hz / 1e6)
        if n_prb is None:
            n_prb = int(0.9 * bandwidth_hz / (SUBCARRIERS * spacing_hz) + 1e-9)
        if n_prb < 1:
            raise LinkError(
                f"{bandwidth_hz:g} Hz is narrower than one resource block of NR (180 kHz and a "
                f"tenth for guard bands); use a rate model of Shannon's, or at least 200 kHz."
            )
        return cls(bandwidth_hz, spacing_hz, n_prb)

    @property
    def occupied_hz(self) -> float:
        """Bandwidth of the resource blocks [Hz]."""
        return self.n_prb * SUBCARRIERS * self.subcarrier_hz

    @property
    def slot_s(self) -> float:
        """Duration of a slot [s] (TS 38.211, table 4.3.2-1)."""
        return 1e-3 * 15e3 / self.subcarrier_hz

    @property
    def data_elements(self) -> int:
        """Resource elements of a slot that carry data."""
        return self.n_prb * SUBCARRIERS * (SYMBOLS - self.control_symbols)

    @property
    def efficiency(self) -> float:
        """Data-carrying resource elements per second and hertz of the channel, below 1.

        The rest of Shannon's W is taken by guard bands, cyclic prefixes, control and pilots.
        """
        return self.data_elements / self.slot_s / self.bandwidth_hz


@dataclass(frozen=True, slots=True)
class TransportBlock:
    """A transport block: the bits of one slot.

    Attributes:
        mcs: its scheme.
        payload_bits: A, the transport block size; whole bytes.
        crc_bits: of the block.
        n_code_blocks: C.
        code_block_bits: K', information bits of each code block with every CRC.
        coded_bits: G, bits on the air.
    """

    mcs: Mcs
    payload_bits: int
    crc_bits: int
    n_code_blocks: int
    code_block_bits: int
    coded_bits: int


def transport_block(mcs: Mcs, carrier: Carrier) -> TransportBlock:
    """Return the transport block of a slot (TS 38.214, 5.1.3.2; TS 38.212, 5.2.2 and 6.2)."""
    coded = carrier.data_elements * mcs.bits_per_symbol
    counted = min(carrier.data_elements, _COUNTED_ELEMENTS * carrier.n_prb) * mcs.bits_per_symbol
    size = transport_block_bits(counted * mcs.code_rate, mcs.code_rate)
    crc = 24 if size > 3824 else 16
    largest = 3840 if base_graph(size, mcs.code_rate) == 2 else 8448
    whole = size + crc
    n_blocks = 1 if whole <= largest else math.ceil(whole / (largest - 24))
    each = whole if n_blocks == 1 else math.ceil(whole / n_blocks) + 24
    return TransportBlock(mcs, size, crc, n_blocks, each, coded)


def transport_block_bits(information_bits: float, code_rate: float) -> int:
    """Return the transport block size A for N_info information bits (TS 38.214, 5.1.3.2).

    Args:
        information_bits: N_RE·R·Q_m.
        code_rate: R.
    """
    if information_bits <= 3824:
        unit = 2 ** max(3, math.floor(math.log2(max(information_bits, 1))) - 6)
        quantised = max(24, unit * math.floor(information_bits / unit))
        return _SMALL_SIZES[bisect_left(_SMALL_SIZES, quantised)]
    unit = 2 ** (math.floor(math.log2(information_bits - 24)) - 5)
    quantised = max(3840, unit * math.floor((information_bits - 24) / unit + 0.5))
    n_blocks = 1
    if code_rate <= 0.25:
        n_blocks = math.ceil((quantised + 24) / 3816)
    elif quantised > 8424:
        n_blocks = math.ceil((quantised + 24) / 8424)
    return 8 * n_blocks * math.ceil((quantised + 24) / (8 * n_blocks)) - 24


def base_graph(payload_bits: int, code_rate: float) -> Literal[1, 2]:
    """Return which LDPC base graph codes a transport block (TS 38.212, 6.2.2)."""
    small = payload_bits <= 292 or (payload_bits <= 3824 and code_rate <= 0.67)
    return 2 if small or code_rate <= 0.25 else 1


_SPACINGS_HZ = (15e3, 30e3, 60e3, 120e3)
_PRB: Mapping[float, Mapping[float, int]] = {
    15e3: {5: 25, 10: 52, 15: 79, 20: 106, 25: 133, 30: 160, 35: 188, 40: 216, 45: 242, 50: 270},
    30e3: {
        5: 11, 10: 24, 15: 38, 20: 51, 25: 65, 30: 78, 35: 92, 40: 106, 45: 119, 50: 133, 60: 162,
        70: 189, 80: 217, 90: 245, 100: 273,
    },
}  # fmt: skip
"""Resource blocks by spacing and bandwidth in MHz (TS 38.101-1, table 5.3.2-1)."""
_RATES_X1024 = {
    "64qam": {
        2: (120, 157, 193, 251, 308, 379, 449, 526, 602, 679),
        4: (340, 378, 434, 490, 553, 616, 658),
        6: (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948),
    },
    "256qam": {
        2: (120, 193, 308, 449, 602),
        4: (378, 434, 490, 553, 616, 658),
        6: (466, 517, 567, 616, 666, 719, 772, 822, 873),
        8: (682.5, 711, 754, 797, 841, 885, 916.5, 948),
    },
}
_SMALL_SIZES = (
    *range(24, 193, 8), *range(208, 385, 16), *range(408, 529, 24), *range(552, 577, 24),
    *range(608, 769, 32), *range(808, 929, 40), 984, 1032, 1064, 1128, 1160, 1192, 1224, 1256,
    1288, 1320, 1352, 1416, 1480, 1544, 1608, 1672, 1736, 1800, 1864, 1928, 2024, 2088, 2152, 2216,
    2280, 2408, 2472, 2536, 2600, 2664, 2728, 2792, 2856, 2976, 3104, 3240, 3368, 3496, 3624, 3752,
    3824,
)  # fmt: skip
"""TS 38.214, table 5.1.3.2-1."""
