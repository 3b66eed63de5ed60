from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.allocation import LAYOUT, PAIR
from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.learner.synthetic import SyntheticUtility, transformer_layout
from rankcast.records import FloatArray, IntArray
from studies.surrogate.calibrated import CalibratedLearner
from studies.surrogate.calibration import Calibration, TextGroup, noise_from_probes
from studies.surrogate.fitting import FitQuality, fit, quality_of, transmitted_share
from studies.surrogate.monotone import MonotoneUtility
from studies.surrogate.probing import ProbeSet, random_plans

TWO = replace(PAIR, r_max=2)
GAINS = np.array([[0.2, 0.1], [0.05, 0.0]])
QUALITY = FitQuality(0.98, (0.97, 0.99), 0.9, 0.8, (0.7, 0.9), 0.01, 100)


def calibration(**changes: Any) -> Calibration:
    easy = TextGroup(0.25, (1.5, 0.0), (0.1, 0.0), MonotoneUtility("identity", 0.7, 1.0, GAINS))
    hard = TextGroup(0.75, (3.0, 0.0), (0.3, 0.0), MonotoneUtility("exp", 0.2, 0.5, 10 * GAINS))
    whole = Calibration(TWO, (easy, hard), 0.05, 0.01, QUALITY, (QUALITY, QUALITY))
    return replace(whole, **changes)


def truth(plans: IntArray, *, saturating: bool) -> FloatArray:
    loss = SyntheticUtility.draw(np.random.default_rng(3), LAYOUT).loss(plans)
    return 0.2 + 0.5 * np.exp(-6.0 * (0.7 - loss)) if saturating else loss


def test_an_additive_loss_subtracts_the_gains() -> None:
    utility = MonotoneUtility("identity", 0.7, 1.0, GAINS)
    ranks = np.array([[0, 0], [1, 0], [2, 1], [2, 2]])
    assert utility.loss(ranks) == pytest.approx([0.7, 0.5, 0.35, 0.35])


def test_a_saturating_loss_falls_towards_its_offset() -> None:
    utility = MonotoneUtility("exp", 0.2, 0.5, np.log([[2.0, 2.0], [4.0, 1.0]]))
    ranks = np.array([[0, 0], [1, 0], [2, 0], [2, 2]])
    assert utility.loss(ranks) == pytest.approx([0.7, 0.45, 0.325, 0.2 + 0.5 / 16])


@pytest.mark.parametrize(
    ("link", "amplitude", "gains"),
    [
        ("expo", 1.0, GAINS),
        ("exp", -1.0, GAINS),
        ("exp", np.nan, GAINS),
        ("identity", 1.0, -GAINS),
        ("identity", 1.0, GAINS[0]),
        ("identity", 1.0, np.full((2, 2), np.inf)),
    ],
)
def test_a_loss_that_would_not_fall_is_refused(link: Any, amplitude: float, gains: Any) -> None:
    with pytest.raises(ConfigError):
        MonotoneUtility(link, 0.5, amplitude, gains)


@pytest.mark.parametrize("saturating", [False, True])
def test_the_fit_predicts_plans_it_has_not_seen(saturating: bool) -> None:
    rng = np.random.default_rng(0)
    plans = random_plans(rng, 120, LAYOUT)
    losses = truth(plans, saturating=saturating) + rng.normal(0, 0.003, 120)
    fitted = fit(plans, losses, LAYOUT, rng, strengths=(1.0, 0.03, 0.003))
    assert fitted.utility.link == ("exp" if saturating else "identity")
    assert fitted.quality.n_probes == 120
    assert fitted.quality.r2 > 0.99
    assert fitted.quality.r2_share_only < fitted.quality.r2
    assert fitted.quality.added > 0.5
    assert fitted.quality.r2_interval[0] < fitted.quality.r2 < fitted.quality.r2_interval[1]
    unseen = rng.integers(0, 5, (200, 12))
    error = fitted.utility.loss(unseen) - truth(unseen, saturating=saturating)
    assert np.abs(error).mean() < 0.015
    # What is claimed about unseen plans is what is measured on unseen plans.
    more = random_plans(rng, 400, LAYOUT)
    error = fitted.utility.loss(more) - truth(more, saturating=saturating)
    assert np.sqrt((error**2).mean()) < 1.5 * fitted.quality.residual_std


def test_noise_is_not_predicted() -> None:
    rng = np.random.default_rng(1)
    plans = random_plans(rng, 60, LAYOUT)
    fitted = fit(plans, rng.normal(0.5, 0.1, 60), LAYOUT, rng, "identity", strengths=(10.0, 0.01))
    assert fitted.quality.r2 < 0.2
    assert fitted.quality.added < 0.3


def test_gains_decrease_on_request() -> None:
    rng = np.random.default_rng(2)
    plans = random_plans(rng, 60, LAYOUT)
    losses = truth(plans, saturating=False) + rng.normal(0, 0.02, 60)
    chosen: Any = {"link": "identity", "strengths": (0.01,)}
    free = fit(plans, losses, LAYOUT, rng, **chosen).utility
    bound = fit(plans, losses, LAYOUT, rng, decreasing=True, **chosen).utility
    assert (np.diff(bound.gains, axis=1) <= 0).all()
    assert (np.diff(free.gains, axis=1) > 0).any()


