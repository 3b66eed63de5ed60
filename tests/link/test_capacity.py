"""Spectral efficiency against published values, scipy.integrate.quad and limits."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from rankcast.errors import ConfigError, LinkError
from rankcast.link.capacity import (
    Awgn,
    Ergodic,
    Nakagami,
    Outage,
    RateModel,
    Rayleigh,
    Rician,
    TruncatedShannon,
    rate_bps,
)
from rankcast.link.rate_models import RATE_MODELS, parameters_of, rate_model
from rankcast.records import LinkState

SNR_DB = np.array([-5.0, 5.0, 15.0])
WIDE_SNR_DB = np.array([-40.0, -10.0, 0.0, 10.0, 30.0, 60.0])
FADINGS = [
    Rayleigh(),
    Rician(0.0),
    Rician(0.3),
    Rician(4.0),
    Rician(200.0),
    Nakagami(0.5),
    Nakagami(1.0),
    Nakagami(2.7),
    Nakagami(30.0),
]
NOT_NUMBERS = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Awgn(), [0.3964, 2.0574, 5.0278]),
        (Ergodic(Rayleigh()), [0.3621, 1.7160, 4.3302]),
        (Ergodic(Nakagami(2)), [0.3777, 1.8678, 4.6759]),
        (Ergodic(Rician(4.0)), [0.3823, 1.9079, 4.7458]),
        (Outage(Rayleigh(), 0.1), [0.0473, 0.4149, 2.1150]),
    ],
)
def test_known_values(model: RateModel, expected: list[float]) -> None:
    assert model.spectral_efficiency(SNR_DB) == pytest.approx(expected, abs=5e-5)


def test_awgn_by_hand() -> None:
    # 10·log10(3) dB is a ratio of 3, and log2(1 + 3) = 2.
    snr_db = np.array([10.0 * math.log10(3.0), 10.0 * math.log10(7.0)])
    assert Awgn().spectral_efficiency(snr_db) == pytest.approx([2.0, 3.0], rel=1e-14)


@pytest.mark.parametrize("fading", FADINGS, ids=str)
def test_ergodic_agrees_with_adaptive_integration(fading: Rayleigh | Rician | Nakagami) -> None:
    """The reference integrates over the quantile scale of ln|h|², split at the mean."""

    def integrand(log_gain: float, snr: float) -> float:
        gain = math.exp(log_gain)
        return float(fading.pdf(np.array(gain))) * gain * math.log1p(snr * gain) / math.log(2.0)

    lowest, highest = np.log(fading.ppf(np.array([1e-14, 1.0 - 1e-14])))
    for snr_db, rate in zip(SNR_DB, Ergodic(fading).spectral_efficiency(SNR_DB), strict=True):
        snr = 10.0 ** (snr_db / 10.0)
        expected = sum(
            integrate.quad(integrand, lo, hi, args=(snr,), epsabs=1e-13, epsrel=1e-12, limit=200)[0]
            for lo, hi in ((lowest, -3.0), (-3.0, 0.0), (0.0, highest))
            if lo < hi
        )
        assert rate == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("m", [1.0, 2.0, 8.0, 64.0])
def test_closed_form_is_continuous_with_quadrature(m: float) -> None:
    # dC/dm is below 0.5 bit/s/Hz, so a shift of 1e-9 in m moves the rate by less than 1e-9.
    closed = Ergodic(Nakagami(m)).spectral_efficiency(WIDE_SNR_DB)
    integrated = Ergodic(Nakagami(m + 1e-9)).spectral_efficiency(WIDE_SNR_DB)
    assert integrated == pytest.approx(closed, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("same", [Rician(0.0), Nakagami(1.0)])
def test_special_cases_are_rayleigh(same: Rician | Nakagami) -> None:
    rayleigh = Ergodic(Rayleigh()).spectral_efficiency(WIDE_SNR_DB)
    assert Ergodic(same).spectral_efficiency(WIDE_SNR_DB) == pytest.approx(rayleigh, rel=1e-12)
    outage = Outage(Rayleigh(), 0.02).spectral_efficiency(WIDE_SNR_DB)
    assert Outage(same, 0.02).spectral_efficiency(WIDE_SNR_DB) == pytest.approx(outage, rel=1e-10)


@pytest.mark.parametrize("calm", [Rician(1e5), Nakagami(1e5), Nakagami(1e5 + 0.5)])
def test_vanishing_fading_is_awgn(calm: Rician | Nakagami) -> None:
    # Jensen's gap is about Var(|h|²)/2 relative at most, with a variance of at most 2e-5.
    awgn = Awgn().spectral_efficiency(WIDE_SNR_DB)
    assert Ergodic(calm).spectral_efficiency(WIDE_SNR_DB) == pytest.approx(awgn, rel=2e-5)


def test_low_snr_keeps_the_mean_gain() -> None:
    # C → g/ln 2 as g → 0, because E|h|² = 1.
    snr_db = np.array([-40.0, -90.0, -300.0])
    expected = 10.0 ** (snr_db / 10.0) / math.log(2.0)
    for model in (Awgn(), *(Ergodic(fading) for fading in FADINGS)):
        # At -40 dB the second-order term is E|h|⁴·g/2, at most 1.5e-4 for m = 0.5.
        assert model.spectral_efficiency(snr_db) == pytest.approx(expected, rel=1.6e-4)


def test_high_snr_loses_eulers_constant_to_rayleigh_fading() -> None:
    # C → log2(g) - γ/ln 2 as g → ∞.
    rate = Ergodic(Rayleigh()).spectral_efficiency(np.array([200.0]))
    assert rate == pytest.approx([20.0 * math.log2(10.0) - np.euler_gamma / math.log(2.0)])


def test_outage_by_hand() -> None:
    # Half of all exponential gains are below ln 2; at SNR 1/ln 2 that is log2(1 + 1) = 1.
    snr_db = np.array([-10.0 * math.log10(math.log(2.0))])
    assert Outage(Rayleigh(), 0.5).spectral_efficiency(snr_db) == pytest.approx([1.0])


@pytest.mark.parametrize("fading", FADINGS, ids=str)
def test_outage_is_missed_as_often_as_promised(fading: Rayleigh | Rician | Nakagami) -> None:
    epsilon, n = 0.1, 20_000
    promised = Outage(fading, epsilon).spectral_efficiency(np.array([10.0]))
    gain_db = 10.0 * np.log10(fading.sample(np.random.default_rng(0), n))
    missed = (Awgn().spectral_efficiency(10.0 + gain_db) < promised).mean()
    assert missed == pytest.approx(epsilon, abs=5.0 * math.sqrt(epsilon * (1 - epsilon) / n))


@pytest.mark.parametrize(
    ("fading", "reference"),
    [
        (Rayleigh(), stats.expon()),
        (Rician(3.0), stats.ncx2(2, 6.0, scale=1.0 / 8.0)),
        (Nakagami(0.7), stats.gamma(0.7, scale=1.0 / 0.7)),
        (Nakagami(4.0), stats.gamma(4.0, scale=1.0 / 4.0)),
    ],
    ids=["rayleigh", "rician-3", "nakagami-0.7", "nakagami-4"],
)
def test_distributions_agree_with_scipy(
    fading: Rayleigh | Rician | Nakagami,
    reference: stats._distn_infrastructure.rv_frozen,
) -> None:
    gain = np.array([1e-3, 0.3, 1.0, 4.0])
    probability = np.array([1e-6, 0.1, 0.5, 0.99])
    assert fading.pdf(gain) == pytest.approx(reference.pdf(gain), rel=1e-9)
    assert fading.ppf(probability) == pytest.approx(reference.ppf(probability), rel=1e-9)
    draws = fading.sample(np.random.default_rng(1), 5_000)
    # A Kolmogorov-Smirnov p-value below 1e-6 would not be chance.
    assert stats.kstest(draws, reference.cdf).pvalue > 1e-6


@pytest.mark.parametrize("fading", FADINGS, ids=str)
def test_gains_have_unit_mean(fading: Rayleigh | Rician | Nakagami) -> None:
    n = 20_000
    draws = fading.sample(np.random.default_rng(2), n)
    assert draws.mean() == pytest.approx(1.0, abs=5.0 * draws.std() / math.sqrt(n))


def test_shapes_are_kept() -> None:
    for name in RATE_MODELS:
        model = _build(name)
        for shape in ((), (3,), (2, 3), (0,)):
            assert model.spectral_efficiency(np.zeros(shape)).shape == shape


def test_rate_scales_with_bandwidth() -> None:
    link = LinkState(SNR_DB, np.array([1e6, 2e6, 1e8]), np.array([1.0]))
    expected = np.array([1e6, 2e6, 1e8]) * Awgn().spectral_efficiency(SNR_DB)
    assert rate_bps(Awgn(), link) == pytest.approx(expected)


@pytest.mark.parametrize("k_factor", [-0.1, *NOT_NUMBERS])
def test_bad_k_factor(k_factor: float) -> None:
    with pytest.raises(LinkError, match="K-factor"):
        Rician(k_factor)


@pytest.mark.parametrize("m", [0.49, 0.0, -1.0, *NOT_NUMBERS])
def test_bad_shape(m: float) -> None:
    with pytest.raises(LinkError, match="Nakagami"):
        Nakagami(m)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, 1.5, *NOT_NUMBERS])
def test_bad_outage_probability(epsilon: float) -> None:
    with pytest.raises(LinkError, match="outage probability"):
        Outage(Rayleigh(), epsilon)


@pytest.mark.parametrize("snr_db", [*NOT_NUMBERS, 1e4, -1e4])
@pytest.mark.parametrize("name", RATE_MODELS)
def test_bad_snr(name: str, snr_db: float) -> None:
    with pytest.raises(LinkError, match="SNR"):
        _build(name).spectral_efficiency(np.array([0.0, snr_db]))


def test_every_name_builds_what_it_says() -> None:
    assert rate_model("awgn") == Awgn()
    assert rate_model("rayleigh_ergodic") == Ergodic(Rayleigh())
    assert rate_model("rician_ergodic", k_factor=4.0) == Ergodic(Rician(4.0))
    assert rate_model("nakagami_ergodic", m=2) == Ergodic(Nakagami(2))
    assert rate_model("rayleigh_outage", epsilon=0.1) == Outage(Rayleigh(), 0.1)
    assert rate_model("rician_outage", k_factor=1.0, epsilon=0.1) == Outage(Rician(1.0), 0.1)
    assert rate_model("nakagami_outage", m=2.0, epsilon=0.2) == Outage(Nakagami(2.0), 0.2)
    assert all(isinstance(_build(name), RateModel) for name in RATE_MODELS)


def test_truncated_shannon_by_hand() -> None:
    model = TruncatedShannon(efficiency=0.5, gap_db=10.0 * math.log10(2.0), largest=1.5)
    # log2(1 + 6/2) = 2 at a linear SNR of 6; above 1 + 14/2 = 8 the limit of 1.5 holds.
    snr_db = 10.0 * np.log10([6.0, 14.0, 1000.0])
    assert model.spectral_efficiency(snr_db) == pytest.approx([1.0, 1.5, 1.5])


@pytest.mark.parametrize(
    "params", [(0.0, 0.0, 4.0), (1.1, 0.0, 4.0), (0.5, -1.0, 4.0), (0.5, 0.0, 0.0)]
)
def test_bad_truncated_shannon(params: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="truncated Shannon"):
        TruncatedShannon(*params)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'rayleigh_ergodic'"):
        rate_model("rayleigh_ergodc")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("awgn", {"m": 2.0}, "no parameters"),
        ("rician_ergodic", {}, "needs k_factor"),
        ("rayleigh_outage", {}, "needs epsilon"),
        ("rician_ergodic", {"k_factor": 1.0, "m": 2.0}, "not 'm'"),
        ("nakagami_ergodic", {"m": "2"}, "must be a number"),
        ("nakagami_ergodic", {"m": True}, "must be a number"),
    ],
)
def test_wrong_parameters(name: str, params: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rate_model(name, **params)


def _build(name: str) -> RateModel:
    params = {
        "k_factor": 2.0, "m": 1.5, "epsilon": 0.1, "efficiency": 0.6, "gap_db": 1.0,
        "largest": 4.4, "bandwidth_hz": 5e6, "impl_loss_db": 2.0,
    }  # fmt: skip
    return rate_model(name, **{wanted: params[wanted] for wanted in parameters_of(name)})
