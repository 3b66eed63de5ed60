"""Beliefs whose gains are linear in the text, worked by hand and beside the plain ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.allocation import PROBLEM, budget, row_of, text
from rankcast.allocation.beliefs import BayesianUtility, LearnedUtility, drawn
from rankcast.allocation.saturating import make_utility
from rankcast.allocation.text_gains import TextGains
from rankcast.config.policy import StateName, UtilityConfig, UtilityForm
from rankcast.errors import CheckpointError, ConfigError
from rankcast.learner.synthetic import transformer_layout
from rankcast.records import FloatArray, IntArray, TextStats

LAYOUT = transformer_layout(n_layers=2, d_hidden=8, d_ffn=20, r_max=4)
FORMS: tuple[UtilityForm, ...] = ("additive", "saturating")
EASY, HARD = (2.0, 0.05), (3.0, 0.15)
"""Entropy [nats] and OOV rate of two domains: z is -1 and 1 in both parts."""


def of_text(form: UtilityForm, amplitude: float = 0.5, **settings: Any) -> UtilityConfig:
    return UtilityConfig(form=form, text_amplitude=amplitude, **settings)


def two_domains() -> TextStats:
    return TextStats(np.array([EASY[0], HARD[0]]), np.array([EASY[1], HARD[1]]))


def learn(utility: LearnedUtility, seed: int, words: TextStats | None = None) -> None:
    """Show a belief 24 losses, half of them in pairs, of texts that vary unless one is given."""
    rng = np.random.default_rng(seed)
    for paired in (False, True):
        ranks = rng.integers(0, LAYOUT.r_max + 1, (12, LAYOUT.n_projections))
        loss = 0.7 - 0.01 * ranks.sum(axis=1) + rng.normal(0.0, 0.03, 12)
        drawn = TextStats(rng.uniform(2.0, 3.0, 12), rng.uniform(0.05, 0.15, 12))
        reference = np.full(12, 0.2) if paired else None
        utility.update(ranks, loss, words or drawn, reference)


def test_two_domains_by_hand() -> None:
    # One projection of rank 1: the prior gain is 0.7 ± 1.4 and its slopes 0 ± 0.7 each. Rank 0
    # loses 0.9 more than full rank on hard text (z = 1, 1) and 0.1 more on easy (z = -1, -1). With
    # two equal slopes only their sum s ± √2·0.7 counts: m + s = 0.9 and m - s = 0.1, almost free
    # of noise, leave m = 0.5 and s = 0.4.
    config = of_text("additive", relative_std=2.0, paired_noise_std=1e-4)
    utility = BayesianUtility(row_of(1, 1), config)
    utility.update(
        np.zeros((2, 1), dtype=np.int64), np.array([0.1, 0.9]), two_domains(), np.zeros(2)
    )
    assert utility.mean_gains() == pytest.approx(np.array([[0.5]]), abs=1e-6)
    by_text = utility.mean_gains(two_domains())
    assert by_text == pytest.approx(np.array([[[0.1]], [[0.9]]]), abs=1e-6)
    assert utility._mean()[3:] == pytest.approx([0.5, 0.2, 0.2], abs=1e-6)


def test_the_best_plan_follows_the_text() -> None:
    # A component costs λ·η: 0.1 of 8 parameters over 8 bits is 3.2, and over 80 bits 0.32, between
    # what it gains on easy and on hard text.
    config = of_text("additive", relative_std=2.0, paired_noise_std=1e-4)
    utility = BayesianUtility(row_of(1, 1), config)
    nothing = np.zeros((2, 1), dtype=np.int64)
    utility.update(nothing, np.array([0.1, 0.9]), two_domains(), np.zeros(2))
    gains = utility.gains_at(PROBLEM, budget(80.0, 80.0), text=two_domains())
    assert (gains > 0.32).squeeze().tolist() == [False, True]


@pytest.mark.parametrize("form", FORMS)
def test_saturating_and_additive_gains_learn_opposite_domains(form: UtilityForm) -> None:
    # Projection 0 alone lowers the loss of easy text, and 1 alone that of hard text.
    config = of_text(form, 1.0, paired_noise_std=0.005)
    utility = make_utility(row_of(2, 1), config)
    ranks: IntArray = np.array([[a, b] for a in (0, 1) for b in (0, 1)] * 4)
    hard = np.repeat([False, True], 8)
    words = TextStats(np.where(hard, HARD[0], EASY[0]), np.where(hard, HARD[1], EASY[1]))
    missing = 0.5 * (1 - np.where(hard, ranks[:, 1], ranks[:, 0]))
    utility.update(ranks, 0.2 + missing, words, np.full(16, 0.2))
    easy_gains, hard_gains = utility.mean_gains(two_domains()).squeeze(axis=2)
    assert easy_gains[0] > 4 * easy_gains[1]
    assert hard_gains[1] > 4 * hard_gains[0]


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 1000))
def test_at_the_nominal_text_it_is_the_plain_belief(form: UtilityForm, seed: int) -> None:
    plain = make_utility(LAYOUT, UtilityConfig(form=form))
    textual = make_utility(LAYOUT, of_text(form))
    for utility in (plain, textual):
        learn(utility, seed, text(12))
    expected = plain.mean_gains()
    assert textual.mean_gains(text(1))[0] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert textual.mean_gains() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@given(seed=st.integers(0, 1000), entropy=st.floats(1.5, 3.5), oov=st.floats(0.0, 0.2))
def test_at_one_text_it_is_a_plain_belief_of_a_wider_prior(
    seed: int, entropy: float, oov: float
) -> None:
    # Var(g_0 + g_H·z_H + g_ρ·z_ρ) = (1 + a²·|z|²)·Var(g_0), and nothing else is different.
    words = text(12, entropy, oov)
    z = TextGains(0.5).normalised(words)[0]
    wider = float(np.sqrt(1.0 + 0.25 * z @ z))
    plain = BayesianUtility(LAYOUT, UtilityConfig(relative_std=wider))
    textual = BayesianUtility(LAYOUT, of_text("additive"))
    for utility in (plain, textual):
        learn(utility, seed, words)
    one = TextStats(words.lexical_entropy[:1], words.oov_rate[:1])
    assert textual.mean_gains(one)[0] == pytest.approx(plain.mean_gains(), rel=1e-6, abs=1e-9)


def test_draws_for_a_text_have_the_moments_of_the_belief() -> None:
    utility = BayesianUtility(LAYOUT, of_text("additive"))
    learn(utility, 0)
    covariance = np.linalg.inv(utility._precision)[3:, 3:]
    z = utility._text_gains.normalised(two_domains())[1]
    k = len(covariance) // 3
    by_text = np.concatenate([np.eye(k), z[0] * np.eye(k), z[1] * np.eye(k)], axis=1)
    rng, size = np.random.default_rng(0), 20_000
    beliefs = drawn(utility._mean(), utility._cholesky(), rng, size, 1.0)
    gains = utility._text_gains.of_texts(beliefs[:, 3:], text(size, *HARD))
    expected = np.sqrt(np.diag(by_text @ covariance @ by_text.T))
    assert gains.std(axis=0) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("hidden", "moves"),
    [((), (True, True)), (("entropy",), (False, True)), (("oov", "snr"), (True, False))],
)
def test_gains_do_not_depend_on_what_is_hidden(
    form: UtilityForm, hidden: tuple[StateName, ...], moves: tuple[bool, bool]
) -> None:
    utility = make_utility(LAYOUT, of_text(form), hidden=hidden)
    learn(utility, 3)
    nominal = utility.mean_gains(text(1))
    changed = (utility.mean_gains(text(1, entropy=3.0)), utility.mean_gains(text(1, oov=0.15)))
    assert tuple(not np.array_equal(gains, nominal) for gains in changed) == moves


@pytest.mark.parametrize("form", FORMS)
def test_with_the_whole_text_hidden_or_no_amplitude_it_is_the_plain_belief_to_the_bit(
    form: UtilityForm,
) -> None:
    plain = make_utility(LAYOUT, UtilityConfig(form=form))
    hidden = make_utility(LAYOUT, of_text(form), hidden=("entropy", "oov"))
    link, words = budget(100.0, 1000.0), two_domains()
    draws: list[FloatArray] = []
    for utility in (plain, hidden):
        learn(utility, 5)
        draws.append(utility.gains_at(PROBLEM, link, np.random.default_rng(0), text=words))
    assert np.array_equal(draws[0], draws[1])
    assert np.array_equal(plain.mean_gains(words), np.repeat(plain.mean_gains()[None], 2, axis=0))
    before, after = plain.state_dict(), hidden.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampled", [False, True])
def test_texts_are_judged_one_by_one(form: UtilityForm, sampled: bool) -> None:
    utility = make_utility(LAYOUT, of_text(form))
    learn(utility, 7)
    link = budget(300.0, 300.0)

    def gains(words: TextStats) -> FloatArray:
        rng = np.random.default_rng(1) if sampled else None
        return utility.gains_at(PROBLEM, link, rng, text=words)

    both, easy = gains(two_domains()), gains(text(2, *EASY))
    hard = gains(text(2, *HARD))
    assert both == pytest.approx(np.stack([easy[0], hard[1]]))
    assert gains(text(1, *EASY)) == pytest.approx(easy)  # one text for all links
    assert np.abs(easy - hard).max() > 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_it_goes_on_from_what_was_saved(form: UtilityForm) -> None:
    first, second = (make_utility(LAYOUT, of_text(form)) for _ in range(2))
    learn(first, 11)
    first.mean_gains()
    second.load_state_dict(first.state_dict())
    for utility in (first, second):
        learn(utility, 12)
    assert np.array_equal(first.mean_gains(two_domains()), second.mean_gains(two_domains()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hidden", [("entropy",), ("entropy", "oov")])
def test_a_state_of_other_parts_of_the_text_is_refused(
    form: UtilityForm, hidden: tuple[StateName, ...]
) -> None:
    state = make_utility(LAYOUT, of_text(form)).state_dict()
    with pytest.raises(CheckpointError):
        make_utility(LAYOUT, of_text(form), hidden=hidden).load_state_dict(state)


@given(entropy=st.floats(0.0, 20.0), oov=st.floats(0.0, 1.0))
def test_z_stays_near_the_texts_that_lines_are_fitted_to(entropy: float, oov: float) -> None:
    z = TextGains(1.0).normalised(text(3, entropy, oov))
    assert z.shape == (3, 2)
    assert (np.abs(z) <= 2.0).all()


@pytest.mark.parametrize("amplitude", [-0.1, float("inf"), float("nan")])
def test_an_amplitude_that_is_none_is_refused(amplitude: float) -> None:
    with pytest.raises(ConfigError, match="text_amplitude"):
        UtilityConfig(text_amplitude=amplitude)