def test_quality_of_hand_worked_predictions() -> None:
    losses = np.array([0.0, 1.0, 2.0, 3.0])  # squares around the mean sum to 5
    predicted = losses + np.array([0.5, -0.5, 0.0, 0.0])
    by_share = losses + np.array([1.0, 0.0, 0.0, -1.0])
    quality = quality_of(losses, predicted, by_share, np.random.default_rng(0))
    assert quality.r2 == pytest.approx(1 - 0.5 / 5)
    assert quality.r2_share_only == pytest.approx(1 - 2 / 5)
    assert quality.added == pytest.approx(0.75)
    assert quality.residual_std == pytest.approx(np.sqrt(0.5 / 4))


def test_the_share_transmitted_counts_parameters() -> None:
    ranks = np.array([[0, 0], [2, 0], [0, 1], [2, 2]])  # 8 and 24 parameters a rank
    assert transmitted_share(ranks, TWO) == pytest.approx([0, 0.25, 0.375, 1])


@pytest.mark.parametrize(
    ("ranks", "losses"),
    [
        (np.zeros((30, 12)), np.linspace(0, 1, 29)),
        (np.zeros((30, 11)), np.linspace(0, 1, 30)),
        (np.zeros((10, 12)), np.linspace(0, 1, 10)),
        (np.zeros((30, 12)), np.ones(30)),
        (np.zeros((30, 12)), np.full(30, np.nan)),
    ],
)
def test_what_cannot_be_fitted_is_refused(ranks: Any, losses: Any) -> None:
    with pytest.raises(DataError):
        fit(ranks, losses, LAYOUT, np.random.default_rng(0))


def test_an_unknown_link_is_refused() -> None:
    unknown: Any = "indentity"
    with pytest.raises(ConfigError, match="did you mean 'identity'"):
        fit(np.zeros((30, 12)), np.linspace(0, 1, 30), LAYOUT, np.random.default_rng(0), unknown)


def test_random_plans_cover_what_allocators_choose() -> None:
    plans = random_plans(np.random.default_rng(0), 400, transformer_layout())
    assert plans.shape == (400, 36)
    assert (plans[0] == 0).all()
    assert (plans[1] == 8).all()
    assert plans.min() == 0
    assert plans.max() == 8
    mean = plans.mean(axis=1)
    assert 0.2 < (mean < 1).mean() < 0.5
    assert ((mean > 3) & (mean < 8)).mean() > 0.25
    # Some plans put most of their rank into a quarter of the projections, others do not.
    low = plans[(mean > 0.5) & (mean < 2)]
    top = np.sort(low, axis=1)[:, -9:].sum(axis=1) / low.sum(axis=1)
    assert (top > 0.8).any()
    assert (top < 0.5).any()


def test_one_plan_is_not_enough_to_probe() -> None:
    with pytest.raises(ConfigError):
        random_plans(np.random.default_rng(0), 1, LAYOUT)


def probes(n_plans: int = 60, n_texts: int = 40) -> ProbeSet:
    """Return probes of a world in which wordy texts lose twice as much."""
    rng = np.random.default_rng(5)
    plans = random_plans(rng, n_plans, LAYOUT)
    entropy = rng.permutation(np.linspace(1.0, 3.0, n_texts))
    factor = np.where(entropy > 2.0, 2.0, 1.0)
    losses = (truth(plans, saturating=False)[:, None] * factor).astype(np.float32)
    texts = np.tile(np.arange(n_texts), (n_plans, 1))
    return ProbeSet(plans, texts, losses, losses[1], entropy, np.linspace(0, 0.5, n_texts))


def test_probes_survive_a_file(tmp_path: Path) -> None:
    measured = probes()
    measured.save(tmp_path / "new" / "probes.npz")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["probes.npz"]
    loaded = ProbeSet.load(tmp_path / "new" / "probes.npz")
    assert len(loaded) == 60
    for name in ("ranks", "texts", "losses", "reference_losses", "lexical_entropy", "oov_rate"):
        assert np.array_equal(getattr(loaded, name), getattr(measured, name))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probes.npz"
    probes().save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="Delete it"):
        ProbeSet.load(path)
    with pytest.raises(CheckpointError):
        ProbeSet.load(tmp_path / "absent.npz")


def test_probes_that_do_not_belong_together_are_refused() -> None:
    measured = probes()
    for wrong in (
        {"ranks": measured.ranks[:5]},
        {"oov_rate": measured.oov_rate[:5]},
        {"losses": measured.losses * np.float32(np.nan)},
    ):
        with pytest.raises(DataError):
            replace(measured, **wrong)


