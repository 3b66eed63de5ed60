"""Carriers, schemes and transport blocks of 5G NR by hand, and bad input."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from rankcast.errors import ConfigError, LinkError
from rankcast.link.nr import (
    Carrier,
    base_graph,
    mcs_table,
    transport_block,
    transport_block_bits,
)


@pytest.mark.parametrize(
    ("bandwidth_hz", "subcarrier_hz", "n_prb"),
    # TS 38.101-1, table 5.3.2-1.
    [
        (5e6, 15e3, 25), (10e6, 15e3, 52), (15e6, 15e3, 79), (20e6, 30e3, 51), (25e6, 30e3, 65),
        (30e6, 30e3, 78), (35e6, 30e3, 92), (40e6, 30e3, 106), (45e6, 30e3, 119), (50e6, 30e3, 133),
        (60e6, 30e3, 162), (70e6, 30e3, 189), (80e6, 30e3, 217), (90e6, 30e3, 245),
        (100e6, 30e3, 273),
    ],
)  # fmt: skip
def test_carriers_of_the_standard(bandwidth_hz: float, subcarrier_hz: float, n_prb: int) -> None:
    carrier = Carrier.for_bandwidth(bandwidth_hz)
    assert (carrier.subcarrier_hz, carrier.n_prb) == (subcarrier_hz, n_prb)


def test_a_share_of_a_carrier_fills_nine_tenths() -> None:
    # Blocks of 180 kHz: 0.9 MHz hold five, 180 kHz just one; of 360 kHz: 19.8 MHz hold 55.
    assert Carrier.for_bandwidth(1e6).n_prb == 5
    assert Carrier.for_bandwidth(200e3).n_prb == 1
    assert Carrier.for_bandwidth(22e6).n_prb == 55


def test_the_widest_carrier_by_hand() -> None:
    carrier = Carrier.for_bandwidth(100e6)
    assert carrier.slot_s == pytest.approx(0.5e-3)
    assert carrier.occupied_hz == pytest.approx(98.28e6)
    # 273 blocks of 12 subcarriers and 12 data symbols in half a millisecond: 78.6 M a second.
    assert carrier.data_elements == 39_312
    assert carrier.efficiency == pytest.approx(0.78624)


def test_slots_get_shorter_with_the_spacing() -> None:
    slots_s = [Carrier(100e6, 15e3 * 2**mu, 10).slot_s for mu in range(4)]
    assert slots_s == pytest.approx([1e-3, 0.5e-3, 0.25e-3, 0.125e-3])


def test_a_small_block_by_hand() -> None:
    # 25 blocks of 144 elements, QPSK at 120/1024: N_info = 843.75. Below 1,024 in steps of 8: 840.
    # The next size of table 5.1.3.2-1 is 848; with a CRC of 16 one code block of 864.
    block = transport_block(mcs_table("64qam")[0], Carrier.for_bandwidth(5e6))
    assert block.payload_bits == 848
    assert (block.crc_bits, block.n_code_blocks, block.code_block_bits) == (16, 1, 864)
    assert block.coded_bits == 7_200


def test_a_large_block_by_hand() -> None:
    # 39,312 elements, 64QAM at 948/1024: N_info = 218,365.875. Less 24, to a multiple of
    # 2^(17 - 5): 53 · 4,096 = 217,088. C = ⌈217,112/8,424⌉ = 26, A = 208·⌈217,112/208⌉ - 24.
    block = transport_block(mcs_table("64qam")[28], Carrier.for_bandwidth(100e6))
    assert block.payload_bits == 217_128
    # 217,152 bits with the CRC, 8,352 in each block and another CRC of 24.
    assert (block.crc_bits, block.n_code_blocks, block.code_block_bits) == (24, 26, 8_376)


def test_a_block_of_low_rate_by_hand() -> None:
    # QPSK at 157/1024: N_info = 12,054.7, quantised to 47 · 256 = 12,032. Below a rate of 1/4 code
    # blocks hold 3,816: C = 4, A = 32·⌈12,056/32⌉ - 24 = 12,040; (12,040 + 24)/4 + 24 = 3,040.
    block = transport_block(mcs_table("64qam")[1], Carrier.for_bandwidth(100e6))
    assert (block.payload_bits, block.n_code_blocks, block.code_block_bits) == (12_040, 4, 3_040)


def test_half_a_step_rounds_up() -> None:
    # N_info - 24 = 4,160 lies between 64·64 + 64 and + 128: in steps of 128, 32.5 becomes 33.
    assert transport_block_bits(4_184, 0.5) == 8 * math.ceil((33 * 128 + 24) / 8) - 24


def test_the_least_block() -> None:
    assert transport_block_bits(0.0, 0.1) == 24
    assert transport_block_bits(3_824, 0.5) == 3_824


def test_elements_beyond_156_of_a_block_do_not_count() -> None:
    # Without control symbols there are 168; the bits on the air grow, the payload does not.
    mcs = mcs_table("64qam")[10]
    full, one = (transport_block(mcs, Carrier(5e6, 15e3, 25, control)) for control in (0, 1))
    assert full.payload_bits == one.payload_bits
    assert (full.coded_bits, one.coded_bits) == (16_800, 15_600)


@pytest.mark.parametrize(
    ("payload_bits", "rate", "graph"),
    [(292, 0.9, 2), (293, 0.9, 1), (3_824, 0.67, 2), (3_832, 0.67, 1), (3_832, 0.25, 2)],
)
def test_base_graphs_at_their_borders(payload_bits: int, rate: float, graph: int) -> None:
    assert base_graph(payload_bits, rate) == graph


def test_tables_have_the_schemes_of_the_standard() -> None:
    low, high = mcs_table("64qam"), mcs_table("256qam")
    assert (len(low), len(high)) == (29, 28)
    for table in (low, high):
        assert [mcs.index for mcs in table] == list(range(len(table)))
    # 16QAM at 658 carries a little more than 64QAM at 438: the one step down of the first table.
    steps = [b.efficiency > a.efficiency for a, b in pairwise(low)]
    assert [i for i, up in enumerate(steps) if not up] == [16]
    assert high[-1].efficiency == pytest.approx(7.4063, abs=5e-5)


def test_an_unknown_table() -> None:
    with pytest.raises(ConfigError, match="1024qam"):
        mcs_table("1024qam")  # type: ignore[arg-type]


@pytest.mark.parametrize("bandwidth_hz", [199e3, 0.0, -1e6, math.nan, math.inf, 1e9])
def test_bandwidths_that_hold_no_carrier(bandwidth_hz: float) -> None:
    with pytest.raises(LinkError):
        Carrier.for_bandwidth(bandwidth_hz)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ((5e6, 20e3, 10), "kHz"),
        ((5e6, 15e3, 0), "resource block"),
        ((5e6, 15e3, 1.5), "resource block"),
        ((5e6, 15e3, 10, 14), "data symbol"),
        ((5e6, 15e3, 10, -1), "data symbol"),
        ((5e6, 15e3, 28), "more than"),  # 5.04 MHz
        ((math.nan, 15e3, 1), "more than"),
        ((200e6, 30e3, 276), "at most 275"),
    ],
)
def test_impossible_carriers(settings: tuple[float, ...], reason: str) -> None:
    with pytest.raises(LinkError, match=reason):
        Carrier(*settings)  # type: ignore[arg-type]
