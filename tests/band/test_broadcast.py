"""One file for many devices: rates, the rule, and plans, by hand and against every other plan."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.band.broadcast import Audience, Method, audience_of, best_plan
from rankcast.band.ladder import Ladder
from rankcast.errors import ConfigError, LinkError
from rankcast.link.capacity import Awgn, Rayleigh
from rankcast.records import FloatArray

METHODS: tuple[Method, ...] = ("broadcast", "unicast", "mixed")
# The better device gets 8 or 16 bit/s, each in half of the slots; the weaker one 1, 2 or 9 bit/s,
# each in a third.
TWO = np.array([[8.0, 8.0, 8.0, 16.0, 16.0, 16.0], [1.0, 1.0, 2.0, 2.0, 9.0, 9.0]])


def rates(mean_snr_db: list[float], n_values: int = 64) -> FloatArray:
    """Return (D, Q) Rayleigh rates [bit/s], best first."""
    gain_db = 10.0 * np.log10(Rayleigh().ppf((np.arange(n_values) + 0.5) / n_values))
    snr_db = np.sort(np.array(mean_snr_db))[::-1]
    return 1e3 * Awgn().spectral_efficiency(snr_db[:, None] + gain_db)


def audience(unicast: list[float], broadcast: list[float]) -> Audience:
    return Audience(np.array(unicast), np.array(broadcast), np.array(broadcast))


def test_a_broadcast_goes_at_the_rate_that_brings_most() -> None:
    got = audience_of(TWO, overhead=0.0)
    # Better: 8 always, or 16 half of the time, which is as much; the lower rate comes first.
    # Weaker: 1 always, 2 in 2/3, or 9 in 1/3 of the slots: 1, 4/3 and 3 bit/s.
    np.testing.assert_allclose(got.broadcast_bps, [8.0, 3.0])
    np.testing.assert_allclose(got.sent_bps, [8.0, 9.0])
    np.testing.assert_allclose(got.unicast_bps, [12.0, 4.0])
    # The erasure code takes its part of the broadcast alone.
    coded = audience_of(TWO, overhead=0.25)
    np.testing.assert_allclose(coded.broadcast_bps, [6.4, 2.4])
    np.testing.assert_allclose(coded.unicast_bps, [12.0, 4.0])


def test_unicast_in_the_best_of_two_slots() -> None:
    got = audience_of(TWO, choices=2)
    # The best of two is 8 in 1/4, else 16; and 1 in 1/9, 2 in 3/9, 9 in 5/9.
    np.testing.assert_allclose(got.unicast_bps, [14.0, (1 + 6 + 45) / 9])


def test_few_slots_are_counted_on_as_often_as_is_sure() -> None:
    # Of two slots a rate that comes through in 1/3 comes through in none with 4/9, in 2/3 with 1/9.
    sure = audience_of(TWO, overhead=0.0, n_slots=2, confidence=0.5)
    # At 9 bit/s at least one slot: probability 5/9, so 4.5; at 2 bit/s one with 8/9, two with 4/9.
    assert (sure.broadcast_bps[1], sure.sent_bps[1]) == (4.5, 9.0)
    surer = audience_of(TWO, overhead=0.0, n_slots=2, confidence=0.6)
    # None of 9 is sure by then; 2 bit/s bring 1 for sure, and so does 1, which is the lower rate.
    assert (surer.broadcast_bps[1], surer.sent_bps[1]) == (1.0, 1.0)
    many = audience_of(TWO, overhead=0.0, n_slots=10**6, confidence=0.9)
    np.testing.assert_allclose(many.broadcast_bps, [8.0, 3.0], rtol=0.01)


def test_the_rule_by_hand() -> None:
    # A broadcast takes 1/2 s for a bit. Unicast takes 1/8 + 1/4 = 3/8 s, and with a third
    # device like the weakest 5/8 s.
    two, three = audience([8.0, 4.0], [4.0, 2.0]), audience([8.0, 4.0, 4.0], [4.0, 2.0, 2.0])
    assert (two.listeners, two.needed, two.pays) == (1.5, 2.0, False)
    assert (three.listeners, three.needed, three.pays) == (2.5, 2.0, True)
    np.testing.assert_allclose(two.seconds_per_bit("unicast"), [0, 1 / 8, 3 / 8])
    np.testing.assert_allclose(two.seconds_per_bit("broadcast"), [0, 1 / 4, 1 / 2])


def test_a_mixture_sends_to_the_good_ones_at_once() -> None:
    # Four devices at 8 alone, 4 at once; one at 1 alone, 1/2 at once.
    mixed = audience([8.0] * 4 + [1.0], [4.0] * 4 + [0.5])
    # 1 device: alone, 1/8. 2 to 4: at once, 1/4. The fifth: 1 more alone, instead of 2 for all.
    np.testing.assert_allclose(
        mixed.seconds_per_bit("mixed"), [0, 1 / 8, 1 / 4, 1 / 4, 1 / 4, 5 / 4]
    )
    assert mixed.heard_by("mixed").tolist() == [0, 0, 0, 3, 4, 4]
    assert mixed.heard_by("broadcast").tolist() == [0, 1, 2, 3, 4, 5]
    assert mixed.heard_by("unicast").tolist() == [0] * 6


def test_three_devices_of_low_snr_are_enough() -> None:
    # Rayleigh at low SNR: u_w/g_w is max of x·exp(-x), so e: 2 devices do not pay, 3 do.
    low = [-30.0]
    assert audience_of(rates(low, 4096), overhead=0.0).needed == pytest.approx(np.e, rel=1e-3)
    assert not audience_of(rates(low * 2), overhead=0.0).pays
    assert audience_of(rates(low * 3), overhead=0.0).pays


devices = st.lists(st.floats(-15, 25), min_size=1, max_size=8)


@given(devices)
def test_properties_without_fading_and_overhead_a_broadcast_always_pays(snr: list[float]) -> None:
    one_value = rates(snr, 1)
    got = audience_of(one_value, overhead=0.0)
    assert got.needed == pytest.approx(1.0)
    assert got.listeners >= 1.0
    np.testing.assert_allclose(got.seconds_per_bit("mixed")[-1], 1 / one_value[-1, 0])


@given(devices, st.floats(0, 1), st.integers(1, 5))
def test_properties_of_audiences(snr: list[float], overhead: float, choices: int) -> None:
    got = audience_of(rates(snr), overhead, choices)
    # Markov: no fixed rate brings more to one device than following its fading.
    assert (got.broadcast_bps * (1 + overhead) <= got.unicast_bps * (1 + 1e-9)).all()
    seconds = {m: got.seconds_per_bit(m) for m in METHODS}
    for other in ("broadcast", "unicast"):
        assert (seconds["mixed"] <= seconds[other] * (1 + 1e-9)).all()
    assert got.pays == (seconds["broadcast"][-1] <= seconds["unicast"][-1]) or np.isclose(
        seconds["broadcast"][-1], seconds["unicast"][-1]
    )
    # What the mixture costs is what its parts cost.
    m, n = len(snr), got.heard_by("mixed")[-1]
    alone = seconds["unicast"][m] - seconds["unicast"][n]
    assert seconds["mixed"][m] == pytest.approx(seconds["broadcast"][n] + alone)
    # One device more never makes it cheaper.
    assert all((np.diff(x) >= -1e-12 * x[-1]).all() for x in seconds.values())


def test_a_plan_by_hand() -> None:
    ladder = Ladder(np.array([0.0, 10.0, 30.0]), np.array([0.0, 3.0, 4.0]))
    # A bit takes 1 s to the best device, 2 s to both. In 40 s: chunk 1 to both (20 s, worth 6) and
    # chunk 2 to the better one (20 s, worth 1).
    plan = best_plan(ladder, np.array([0.0, 1.0, 2.0]), 40.0)
    assert plan.receivers.tolist() == [2, 1]
    assert plan.airtime_s.tolist() == [20.0, 20.0]
    assert plan.worth == 7.0
    # With 60 s everything arrives; with 9 s nothing does.
    assert best_plan(ladder, np.array([0.0, 1.0, 2.0]), 60.0).receivers.tolist() == [2, 2]
    nothing = best_plan(ladder, np.array([0.0, 1.0, 2.0]), 9.0)
    assert (nothing.receivers.tolist(), nothing.worth) == ([0, 0], 0.0)


ladders = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4).map(
    lambda steps: Ladder(*(np.cumsum([0, *x]).astype(float) for x in zip(*steps, strict=True)))
)


@given(ladders, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 200))
def test_properties_of_plans_none_is_worth_more(
    ladder: Ladder, steps: list[int], airtime_s: int
) -> None:
    seconds = np.cumsum([0, *steps]).astype(float)
    plan = best_plan(ladder, seconds, float(airtime_s))
    bits, gain = np.diff(ladder.prefix_bits), np.diff(ladder.worth)
    everyone = itertools.product(range(len(seconds)), repeat=ladder.n_chunks)
    nested = np.array([x for x in everyone if list(x) == sorted(x, reverse=True)])
    fits = seconds[nested] @ bits <= airtime_s
    assert plan.worth == (nested @ gain)[fits].max()
    assert plan.worth == gain @ plan.receivers
    assert (np.diff(plan.receivers) <= 0).all()
    assert plan.airtime_s.tolist() == (seconds[plan.receivers] * bits).tolist()
    assert plan.airtime_s.sum() <= airtime_s


@given(devices, st.floats(0.01, 60))
def test_properties_of_methods_a_mixture_delivers_at_least_as_much(
    snr: list[float], airtime_s: float
) -> None:
    ladder = Ladder(np.array([0.0, 2e3, 5e3, 9e3]), np.array([0.0, 5.0, 8.0, 9.0]))
    got = audience_of(rates(snr))
    worth = {m: best_plan(ladder, got.seconds_per_bit(m), airtime_s).worth for m in METHODS}
    assert worth["mixed"] >= max(worth.values()) - 1e-9


def test_what_makes_no_sense_is_refused() -> None:
    ladder = Ladder(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    for airtime_s in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="number of seconds"):
            best_plan(ladder, np.array([0.0, 1.0]), airtime_s)
    wrong: tuple[dict[str, Any], ...] = (
        {"overhead": -0.1},
        {"overhead": np.nan},
        {"choices": 0},
        {"n_slots": 0},
        {"confidence": 1.0},
        {"confidence": 0.0},
    )
    for options in wrong:
        with pytest.raises(ConfigError, match="Overhead is at least 0"):
            audience_of(TWO, **options)
    with pytest.raises(LinkError, match="best to the weakest"):
        audience_of(TWO[::-1])
    with pytest.raises(LinkError, match="positive"):
        audience_of(np.zeros((2, 3)))
    with pytest.raises(LinkError, match="positive"):
        audience_of(np.zeros((0, 3)))
    with pytest.raises(ConfigError, match="did you mean 'mixed'"):
        audience_of(TWO).seconds_per_bit("mixd")  # pyright: ignore[reportArgumentType]
