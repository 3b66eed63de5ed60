"""Links whose block errors follow a formula, and what holds for every delivery over them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rankcast.link.bler import BlerTable, Waterfall
from rankcast.link.nr import Carrier, Mcs, mcs_table
from rankcast.link.nr_link import NrLink
from rankcast.link.transport import Delivery

SIZES = (640, 3840, 8448)


def waterfall(mcs: Mcs, n_info_bits: int) -> Waterfall:
    """Return a waterfall some 1.3 dB above Shannon's limit, steeper for larger blocks."""
    shannon_db = 10 * math.log10(2**mcs.efficiency - 1)
    shorter = math.sqrt(640 / n_info_bits)
    return Waterfall(n_info_bits, shannon_db + 1.3 + 0.25 * shorter, 0.3 * shorter)


def formula_table() -> BlerTable:
    """Return the waterfalls of every scheme."""
    schemes = [*mcs_table("64qam"), *mcs_table("256qam")]
    return BlerTable(
        {
            (mcs.bits_per_symbol, mcs.rate_x1024): tuple(waterfall(mcs, k) for k in SIZES)
            for mcs in schemes
        },
        "a formula",
    )


def link(carrier: Carrier | None = None, **settings: Any) -> NrLink:
    """Return a link by the formula, of 5 MHz unless told otherwise."""
    return NrLink(carrier or Carrier.for_bandwidth(5e6), bler=formula_table(), **settings)


def check_delivery(delivery: Delivery, data: bytes, sent_over: NrLink) -> None:
    """Assert what holds for every delivery, whatever was lost."""
    slot_s = sent_over.carrier.slot_s
    assert data.startswith(delivery.received)
    assert delivery.sent_bytes == len(data)
    assert delivery.complete == (delivery.received == data)
    assert delivery.air_time_s == pytest.approx(delivery.n_transmissions * slot_s)
    assert delivery.n_transmissions == len(delivery.blocks) + delivery.n_retransmissions
    arrived = [block for block in delivery.blocks if block.arrived]
    assert sum(block.payload_bits for block in arrived) == 8 * len(delivery.received)
    # Only the last block may have been lost.
    assert all(block.arrived for block in delivery.blocks[:-1])
    for block in delivery.blocks:
        assert 1 <= len(block.snr_db) <= sent_over.max_transmissions
        assert 0 < block.payload_bits <= sent_over.blocks[block.scheme].payload_bits
    if delivery.air_time_s > 0:
        rate_bps = 8 * len(delivery.received) / delivery.air_time_s
        assert delivery.throughput_bps == pytest.approx(rate_bps)
    else:
        assert delivery.throughput_bps == 0.0
