"""Waterfalls: fits to counts that were drawn from a known one, interpolation, and bad input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import special

from link_data import formula_table, waterfall
from rankcast.errors import ConfigError, LinkError
from rankcast.link.bler import BlerTable, Count, Waterfall, fit_waterfall
from rankcast.link.nr import Mcs, mcs_table

TRUTH = Waterfall(640, 3.2, 0.4)


def drawn(seed: int, n_blocks: int = 200) -> list[Count]:
    rng = np.random.default_rng(seed)
    snr_db = TRUTH.middle_db + TRUTH.width_db * np.array([-1.4, -0.7, 0.0, 0.7, 1.4])
    lost = rng.binomial(n_blocks, special.ndtr((TRUTH.middle_db - snr_db) / TRUTH.width_db))
    return [Count(float(s), n_blocks, int(n)) for s, n in zip(snr_db, lost, strict=True)]


def test_fit_recovers_the_waterfall_and_knows_its_error() -> None:
    runs = 100
    fits = [fit_waterfall(640, drawn(seed)) for seed in range(runs)]
    for name in ("middle", "width"):
        found = np.array([getattr(fit, f"{name}_db") for fit in fits])
        error = np.array([getattr(fit, f"{name}_se_db") for fit in fits])
        truth = getattr(TRUTH, f"{name}_db")
        assert found.mean() == pytest.approx(truth, abs=5 * found.std() / math.sqrt(runs))
        # A standard deviation of 100 values is known to 7 %; four of those.
        assert error.mean() == pytest.approx(found.std(), rel=0.28)
        # Of 100 intervals of 95 %, 95 ± 2.2 hold the truth; four of those.
        assert np.sum(np.abs(found - truth) <= 1.96 * error) >= 86


def test_fit_of_exact_shares_is_exact() -> None:
    n = 10**8
    shares = [(s, float(special.ndtr((3.2 - s) / 0.4))) for s in (2.8, 3.1, 3.5)]
    fit = fit_waterfall(2000, [Count(s, n, round(n * p)) for s, p in shares])
    assert fit.n_info_bits == 2000
    assert (fit.middle_db, fit.width_db) == pytest.approx((3.2, 0.4), abs=1e-4)


def test_error_shrinks_with_the_root_of_the_blocks() -> None:
    few, many = (fit_waterfall(640, drawn(0, n)) for n in (400, 40_000))
    assert few.middle_se_db / many.middle_se_db == pytest.approx(10.0, rel=0.15)


@pytest.mark.parametrize(
    "counts",
    [
        [Count(0.0, 10, 10), Count(1.0, 10, 10)],  # nothing arrived
        [Count(0.0, 10, 0), Count(1.0, 10, 0)],  # everything did
        [Count(0.0, 10, 5)],  # one place fits any width
        [Count(0.0, 10, 10), Count(1.0, 10, 0)],  # somewhere in between, of any width
        [Count(0.0, 10, 10), Count(1.0, 10, 4), Count(2.0, 10, 0)],  # as steep as one likes
        [Count(0.0, 10, 2), Count(1.0, 10, 8)],  # upside down
    ],
)
def test_counts_that_decide_nothing(counts: list[Count]) -> None:
    with pytest.raises(LinkError, match="waterfall"):
        fit_waterfall(640, counts)


def test_bler_is_the_normal_distribution_function() -> None:
    table = BlerTable({(2, 120.0): (Waterfall(640, -5.0, 0.5),)}, "")
    found = table.bler(Mcs(0, 2, 120), 640, np.array([-5.5, -5.0, -4.0]))
    # One width below the middle, at it, and two above: Φ(1), ½, Φ(-2).
    assert found == pytest.approx([0.8413447, 0.5, 0.0227501], rel=1e-5)


def test_snr_at_a_loss() -> None:
    # A tenth is lost 1.2816 widths above the middle.
    assert TRUTH.snr_db_at(0.1) == pytest.approx(3.2 + 0.4 * 1.2815516)
    assert TRUTH.snr_db_at(0.5) == pytest.approx(3.2)


def test_sizes_between_are_interpolated_in_one_over_the_root() -> None:
    mcs = mcs_table("64qam")[10]
    # The formula is linear in 1/√k, which interpolation keeps.
    found, expected = formula_table().waterfall(mcs, 1800), waterfall(mcs, 1800)
    assert found.n_info_bits == 1800
    assert (found.middle_db, found.width_db) == pytest.approx(
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
    assert BlerTable.from_plain(json.loads(json.dumps(table.to_plain()))) == table


def test_sizes_in_a_file_need_no_order() -> None:
    plain = formula_table().to_plain()
    for scheme in plain["schemes"]:
        scheme["waterfalls"].reverse()
    assert BlerTable.from_plain(plain) == formula_table()


def test_a_scheme_that_was_not_simulated() -> None:
    with pytest.raises(ConfigError, match="rate 500/1024"):
        formula_table().waterfall(Mcs(0, 2, 500), 640)
