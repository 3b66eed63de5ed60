"""Waterfalls between simulated sizes, and mutual information against independent integrals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy import integrate

from helpers.links import formula_table, waterfall
from rankcast.errors import ConfigError
from rankcast.link.bler import (
    ORDERS,
    BlerTable,
    Waterfall,
    effective_snr_db,
    mutual_information,
)
from rankcast.link.nr import Mcs, mcs_table

TRUTH = Waterfall(640, 3.2, 0.4)
every_order = pytest.mark.parametrize("order", ORDERS)


def as_file(table: BlerTable) -> dict[str, Any]:
    """Return what `BlerTable.from_plain` reads."""
    schemes = [
        {"bits_per_symbol": order, "rate_x1024": rate, "waterfalls": [asdict(c) for c in curves]}
        for (order, rate), curves in table.waterfalls.items()
    ]
    return {"source": table.source, "schemes": schemes}


def test_snr_at_a_loss() -> None:
    # A tenth is lost 1.2816 widths above the middle.
    assert TRUTH.snr_db_at(0.1) == pytest.approx(3.2 + 0.4 * 1.2815516)
    assert TRUTH.snr_db_at(0.5) == pytest.approx(3.2)


def test_sizes_between_are_interpolated_in_one_over_the_root() -> None:
    mcs = mcs_table("64qam")[10]
    # The formula is linear in 1/√k, which interpolation keeps.
    curve, expected = formula_table().waterfall(mcs, 1800), waterfall(mcs, 1800)
    assert curve.n_info_bits == 1800
    assert (curve.middle_db, curve.width_db) == pytest.approx(
        (expected.middle_db, expected.width_db)
    )


def test_outside_the_simulated_sizes_the_nearest_holds() -> None:
    mcs, table = mcs_table("64qam")[10], formula_table()
    for size, nearest in ((24, 640), (10_000, 8448)):
        expected = waterfall(mcs, nearest)
        assert table.waterfall(mcs, size).middle_db == pytest.approx(expected.middle_db)
        assert table.waterfall(mcs, size).width_db == pytest.approx(expected.width_db)


def test_a_table_survives_a_file() -> None:
    table = formula_table()
    assert BlerTable.from_plain(json.loads(json.dumps(as_file(table)))) == table


def test_sizes_in_a_file_need_no_order() -> None:
    plain = as_file(formula_table())
    for scheme in plain["schemes"]:
        scheme["waterfalls"].reverse()
    assert BlerTable.from_plain(plain) == formula_table()


def test_a_scheme_that_was_not_simulated() -> None:
    with pytest.raises(ConfigError, match="rate 500/1024"):
        formula_table().waterfall(Mcs(0, 2, 500), 640)


def information_of_bit(zeros: tuple[float, ...], ones: tuple[float, ...], std: float) -> float:
    """Return I(b; y) = Σ_b ½ ∫ p(y|b) log2(p(y|b) / p(y)) dy, amplitudes equally probable."""

    def density(y: float, levels: tuple[float, ...]) -> float:
        each = [math.exp(-0.5 * ((y - x) / std) ** 2) for x in levels]
        return sum(each) / len(each) / (std * math.sqrt(2 * math.pi))

    def integrand(y: float) -> float:
        p = density(y, zeros), density(y, ones)
        mean = (p[0] + p[1]) / 2
        return sum(0.5 * q * math.log2(q / mean) for q in p if q > 0)

    ends = max(*zeros, *ones) + 9 * std
    return integrate.quad(integrand, -ends, ends, limit=500, points=sorted((*zeros, *ones)))[0]


@pytest.mark.parametrize("snr_db", [-7.1, 0.1, 4.9, 9.6])
def test_qpsk_is_twice_bpsk(snr_db: float) -> None:
    # Amplitudes ±1/√2 in noise of variance 1/(2·SNR).
    std = math.sqrt(0.5 / 10 ** (snr_db / 10))
    expected = 2 * information_of_bit((-math.sqrt(0.5),), (math.sqrt(0.5),), std)
    assert mutual_information(2, np.array(snr_db)) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("snr_db", [-7.1, 0.1, 4.9, 9.6, 14.9])
def test_16qam_by_integration(snr_db: float) -> None:
    # Amplitudes -3, -1, 1, 3 over √10 are labelled 00, 01, 11, 10.
    a, b = 1 / math.sqrt(10), 3 / math.sqrt(10)
    std = math.sqrt(0.5 / 10 ** (snr_db / 10))
    sign = information_of_bit((-b, -a), (a, b), std)
    size = information_of_bit((-b, b), (-a, a), std)
    expected = 2 * (sign + size)
    assert mutual_information(4, np.array(snr_db)) == pytest.approx(expected, abs=5e-4)


def test_half_rate_of_binary_input_needs_what_textbooks_say() -> None:
    # Eb/N0 = 0.187 dB; QPSK at rate 1/2 carries one bit, so that Es/N0 is the same.
    assert float(effective_snr_db(2, np.array(1.0))) == pytest.approx(0.187, abs=2e-3)


@every_order
def test_between_nothing_and_both_limits(order: int) -> None:
    snr_db = np.arange(-60.0, 80.0, 0.1)
    bits = mutual_information(order, snr_db)
    assert (bits > 0).all()
    assert (bits <= order).all()
    # Interpolation between points a quarter of a decibel apart errs by less than a part in 2,000.
    assert (bits <= np.log2(1 + 10 ** (snr_db / 10)) * (1 + 5e-4)).all()
    assert (np.diff(bits) >= 0).all()
    assert (np.diff(bits)[bits[1:] < order - 1e-6] > 0).all()
    assert bits[-1] == pytest.approx(order)


@every_order
def test_proportional_at_low_snr(order: int) -> None:
    low, lower = mutual_information(order, np.array([-30.0, -40.0]))
    assert low == pytest.approx(10 * lower)
    # The border of the tabulated range is no step.
    at, below = mutual_information(order, np.array([-20.0, -20.0 - 1e-9]))
    assert at == pytest.approx(below)


@every_order
def test_effective_snr_is_the_inverse(order: int) -> None:
    # Up to where a symbol is all but full.
    full_db = float(effective_snr_db(order, np.array(0.99 * order)))
    snr_db = np.linspace(-19.9, full_db, 200)
    back_db = effective_snr_db(order, mutual_information(order, snr_db))
    np.testing.assert_allclose(back_db, snr_db, atol=1e-6)


def test_effective_snr_is_clipped() -> None:
    low, high = effective_snr_db(4, np.array([0.0, 99.0]))
    assert low == -20.0
    assert 20.0 < high <= 40.0


@pytest.mark.parametrize("order", [0, 1, 3, 10])
def test_unknown_modulation(order: int) -> None:
    with pytest.raises(ConfigError, match="bits"):
        mutual_information(order, np.array(0.0))
    with pytest.raises(ConfigError, match="bits"):
        effective_snr_db(order, np.array(0.5))