def test_the_noise_of_a_batch_comes_from_the_probes() -> None:
    # The two plans spread over the texts by 1 and by 0; their difference to full rank by 1 and 2.
    losses = np.array([[1, 3, 1, 3], [2, 2, 2, 2]], dtype=np.float32)
    reference = np.array([0, 4, 0, 4], dtype=np.float32)
    texts = np.tile(np.arange(4), (2, 1))
    measured = ProbeSet(
        np.zeros((2, 2), dtype=int), texts, losses, reference, np.ones(4), np.zeros(4)
    )
    assert noise_from_probes(measured, batch_size=2) == pytest.approx((0.5, np.sqrt(1.25)))
    # Within the strata {1, 1} and {3, 3} nothing varies.
    assert noise_from_probes(measured, 2, np.array([0, 1, 0, 1])) == pytest.approx((0, 0))


def test_a_calibration_distinguishes_its_strata() -> None:
    made = Calibration.of_probes(probes(), LAYOUT, np.random.default_rng(0), link="identity")
    easy, hard = made.groups
    assert easy.share == hard.share == 0.5
    assert easy.lexical_entropy[0] < 2 < hard.lexical_entropy[0]
    ranks = np.random.default_rng(1).integers(0, 5, (50, 12))
    true = truth(ranks, saturating=False)
    assert easy.utility.loss(ranks) == pytest.approx(true, abs=0.05)
    assert hard.utility.loss(ranks) == pytest.approx(2 * true, abs=0.1)
    assert made.loss(ranks) == pytest.approx(1.5 * true, abs=0.075)
    assert made.quality.r2 > 0.98
    assert made.noise_std == pytest.approx(0, abs=1e-6)


def test_a_calibration_survives_json() -> None:
    made = calibration()
    text = json.dumps(made.to_plain())
    loaded = Calibration.from_plain(json.loads(text))
    assert json.dumps(loaded.to_plain()) == text
    assert loaded.layout == made.layout
    assert loaded.quality == made.quality
    ranks = np.array([[0, 1], [2, 2]])
    assert loaded.loss(ranks) == pytest.approx(made.loss(ranks), rel=1e-5)


def test_the_mean_loss_weighs_the_groups() -> None:
    # Rank 0 everywhere: 0.25·0.7 + 0.75·(0.2 + 0.5).
    assert calibration().loss(np.array([[0, 0]])) == pytest.approx([0.7])
    full = 0.25 * 0.35 + 0.75 * (0.2 + 0.5 * np.exp(-3.5))
    assert calibration().loss(np.array([[2, 2]])) == pytest.approx([full])
    assert calibration().gains == pytest.approx((0.25 + 0.75 * 0.5 * 10) * GAINS)


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": ()},
        {"groups": calibration().groups[:1]},
        {"noise_std": -0.1},
        {"layout": LAYOUT},
    ],
)
def test_a_calibration_refuses_what_does_not_belong_together(changes: Any) -> None:
    with pytest.raises(ConfigError):
        calibration(**changes)


def test_too_few_texts_for_the_groups_are_refused() -> None:
    with pytest.raises(DataError):
        Calibration.of_probes(probes(n_texts=3), LAYOUT, np.random.default_rng(0), n_groups=4)


def test_losses_are_those_of_the_group_that_the_text_announced() -> None:
    learner = CalibratedLearner(calibration(noise_std=0.0, paired_noise_std=0.0), n_envs=200)
    text = learner.next_text()
    hard = text.lexical_entropy == 3.0
    assert 0.6 < hard.mean() < 0.9
    assert np.array_equal(text.oov_rate, np.where(hard, 0.3, 0.1))
    learner.apply(np.tile([1, 0], (200, 1)))
    result = learner.step()
    assert result.task_loss == pytest.approx(np.where(hard, 0.2 + 0.5 * np.exp(-2), 0.5))
    assert result.reference_loss == pytest.approx(np.where(hard, 0.2 + 0.5 * np.exp(-3.5), 0.35))
    assert not np.array_equal(learner.next_text().lexical_entropy, text.lexical_entropy)


def test_a_plan_and_full_rank_share_the_noise_of_the_batch() -> None:
    learner = CalibratedLearner(calibration(groups=one_group()), n_envs=20_000, seed=1)
    learner.apply(np.full((20_000, 2), 2))
    result = learner.step()
    assert result.reference_loss is not None
    difference = result.task_loss - result.reference_loss
    assert result.task_loss.std() == pytest.approx(0.05, rel=0.03)
    assert difference.std() == pytest.approx(0.01, rel=0.03)
    assert result.task_loss.mean() == pytest.approx(0.35, abs=0.002)
    assert difference.mean() == pytest.approx(0, abs=0.0005)


def one_group() -> tuple[TextGroup, ...]:
    return (replace(calibration().groups[0], share=1.0, lexical_entropy=(0.1, 1.0)),)


def test_statistics_stay_possible() -> None:
    group = replace(one_group()[0], oov_rate=(0.9, 0.5))
    text = CalibratedLearner(calibration(groups=(group,)), n_envs=500).next_text()
    assert text.lexical_entropy.min() == 0
    assert text.oov_rate.min() >= 0
    assert text.oov_rate.max() == 1
