"""What holds for every SNR, fading, rank vector and deadline."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rankcast.link.capacity import (
    Awgn,
    Ergodic,
    Fading,
    Nakagami,
    Outage,
    RateModel,
    Rayleigh,
    Rician,
)
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import BlockFadingSnr, GaussMarkovSnr, SnrState
from rankcast.records import LinkState

# The first Rician quantile imports scipy.stats, which takes longer than an example may.
SIXTY = settings(max_examples=60)

fadings = st.one_of(
    st.just(Rayleigh()),
    st.floats(0.0, 1e3).map(Rician),
    st.floats(0.5, 1e3).map(Nakagami),
    st.integers(1, 70).map(Nakagami),
)
models = st.one_of(
    st.just(Awgn()),
    fadings.map(Ergodic),
    st.builds(Outage, fadings, st.floats(1e-6, 1.0 - 1e-6)),
)
snrs_db = st.floats(-100.0, 100.0)
positive = st.floats(1e-3, 1e12)


@st.composite
def ranks_and_counts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 12))
    ranks = draw(st.lists(st.integers(0, 64), min_size=n, max_size=n))
    counts = draw(st.lists(st.integers(1, 100_000), min_size=n, max_size=n))
    return np.array(ranks), np.array(counts)


@SIXTY
@given(models, st.lists(snrs_db, min_size=1, max_size=8))
def test_rate_is_monotone_non_negative_and_elementwise(model: RateModel, snr: list[float]) -> None:
    snr_db = np.sort(np.array(snr))
    rate = model.spectral_efficiency(snr_db)
    assert np.isfinite(rate).all()
    assert (rate >= 0).all()
    # Neighbouring floats may round either way.
    assert (np.diff(rate) >= -1e-13 * rate[1:]).all()
    alone = [model.spectral_efficiency(np.array([x]))[0] for x in snr_db]
    assert rate.tolist() == alone


@SIXTY
@given(fadings, snrs_db)
def test_fading_never_helps_on_average(fading: Fading, snr: float) -> None:
    snr_db = np.array([snr])
    ergodic = Ergodic(fading).spectral_efficiency(snr_db)
    # Jensen; near equality the two are computed differently and agree to rounding.
    assert ergodic <= Awgn().spectral_efficiency(snr_db) * (1.0 + 1e-12)


@SIXTY
@given(st.floats(0.5, 50.0), st.floats(0.01, 50.0), st.floats(-30.0, 50.0))
def test_shallower_nakagami_fading_carries_more(m: float, more: float, snr: float) -> None:
    deep, shallow = (
        Ergodic(Nakagami(shape)).spectral_efficiency(np.array([snr])) for shape in (m, m + more)
    )
    assert deep <= shallow * (1.0 + 1e-12)


@SIXTY
@given(fadings, st.floats(1e-6, 0.999), st.floats(1e-6, 0.999), snrs_db)
def test_accepting_more_outage_promises_more(
    fading: Fading, first: float, second: float, snr: float
) -> None:
    low, high = sorted((first, second))
    careful, bold = (
        Outage(fading, epsilon).spectral_efficiency(np.array([snr])) for epsilon in (low, high)
    )
    assert careful <= bold * (1.0 + 1e-9)


@SIXTY
@given(fadings, st.floats(1e-6, 1.0 - 1e-6))
def test_quantile_inverts_the_density(fading: Fading, probability: float) -> None:
    """The slope of the quantile function is one over the density."""
    step = 1e-4 * min(probability, 1.0 - probability)
    below, at, above = fading.ppf(np.array([probability - step, probability, probability + step]))
    assert below < at < above
    density = float(fading.pdf(np.array([at]))[0])
    # The central difference is off by the square of the relative step, the quantile by rounding.
    assert math.isclose((above - below) * density, 2.0 * step, rel_tol=1e-4)


@SIXTY
@given(ranks_and_counts(), st.floats(-20.0, 30.0), positive, positive, st.floats(0.5, 64.0))
def test_cost_meets_one_exactly_when_the_payload_fits(
    drawn: tuple[np.ndarray, np.ndarray],
    snr: float,
    bandwidth: float,
    deadline: float,
    bits_per_param: float,
) -> None:
    ranks, counts = drawn
    units = np.repeat(counts[:, None], ranks.max(initial=0) + 1, axis=1)
    costs = LinkCostModel(units, bits_per_param, Awgn())
    link = LinkState(np.array([snr]), np.array([bandwidth]), np.array([deadline]))
    plan = costs.plan(ranks, link)
    assert plan.payload_bits == (ranks @ counts) * bits_per_param
    assert (plan.link_cost <= 1.0) == (plan.payload_bits <= costs.budget_bits(link)[0])
    np.testing.assert_allclose(plan.link_cost, plan.transmission_time_s / deadline, rtol=1e-12)


@SIXTY
@given(ranks_and_counts(), st.integers(0, 11))
def test_payload_is_linear_in_every_rank(drawn: tuple[np.ndarray, np.ndarray], index: int) -> None:
    ranks, counts = drawn
    index %= len(ranks)
    more = ranks.copy()
    more[index] += 3
    costs = LinkCostModel(np.repeat(counts[:, None], more.max(), axis=1), 1.0, Awgn())
    added = costs.payload_units(more) - costs.payload_units(ranks)
    assert added == 3 * counts[index]


@SIXTY
@given(models, ranks_and_counts(), st.floats(-20.0, 30.0), positive, st.floats(1e-3, 1e3))
def test_batch_plan_and_price_list_agree(
    model: RateModel,
    drawn: tuple[np.ndarray, np.ndarray],
    snr: float,
    bandwidth: float,
    deadline: float,
) -> None:
    ranks, counts = drawn
    units = np.repeat(counts[:, None], ranks.max(initial=0) + 1, axis=1)
    cost = LinkCostModel(units, 16, model)
    link = LinkState(np.array([snr]), np.array([bandwidth]), np.array([deadline]))
    plan = cost.plan(ranks, link)
    assert plan.link_cost == cost.link_cost(ranks[None], link)[0]
    assert plan.payload_bits == cost.component_bits[:, 0] @ ranks
    assert plan.arrives == (plan.payload_bits <= cost.budget_bits(link)[0])
    np.testing.assert_allclose(
        plan.link_cost, cost.component_costs(link)[0, :, 0] @ ranks, rtol=1e-12
    )


@SIXTY
@given(st.floats(-20.0, 20.0), st.floats(0.0, 10.0), st.floats(0.0, 1.0), st.integers(0, 2**32))
def test_gauss_markov_moves_no_further_than_its_noise(
    mean: float, std: float, correlation: float, seed: int
) -> None:
    """With the same noise, two states draw together by exactly the correlation."""
    process = GaussMarkovSnr(mean, std, correlation)
    low, high = (
        process.advance(
            SnrState(np.array([start]), np.array([0])), np.random.default_rng(seed)
        ).snr_db[0]
        for start in (-10.0, 10.0)
    )
    assert math.isclose(high - low, 20.0 * correlation, abs_tol=1e-9)


@SIXTY
@given(fadings, st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32))
def test_block_fading_changes_only_when_a_block_ends(
    fading: Fading, block_length: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    process = BlockFadingSnr(0.0, fading, block_length)
    state = process.start(rng, size)
    for _ in range(2 * block_length + 1):
        following = process.advance(state, rng)
        held = following.age > 0
        assert ((following.age >= 0) & (following.age < block_length)).all()
        assert (following.age[held] == state.age[held] + 1).all()
        assert (state.age[~held] == block_length - 1).all()
        assert np.array_equal(following.snr_db[held], state.snr_db[held])
        state = following
