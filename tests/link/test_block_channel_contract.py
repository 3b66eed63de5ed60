"""What every `BlockChannel` must do, whichever it is, under the sender that uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import cycle, repeat

import numpy as np
import pytest

from helpers.links import check_delivery, link
from rankcast.link.nr import Carrier
from rankcast.link.nr_link import OuterLoop
from rankcast.link.processes import GaussMarkovSnr
from rankcast.link.transport import (
    AbstractChannel,
    Attempt,
    BlockChannel,
    BlockReport,
    Delivery,
    Sender,
    slots,
)

LINK = link(Carrier(1e6, 15e3, 3))
SLOT_S = 1e-3
DATA = np.random.default_rng(0).bytes(1500)
EDGE_DB = 7.05
"""SNR at which the 14th scheme loses three blocks in ten, by the formula and in simulation [dB]."""


@cache
def simulated() -> BlockChannel:
    pytest.importorskip("sionna")
    from rankcast.phy.channel import SimulatedChannel

    return SimulatedChannel(LINK)


CHANNELS: dict[str, Callable[[], BlockChannel]] = {
    "abstract": lambda: AbstractChannel(LINK),
    "simulated": simulated,
}


@pytest.fixture(params=CHANNELS)
def channel(request: pytest.FixtureRequest) -> BlockChannel:
    return CHANNELS[request.param]()


def send(
    channel: BlockChannel, snr_db: float, data: bytes = DATA, *, seed: int = 0,
    margin_db: float = 3.0,
    deadline_s: float = np.inf, max_transmissions: int = 4,
) -> Delivery:  # fmt: skip
    limited = replace(LINK, max_transmissions=max_transmissions)
    sender = Sender(limited, OuterLoop(step_db=0.0, margin_db=margin_db))
    delivery = sender.send(
        data, repeat(snr_db), channel, np.random.default_rng(seed), deadline_s=deadline_s
    )
    check_delivery(delivery, data, limited)
    return delivery


def test_satisfies_the_protocols(channel: BlockChannel) -> None:
    assert isinstance(channel, BlockChannel)
    size = LINK.blocks[5].payload_bits // 8
    assert isinstance(channel.begin(5, bytes(size), np.random.default_rng(0)), Attempt)


@pytest.mark.parametrize("scheme", [0, 4, 9, 16, 27])
def test_every_bit_arrives_at_high_snr(channel: BlockChannel, scheme: int) -> None:
    rng = np.random.default_rng(scheme)
    payload = rng.bytes(LINK.blocks[scheme].payload_bits // 8)
    assert channel.begin(scheme, payload, rng).transmit(35.0) == payload


def test_all_data_arrive_at_high_snr(channel: BlockChannel) -> None:
    delivery = send(channel, 30.0)
    assert delivery.complete
    assert delivery.received == DATA
    assert delivery.n_retransmissions == 0
    # 1,500 bytes in blocks of the fastest scheme that 27 dB carry.
    size = LINK.blocks[delivery.blocks[0].scheme].payload_bits
    assert delivery.n_transmissions == -(-8 * len(DATA) // size)


def test_nothing_arrives_out_of_noise(channel: BlockChannel) -> None:
    delivery = send(channel, -30.0)
    assert delivery.received == b""
    assert not delivery.complete
    # One block, repeated as often as allowed; then sending stops.
    assert [len(block.snr_db) for block in delivery.blocks] == [4]
    assert delivery.throughput_bps == 0.0


def test_same_seed_same_delivery(channel: BlockChannel) -> None:
    first, second = (send(channel, EDGE_DB, DATA[:600], seed=3, margin_db=-0.3) for _ in range(2))
    assert first == second


def test_other_seed_other_fate(channel: BlockChannel) -> None:
    deliveries = [
        send(channel, EDGE_DB, DATA[:600], seed=seed, margin_db=-0.3) for seed in range(4)
    ]
    assert len({delivery.blocks for delivery in deliveries}) > 1


def test_greed_is_paid_for_with_retransmissions(channel: BlockChannel) -> None:
    delivery = send(channel, 8.0, DATA[:600], margin_db=-2.0)
    assert delivery.complete
    assert delivery.n_retransmissions > 0
    assert delivery.air_time_s == pytest.approx(delivery.n_transmissions * SLOT_S)


def test_a_lost_block_stops_sending(channel: BlockChannel) -> None:
    # Three blocks in ten are lost for want of a second transmission.
    deliveries = [
        send(channel, EDGE_DB, DATA[:600], seed=seed, margin_db=-0.3, max_transmissions=1)
        for seed in range(6)
    ]
    assert {block.scheme for delivery in deliveries for block in delivery.blocks} == {14}
    stopped = [delivery for delivery in deliveries if not delivery.complete]
    assert stopped
    assert any(delivery.received for delivery in stopped)
    for delivery in stopped:
        assert not delivery.blocks[-1].arrived


@pytest.mark.parametrize("n_slots", [1, 3])
def test_the_deadline_is_kept(channel: BlockChannel, n_slots: int) -> None:
    whole = send(channel, 12.0)
    assert whole.air_time_s > 3 * SLOT_S
    delivery = send(channel, 12.0, deadline_s=(n_slots + 0.5) * SLOT_S)
    assert delivery.air_time_s == pytest.approx(n_slots * SLOT_S)
    assert delivery.blocks == whole.blocks[:n_slots]
    assert 0 < len(delivery.received) < len(DATA)


def test_no_slot_before_the_deadline(channel: BlockChannel) -> None:
    delivery = send(channel, 30.0, deadline_s=0.9 * SLOT_S)
    assert (delivery.received, delivery.air_time_s, delivery.blocks) == (b"", 0.0, ())


def test_nothing_to_send(channel: BlockChannel) -> None:
    delivery = send(channel, 30.0, data=b"")
    assert delivery.complete
    assert delivery.air_time_s == 0.0
    assert delivery.throughput_bps == 0.0


def test_progress_is_reported_block_by_block(channel: BlockChannel) -> None:
    seen: list[tuple[int, BlockReport]] = []
    delivery = Sender(LINK, OuterLoop(margin_db=3.0)).send(
        DATA, repeat(15.0), channel, np.random.default_rng(0),
        progress=lambda received, block: seen.append((received, block)),
    )  # fmt: skip
    assert tuple(block for _, block in seen) == delivery.blocks
    assert [received for received, _ in seen] == np.cumsum(
        [block.payload_bits // 8 for block in delivery.blocks]
    ).tolist()


def test_repeated_when_the_first_falls_into_a_fade(channel: BlockChannel) -> None:
    # Reports are a slot old: the bad slot comes when a good one is told. Its block needs a version
    # that can be decoded by itself, which the second is not at a high code rate and the third is.
    sender = Sender(LINK, OuterLoop(step_db=0.0, margin_db=3.0), report_delay_slots=1)
    snr_db = cycle([14.0, -15.0, 14.0, 14.0])
    delivery = sender.send(DATA[:600], snr_db, channel, np.random.default_rng(1))
    check_delivery(delivery, DATA[:600], LINK)
    assert delivery.complete
    assert delivery.n_retransmissions > 0
    faded = [block for block in delivery.blocks if block.snr_db[0] < 0 and block.scheme > 5]
    assert faded
    assert all(block.snr_db[1] == 14.0 for block in faded)


def test_over_a_moving_link(channel: BlockChannel) -> None:
    process = GaussMarkovSnr(10.0, 3.0, 0.9)
    delivery = Sender(LINK, OuterLoop(margin_db=2.0), report_delay_slots=2).send(
        DATA[:600], slots(process, np.random.default_rng(5)), channel, np.random.default_rng(6)
    )
    check_delivery(delivery, DATA[:600], LINK)
    assert delivery.received
