"""What holds for every allocation, scheme, SNR and amount of data."""

from __future__ import annotations

from itertools import repeat

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.links import check_delivery, link
from rankcast.link.bler import ORDERS, effective_snr_db, mutual_information
from rankcast.link.nr import Carrier, Mcs, base_graph, mcs_table, transport_block
from rankcast.link.nr_link import NrLink, OuterLoop
from rankcast.link.transport import AbstractChannel, Sender
from studies.bler.fitting import Count, fit_waterfall

SIXTY = settings(max_examples=60)

schemes = st.sampled_from([*mcs_table("64qam"), *mcs_table("256qam")])
carriers = st.builds(
    Carrier, st.just(400e6), st.sampled_from([15e3, 30e3, 60e3, 120e3]), st.integers(1, 275),
    st.integers(0, 12),
)  # fmt: skip
LINKS = [
    link(Carrier(1e6, 15e3, 3), max_transmissions=n, combining_efficiency=e)
    for n, e in ((1, 0.8), (2, 0.0), (4, 1.0))
]


@SIXTY
@given(schemes, carriers)
def test_blocks_fit_together(mcs: Mcs, carrier: Carrier) -> None:
    block = transport_block(mcs, carrier)
    assert block.payload_bits % 8 == 0
    with_checksums = block.payload_bits + block.crc_bits
    each = block.code_block_bits - (24 if block.n_code_blocks > 1 else 0)
    assert block.n_code_blocks * each == with_checksums
    largest = 3840 if base_graph(block.payload_bits, mcs.code_rate) == 2 else 8448
    assert block.code_block_bits <= largest
    assert block.coded_bits == carrier.data_elements * mcs.bits_per_symbol


@SIXTY
@given(schemes, st.integers(1, 274), st.integers(0, 12))
def test_more_resource_blocks_never_carry_less(mcs: Mcs, n_prb: int, control: int) -> None:
    few, more = (
        transport_block(mcs, Carrier(400e6, 120e3, n, control)) for n in (n_prb, n_prb + 1)
    )
    assert more.payload_bits >= few.payload_bits


@SIXTY
@given(st.floats(200e3, 100e6))
def test_every_bandwidth_has_a_carrier(bandwidth_hz: float) -> None:
    carrier = Carrier.for_bandwidth(bandwidth_hz)
    assert 0.0 < carrier.efficiency < 0.8
    assert carrier.occupied_hz <= bandwidth_hz


@SIXTY
@given(st.sampled_from(ORDERS), st.floats(-100.0, 100.0), st.floats(0.0, 50.0))
def test_information_rises_and_its_inverse_never_overstates(
    order: int, snr_db: float, more_db: float
) -> None:
    low, high = mutual_information(order, np.array([snr_db, snr_db + more_db]))
    assert 0 < low <= high <= order
    # Where a symbol is full to rounding, only the table's step of a quarter of a decibel is known.
    assert effective_snr_db(order, low) <= max(snr_db, -20.0) + 0.25 + 1e-9


@SIXTY
@given(st.sampled_from(LINKS), st.integers(0, 26), st.floats(-30.0, 50.0), st.floats(0.0, 5.0))
def test_losses_fall_with_the_snr(link: NrLink, index: int, snr_db: float, more_db: float) -> None:
    received = link.information(index, np.array([snr_db, snr_db + more_db]))
    bad, good = link.block_error(index, received)
    assert 0 <= good <= bad <= 1


@SIXTY
@given(st.floats(-20.0, 30.0), st.floats(0.05, 2.0))
def test_fits_move_and_stretch_with_the_counts(middle_db: float, width_db: float) -> None:
    shares = [(-1.0, 841), (0.0, 500), (1.0, 159)]
    counts = [Count(middle_db + z * width_db, 1000, lost) for z, lost in shares]
    fit = fit_waterfall(640, counts)
    np.testing.assert_allclose(fit.middle_db, middle_db, atol=2e-3 * width_db)
    np.testing.assert_allclose(fit.width_db, width_db, rtol=5e-3)


@SIXTY
@given(
    st.builds(
        Sender, st.sampled_from(LINKS), st.builds(OuterLoop, margin_db=st.floats(-6.0, 6.0)),
        st.integers(0, 4),
    ),
    st.integers(0, 3_000), st.floats(-15.0, 35.0),
    st.one_of(st.just(np.inf), st.floats(1e-4, 0.05)), st.integers(0, 2**32),
)  # fmt: skip
def test_every_delivery_adds_up(
    sender: Sender, n: int, snr_db: float, deadline_s: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data = rng.bytes(n)
    delivery = sender.send(
        data, repeat(snr_db), AbstractChannel(sender.link), rng, deadline_s=deadline_s
    )
    check_delivery(delivery, data, sender.link)
    assert delivery.air_time_s <= deadline_s + 1e-12
    if not delivery.complete and delivery.blocks and delivery.blocks[-1].arrived:
        # Only the deadline stops a sender whose blocks arrive.
        assert delivery.air_time_s > deadline_s - sender.link.carrier.slot_s - 1e-12


@SIXTY
@given(st.floats(0.01, 0.5), st.floats(0.05, 2.0), st.lists(st.booleans(), max_size=50))
def test_margin_counts_failures_against_the_target(
    target: float, step_db: float, arrived: list[bool]
) -> None:
    free, bound = OuterLoop(target, step_db, limit_db=1e6), OuterLoop(target, step_db, limit_db=3.0)
    for one in arrived:
        free, bound = free.after(arrived=one), bound.after(arrived=one)
        assert abs(bound.margin_db) <= 3.0
    failed = len(arrived) - sum(arrived)
    expected = step_db * (failed - target / (1 - target) * sum(arrived))
    np.testing.assert_allclose(free.margin_db, expected, atol=1e-9)
