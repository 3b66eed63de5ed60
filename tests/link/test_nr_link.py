"""Goodput of NR from waterfalls: bounds, combining, and the outer loop at rest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.links import link
from rankcast.errors import ConfigError
from rankcast.link.bler import effective_snr_db
from rankcast.link.capacity import Awgn, TruncatedShannon
from rankcast.link.nr import Carrier
from rankcast.link.nr_link import NrLink, NrRate, OuterLoop
from rankcast.link.processes import GaussMarkovSnr

SNRS_DB = np.arange(-15.0, 35.0, 0.5)


@pytest.mark.parametrize("table", ["64qam", "256qam"])
def test_goodput_stays_below_what_the_schemes_carry(table: str) -> None:
    nr = link(Carrier.for_bandwidth(20e6), table=table)
    goodput = nr.goodput(SNRS_DB)
    assert goodput.shape == (len(SNRS_DB), len(nr.blocks))
    assert (goodput >= 0).all()
    nominal = np.array([block.mcs.efficiency for block in nr.blocks]) * nr.carrier.efficiency
    # Sizes of blocks are rounded by up to one step of 2 %.
    assert (goodput <= 1.02 * nominal).all()
    # Whatever arrives at once: all of it, and nothing 20 dB below the lowest scheme.
    assert goodput[-1, :20] == pytest.approx(nominal[:20], rel=0.02)
    assert nr.goodput(np.array(-27.0)).max() < 1e-6


def test_goodput_by_hand() -> None:
    # Half of the blocks are lost at the first transmission and none with a second: 1.5 slots each.
    nr = link(max_transmissions=2, combining_efficiency=1.0)
    middle_db = nr.waterfall(10).middle_db
    assert nr.blocks[10].n_code_blocks == 1
    lost = nr.still_lost(np.array(middle_db))[10]
    assert lost == pytest.approx([0.5, 0.0], abs=1e-6)
    whole = nr.blocks[10].payload_bits / 1e-3 / 5e6
    assert nr.goodput(np.array(middle_db))[10] == pytest.approx(whole / 1.5)


def test_a_block_is_lost_unless_all_its_code_blocks_arrive() -> None:
    nr = link(Carrier.for_bandwidth(100e6))
    block = nr.blocks[28]
    curve = nr.waterfall(28)
    snr_db = np.array(curve.snr_db_at(0.05))
    lost = nr.block_error(28, nr.information(28, snr_db))
    assert lost == pytest.approx(1 - 0.95**block.n_code_blocks, rel=1e-6)


def test_blocks_of_another_rate_move_as_shannons_limit_does() -> None:
    nr = link(Carrier(1e6, 15e3, 3))  # small blocks, in which checksums weigh
    block = nr.blocks[20]
    simulated = nr.bler.waterfall(block.mcs, block.code_block_bits)
    rate = block.code_block_bits / block.coded_bits
    assert rate > block.mcs.code_rate
    limits_db = [10 * math.log10(2 ** (6 * r) - 1) for r in (rate, block.mcs.code_rate)]
    moved_db = nr.waterfall(20).middle_db - simulated.middle_db
    assert moved_db == pytest.approx(limits_db[0] - limits_db[1])
    assert nr.waterfall(20).width_db == simulated.width_db


def test_each_transmission_helps() -> None:
    lost = link().still_lost(SNRS_DB)
    assert lost.shape == (len(SNRS_DB), 29, 4)
    assert (np.diff(lost, axis=-1) <= 0).all()
    assert (np.diff(lost, axis=0) <= 1e-12).all()
    # Somewhere each of them decides.
    assert (lost[..., :-1] - lost[..., 1:]).max(axis=(0, 1)).min() > 0.9


def test_two_transmissions_at_low_snr_are_one_of_twice_the_power() -> None:
    # Information is all but proportional to the SNR there.
    nr = link(combining_efficiency=1.0)
    for snr_db in (-12.0, -10.0):
        both = 2 * nr.information(0, np.array(snr_db))
        twice_db = snr_db + 10 * math.log10(2)
        assert float(effective_snr_db(2, both)) == pytest.approx(twice_db, abs=0.4)
    # The closer the lower: at -18 dB within a fourteenth of a decibel.
    both = 2 * nr.information(0, np.array(-18.0))
    assert float(effective_snr_db(2, both)) == pytest.approx(-14.99, abs=0.07)


def test_what_a_further_transmission_adds() -> None:
    nr = link(combining_efficiency=0.6)
    first, second, third = (nr.information(12, SNRS_DB, j) for j in range(3))
    np.testing.assert_allclose(second, 0.6 * first)
    np.testing.assert_allclose(third, second)


def test_combining_that_adds_nothing() -> None:
    lost = link(combining_efficiency=0.0).still_lost(SNRS_DB)
    np.testing.assert_allclose(lost, np.repeat(lost[..., :1], 4, axis=-1))


def test_implementation_loss_shifts_everything() -> None:
    ideal, real = link(), link(impl_loss_db=2.5)
    np.testing.assert_allclose(
        real.goodput(SNRS_DB + 2.5), ideal.goodput(SNRS_DB), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        NrRate(real).spectral_efficiency(SNRS_DB + 2.5),
        NrRate(ideal).spectral_efficiency(SNRS_DB),
        rtol=1e-6,
    )


@pytest.mark.parametrize("bandwidth_hz", [1e6, 20e6, 100e6])
@pytest.mark.parametrize("table", ["64qam", "256qam"])
def test_rate_rises_below_shannons(bandwidth_hz: float, table: str) -> None:
    rate = NrRate(link(Carrier.for_bandwidth(bandwidth_hz), table=table))
    snr_db = np.arange(-60.0, 60.0, 0.02)
    efficiency = rate.spectral_efficiency(snr_db)
    assert (efficiency <= Awgn().spectral_efficiency(snr_db)).all()
    assert (np.diff(efficiency) >= 0).all()
    # Between half and all of Shannon's promise for what is left of the band, where schemes abound.
    useful = (snr_db > 0) & (snr_db < 15)
    promised = rate.link.carrier.efficiency * Awgn().spectral_efficiency(snr_db[useful])
    assert (efficiency[useful] > 0.5 * promised).all()
    assert (efficiency[useful] < promised).all()


def test_rate_is_the_goodput_of_the_best_scheme() -> None:
    rate = NrRate(link())
    goodput = rate.link.goodput(SNRS_DB)
    best = goodput.argmax(axis=-1)
    np.testing.assert_allclose(
        rate.spectral_efficiency(SNRS_DB), goodput[np.arange(len(SNRS_DB)), best],
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip
    assert best[-1] == 28
    assert (rate.spectral_efficiency(np.array([[-300.0], [300.0]])) > 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_transmissions": 0},
        {"combining_efficiency": 1.1},
        {"combining_efficiency": -0.1},
        {"combining_efficiency": math.nan},
        {"impl_loss_db": math.nan},
        {"table": "qam"},
    ],
)
def test_impossible_links(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        link(**settings)


def test_steps_of_the_loop_by_hand() -> None:
    loop = OuterLoop(0.2, 1.0, 3.0)
    assert loop.after(arrived=False).margin_db == pytest.approx(4.0)
    # One failure in five is balanced by four blocks that arrive.
    assert loop.after(arrived=True).margin_db == pytest.approx(2.75)


def test_thresholds_lose_the_target() -> None:
    nr = link(Carrier.for_bandwidth(40e6), impl_loss_db=1.5)
    for target in (0.01, 0.1, 0.5):
        thresholds_db = nr.thresholds_db(target)
        lost = [
            float(nr.block_error(i, nr.information(i, np.array(at))))
            for i, at in enumerate(thresholds_db)
        ]
        assert lost == pytest.approx([target] * 29, rel=1e-4)


def test_the_fastest_scheme_that_should_arrive() -> None:
    nr = link()
    loop = OuterLoop(0.1)
    for i in (0, 12, 28):
        curve = nr.waterfall(i)
        threshold_db = curve.snr_db_at(1 - 0.9 ** (1 / nr.blocks[i].n_code_blocks))
        assert loop.scheme(nr, threshold_db + 0.01) == i
        assert loop.scheme(nr, threshold_db - 0.01) < max(i, 1)
        assert OuterLoop(0.1, margin_db=2.0).scheme(nr, threshold_db + 2.01) == i
    assert loop.scheme(nr, -40.0) == 0


def test_the_margin_stays_within_its_limit() -> None:
    up = down = OuterLoop(0.1, step_db=3.0, limit_db=5.0)
    for _ in range(30):
        up, down = up.after(arrived=False), down.after(arrived=True)
    assert (up.margin_db, down.margin_db) == (5.0, -5.0)


@pytest.mark.parametrize("bias_db", [-2.0, 2.0])
def test_loop_settles_at_its_target(bias_db: float) -> None:
    nr, n, settling = link(), 1500, 150
    rng = np.random.default_rng(0)
    process = GaussMarkovSnr(10.0, 3.0, 0.99)
    state, loop, failures = process.start(rng, 1), OuterLoop(0.1, 0.5), []
    for _ in range(settling + n):
        snr_db = state.snr_db[0]
        scheme = loop.scheme(nr, snr_db + bias_db)
        lost = nr.block_error(scheme, nr.information(scheme, np.array(snr_db)))
        failures.append(rng.uniform() < lost)
        loop = loop.after(arrived=not failures[-1])
        state = process.advance(state, rng)
    # The margin moved by 0.5·failures - 0.0556·arrivals: if it ends within 5 dB of where it was,
    # the share is within 0.9·5/(0.5·1500) = 0.006 of its target.
    assert np.mean(failures[settling:]) == pytest.approx(0.1, rel=0.1)
    assert loop.margin_db == pytest.approx(bias_db, abs=2.5)


@pytest.mark.parametrize("settings", [(0.0, 0.5), (1.0, 0.5), (0.1, -0.5), (0.1, math.nan)])
def test_loops_that_cannot_rest(settings: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="outer loop"):
        OuterLoop(*settings)


def test_truncated_shannon_is_a_fit_to_what_was_simulated() -> None:
    carrier, snrs_db = Carrier.for_bandwidth(100e6), np.arange(-5.0, 15.01, 0.25)
    simulated = NrRate(NrLink(carrier)).spectral_efficiency(snrs_db) / carrier.efficiency
    assert TruncatedShannon().spectral_efficiency(snrs_db) == pytest.approx(simulated, rel=0.1)
