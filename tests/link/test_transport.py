"""The sender and the abstract channel: against the closed form, by hand, and bad input."""

from __future__ import annotations

import math
from itertools import islice, repeat

import numpy as np
import pytest

from helpers.links import check_delivery, link
from rankcast.errors import ConfigError, LinkError
from rankcast.link.nr import Carrier
from rankcast.link.nr_link import OuterLoop
from rankcast.link.processes import StaticSnr
from rankcast.link.transport import AbstractChannel, Sender, air_times_s, slots

LINK = link(Carrier(1e6, 15e3, 3))


class Recorder:
    """Arrives at once and remembers what it was given."""

    def __init__(self) -> None:
        self.schemes: list[int] = []
        self.payloads: list[bytes] = []

    def begin(self, scheme: int, payload: bytes, rng: np.random.Generator) -> Recorder:
        self.schemes.append(scheme)
        self.payloads.append(payload)
        return self

    def transmit(self, snr_db: float) -> bytes:
        return self.payloads[-1]


def test_shares_that_arrive_are_those_of_the_link() -> None:
    n, snr_db, scheme = 4_000, -1.0, 9
    lost = LINK.still_lost(np.array(snr_db))[scheme]
    assert 0.99 > lost[1] > 0.01
    channel, rng = AbstractChannel(LINK), np.random.default_rng(0)
    payload = bytes(LINK.blocks[scheme].payload_bits // 8)
    n_lost = np.zeros(4)
    for _ in range(n):
        attempt = channel.begin(scheme, payload, rng)
        for j in range(4):
            if attempt.transmit(snr_db) is not None:
                break
            n_lost[j] += 1
    # Counts are binomial; five standard errors.
    assert np.abs(n_lost / n - lost).max() < 5 * math.sqrt(0.25 / n)


def test_long_transfers_take_what_goodput_says() -> None:
    # At a fixed scheme that fails now and then: bits through over slots taken.
    sender = Sender(LINK, OuterLoop(target=0.2, step_db=0.0))
    snr_db = float(LINK.thresholds_db(0.2)[12]) + 1e-6
    scheme = sender.adaptation.scheme(LINK, snr_db)
    expected_bps = LINK.goodput(np.array(snr_db))[scheme] * LINK.carrier.bandwidth_hz
    data = bytes(LINK.blocks[scheme].payload_bits // 8 * 1_500)
    delivery = sender.send(data, repeat(snr_db), AbstractChannel(LINK), np.random.default_rng(1))
    assert delivery.complete
    assert delivery.n_retransmissions > 100
    # The number of retransmissions of 1,500 blocks is known to 1/√1,500 of a slot a block.
    assert delivery.throughput_bps == pytest.approx(expected_bps, rel=5 * 0.5 / math.sqrt(1_500))


def test_the_last_block_is_padded() -> None:
    recorder = Recorder()
    size = LINK.blocks[28].payload_bits // 8
    data = np.random.default_rng(0).bytes(size + 10)
    delivery = Sender(LINK).send(data, repeat(60.0), recorder, np.random.default_rng(0))
    assert delivery.received == data
    assert recorder.payloads == [data[:size], data[size:] + bytes(size - 10)]
    assert [block.payload_bits for block in delivery.blocks] == [8 * size, 80]


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_the_sender_knows_old_reports(delay: int) -> None:
    recorder = Recorder()
    snr_db = [20.0, -10.0, 8.0, 2.0, 30.0, -3.0]
    loop = OuterLoop(step_db=0.0)
    Sender(LINK, loop, delay).send(bytes(10**4), snr_db, recorder, np.random.default_rng(0))
    reported = [snr_db[max(0, i - delay)] for i in range(len(snr_db))]
    assert recorder.schemes == [loop.scheme(LINK, x) for x in reported]


def test_sending_ends_with_the_slots() -> None:
    data = bytes(10**5)
    delivery = Sender(LINK).send(data, [20.0] * 7, AbstractChannel(LINK), np.random.default_rng(0))
    check_delivery(delivery, data, LINK)
    assert delivery.air_time_s == pytest.approx(7e-3)


def test_slots_are_drawn_only_when_used() -> None:
    drawn = iter(range(100))
    Sender(LINK).send(
        bytes(10**5), (30.0 for _ in drawn), Recorder(), np.random.default_rng(0), deadline_s=5e-3
    )
    assert next(drawn) == 5


def test_slots_of_a_process() -> None:
    assert list(islice(slots(StaticSnr(4.0), np.random.default_rng(0)), 3)) == [4.0] * 3


def test_predicted_air_times() -> None:
    sender = Sender(LINK, OuterLoop(step_db=0.0, margin_db=-0.3))
    rng = np.random.default_rng(0)
    times_s = air_times_s(sender, 800, lambda: repeat(6.0), rng, n_runs=40)
    assert times_s.shape == (40,)
    least = math.ceil(6_400 / LINK.blocks[sender.adaptation.scheme(LINK, 6.0)].payload_bits)
    assert (times_s[np.isfinite(times_s)] >= least * 1e-3 - 1e-12).all()
    assert len(np.unique(times_s)) > 1
    assert np.isnan(air_times_s(sender, 800, lambda: repeat(-30.0), rng, n_runs=3)).all()


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, math.nan])
def test_bad_deadlines(deadline_s: float) -> None:
    with pytest.raises(LinkError, match="deadline"):
        Sender(LINK).send(
            b"x", repeat(9.0), Recorder(), np.random.default_rng(0), deadline_s=deadline_s
        )


@pytest.mark.parametrize("snr_db", [math.nan, math.inf])
def test_snr_that_is_no_number(snr_db: float) -> None:
    with pytest.raises(LinkError, match="SNR"):
        Sender(LINK).send(b"x", repeat(snr_db), Recorder(), np.random.default_rng(0))
    # Nor does a block arrive by it.
    attempt = AbstractChannel(LINK).begin(0, b"x", np.random.default_rng(0))
    assert attempt.transmit(math.nan) is None


def test_reports_from_the_future() -> None:
    with pytest.raises(ConfigError, match="slots"):
        Sender(LINK, report_delay_slots=-1)
