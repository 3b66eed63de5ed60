"""Plans probed on texts of their own, each compared with full rank on the same texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.allocation import LAYOUT
from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.learner.synthetic import SyntheticUtility
from rankcast.learner.texts import TextDataset
from rankcast.records import FloatArray, IntArray
from studies.surrogate.calibration import Calibration, noise_from_probes
from studies.surrogate.fitting import FitQuality, fit, quality_of
from studies.surrogate.probing import ProbeSet, probe, random_plans

QUICK: Any = {"link": "identity", "strengths": (1.0, 0.03)}


def hand_worked() -> ProbeSet:
    """Return two plans on two and two of four texts; the first two texts are one stratum."""
    return ProbeSet(
        ranks=np.zeros((2, 3), dtype=int),
        texts=np.array([[0, 1], [1, 3]]),
        losses=np.array([[2, 5], [4, 9]], dtype=np.float32),
        reference_losses=np.array([1, 2, 3, 6], dtype=np.float32),
        lexical_entropy=np.arange(4.0),
        oov_rate=np.zeros(4),
    )


def test_a_mean_is_that_of_full_rank_plus_the_mean_difference() -> None:
    # Full rank loses 3 on all texts; the plans lose 1 and 3, and 2 and 3, more on theirs.
    assert hand_worked().mean_losses() == pytest.approx([3 + 2, 3 + 2.5])
    # Their differences deviate by √2 and √½; two of four texts were judged.
    expected = np.array([np.sqrt(2.0), np.sqrt(0.5)]) / np.sqrt(2) * np.sqrt(1 - 2 / 4)
    assert hand_worked().std_errors() == pytest.approx(expected)


def test_a_stratum_counts_only_its_own_texts() -> None:
    measured, low = hand_worked(), np.array([True, True, False, False])
    assert measured.mean_losses(low) == pytest.approx([1.5 + 2, 1.5 + 2])
    # The first plan was judged on all of it; one text says nothing of the second plan's error.
    assert measured.std_errors(low).tolist() == [0.0, np.inf]
    means = measured.mean_losses(~low)
    assert np.isnan(means[0])
    assert means[1] == pytest.approx(4.5 + 3)
    assert measured.std_errors(~low).tolist() == [np.inf, np.inf]
    with pytest.raises(DataError, match="stratum"):
        measured.mean_losses(np.zeros(4, dtype=bool))


def test_a_plan_judged_on_every_text_is_known_exactly() -> None:
    losses = np.random.default_rng(0).random((2, 4)).astype(np.float32)
    texts = np.tile(np.arange(4), (2, 1))
    measured = replace(hand_worked(), texts=texts, losses=losses)
    assert measured.mean_losses() == pytest.approx(losses.mean(axis=1))
    assert measured.std_errors().tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "texts", [np.array([[1, 0], [1, 3]]), np.array([[0, 4], [1, 3]]), np.array([[0, 1, 2]] * 2)]
)
def test_texts_that_cannot_be_those_of_the_losses_are_refused(texts: IntArray) -> None:
    with pytest.raises(DataError):
        replace(hand_worked(), texts=texts)


def test_the_noise_of_a_batch_comes_from_the_texts_of_each_plan() -> None:
    # The plans' losses vary by 1.5² and 2.5² around their means, the differences by 1 and 0.25.
    assert noise_from_probes(hand_worked(), batch_size=4) == pytest.approx(
        (np.sqrt((2.25 + 6.25) / 2 / 4), np.sqrt((1 + 0.25) / 2 / 4))
    )
    # Of the second stratum no plan knows two texts; of the first, half of all, only one does.
    strata = np.array([0, 0, 1, 1])
    assert noise_from_probes(hand_worked(), 4, strata) == pytest.approx(
        (np.sqrt(0.5 * 2.25 / 4), np.sqrt(0.5 * 1 / 4))
    )


def test_the_explainable_share_takes_the_noise_out_of_both() -> None:
    losses = np.array([0.0, 1.0, 2.0, 3.0])  # squares around the mean sum to 5
    predicted = losses + np.array([0.5, -0.5, 0.5, -0.5])
    errors = np.full(4, 0.25)
    quality = quality_of(losses, predicted, losses, np.random.default_rng(0), errors)
    assert quality.r2 == pytest.approx(1 - 1 / 5)
    assert quality.r2_explainable == pytest.approx(1 - (1 - 0.25) / (5 - 0.25))
    assert quality.sampling_std == pytest.approx(0.25)
    # More noise than error, or than there is to explain: at most everything, and nothing.
    for error, expected in ((0.6, 1.0), (2.0, 0.0)):
        quality = quality_of(losses, predicted, losses, np.random.default_rng(0), np.full(4, error))
        assert quality.r2_explainable == expected
    assert quality_of(losses, predicted, losses, np.random.default_rng(0)).r2_explainable == 0.8
    with pytest.raises(DataError, match="leave them out"):
        quality_of(losses, predicted, losses, np.random.default_rng(0), np.full(4, np.inf))


def test_a_quality_from_before_the_noise_was_known_is_read() -> None:
    old = {
        "r2": 0.98, "r2_interval": [0.97, 0.99], "r2_share_only": 0.9, "added": 0.8,
        "added_interval": [0.7, 0.9], "residual_std": 0.01, "n_probes": 100,
    }  # fmt: skip
    quality = FitQuality.from_plain(old)
    assert quality.r2_interval == (0.97, 0.99)
    assert quality.r2_explainable is None
    assert quality.r2_explainable_interval is None
    new = replace(quality, r2_explainable=0.99, r2_explainable_interval=(0.98, 1.0))
    assert FitQuality.from_plain(new.to_plain()) == new


def plans_and_truth(n: int, seed: int = 0) -> tuple[IntArray, FloatArray]:
    plans = random_plans(np.random.default_rng(seed), n, LAYOUT)
    return plans, SyntheticUtility.draw(np.random.default_rng(3), LAYOUT).loss(plans)


def test_exact_losses_count_for_more_than_noisy_ones() -> None:
    plans, truth = plans_and_truth(80)
    rng = np.random.default_rng(1)
    error = np.where(rng.random(80) < 0.5, 0.0005, 0.1)
    measured = truth + error * rng.standard_normal(80)
    unseen, true = plans_and_truth(300, seed=9)
    alike, known = (
        fit(plans, measured, LAYOUT, np.random.default_rng(2), std_errors=e, **QUICK)
        for e in (None, error)
    )
    missed = [np.abs(f.utility.loss(unseen) - true).mean() for f in (alike, known)]
    assert missed[1] < 0.6 * missed[0]
    assert known.quality.r2_explainable is not None
    assert known.quality.r2_explainable > known.quality.r2 + 0.05


def test_a_plan_of_unknown_loss_does_not_count() -> None:
    plans, losses = plans_and_truth(60)
    error = np.full(60, 0.01)
    error[[4, 9]], losses[[4, 9]] = np.inf, (np.nan, 1e6)
    fitted = fit(plans, losses, LAYOUT, np.random.default_rng(0), std_errors=error, **QUICK)
    assert fitted.quality.n_probes == 58
    assert fitted.quality.r2 > 0.98
    assert np.isfinite(fitted.predicted).all()


@pytest.mark.parametrize("error", [np.ones(59), -np.ones(60), np.full(60, np.nan)])
def test_standard_errors_that_are_none_are_refused(error: FloatArray) -> None:
    plans, losses = plans_and_truth(60)
    with pytest.raises(DataError, match="standard errors"):
        fit(plans, losses, LAYOUT, np.random.default_rng(0), std_errors=error)


def test_too_few_known_losses_are_refused() -> None:
    plans, losses = plans_and_truth(60)
    error = np.where(np.arange(60) < 19, 0.1, np.inf)
    with pytest.raises(DataError, match="19 probes of known loss"):
        fit(plans, losses, LAYOUT, np.random.default_rng(0), std_errors=error)


class Probed:
    """A model whose ranks help some texts much and others not at all; counts what it judges."""

    layout = LAYOUT
    accelerator: Any = type("Processes", (), {"is_main_process": True})()

    def __init__(self, seed: int, n_texts: int = 1200) -> None:
        rng = np.random.default_rng(seed)
        self.helped = rng.exponential(1.0, n_texts)
        self.helped /= self.helped.mean()
        self.hardness = rng.exponential(0.3, n_texts)
        self.utility = SyntheticUtility.draw(np.random.default_rng(3), LAYOUT)
        words = rng.integers(0, 50, (n_texts, 4))
        texts = tuple(" ".join(f"w{i}" for i in row) for row in words)
        self.data: Any = {"validation": TextDataset(texts)}
        self.judged: list[int] = []

    def tokenizer(self, forms: list[str], **settings: Any) -> dict[str, Any]:
        return {"input_ids": [[1] for _ in forms]}

    tokenizer.unk_token_id = 0  # type: ignore[attr-defined]

    def judge_texts(
        self, split: str, ranks: Any, max_examples: Any = None, indices: Any = None
    ) -> Any:
        chosen = np.arange(len(self.helped)) if indices is None else indices
        self.judged.append(len(chosen))
        removed = self.utility.loss(np.zeros((1, 12), dtype=int)) - self.utility.loss(ranks[None])
        loss = self.hardness + self.helped * (1.0 - removed)
        return loss[chosen], np.ones(len(chosen)), np.ones(len(chosen))


def test_probing_costs_as_many_texts_as_asked_for_and_full_rank_once() -> None:
    learner: Any = Probed(0)
    plans = random_plans(np.random.default_rng(0), 30, LAYOUT)
    probes = probe(learner, "validation", plans, texts_per_plan=40, seed=5)
    assert learner.judged == [1200, *[40] * 30]
    assert (probes.n_texts, probes.texts_per_plan) == (1200, 40)
    assert len({row.tobytes() for row in probes.texts}) == 30
    assert probes.differences[1] == pytest.approx(np.zeros(40), abs=1e-6)
    assert probes.std_errors()[1] < 1e-6 < probes.std_errors()[0]
    every = probe(learner, "validation", plans[:2], texts_per_plan=5000)
    assert np.array_equal(every.texts, np.tile(np.arange(1200), (2, 1)))


def test_a_resumed_probing_draws_the_same_texts(tmp_path: Path) -> None:
    learner: Any = Probed(0)
    plans, path = random_plans(np.random.default_rng(0), 30, LAYOUT), tmp_path / "p.npz"
    whole = probe(learner, "validation", plans, texts_per_plan=40, seed=5)

    def stop(done: int, total: int) -> None:
        if done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(learner, "validation", plans, path, stop, texts_per_plan=40, seed=5)
    learner.judged.clear()
    resumed = probe(learner, "validation", plans, path, texts_per_plan=40, seed=5)
    assert learner.judged == [1200, *[40] * 20]
    assert np.array_equal(resumed.texts, whole.texts)
    assert np.array_equal(resumed.losses, whole.losses)
    for other in ({"seed": 6, "texts_per_plan": 40}, {"seed": 5, "texts_per_plan": 41}):
        with pytest.raises(CheckpointError, match="other texts"):
            probe(learner, "validation", plans, path, **other)
    with pytest.raises(ConfigError, match="at least 2 texts"):
        probe(learner, "validation", plans, texts_per_plan=1)


def test_errors_that_all_plans_share_stay_and_those_of_their_own_average_out() -> None:
    plans = random_plans(np.random.default_rng(0), 60, LAYOUT)
    shared, own = [], []
    for seed in range(20):
        learner = Probed(seed)
        truth = learner.hardness.mean() + 1.0 - _removed(learner, plans)
        probes = probe(learner, "validation", plans, texts_per_plan=40, seed=seed)
        errors = probes.mean_losses() - truth
        own.append(errors.mean())
        # Each plan's error is what it says of itself.
        assert np.sqrt(np.mean(errors**2)) == pytest.approx(
            np.sqrt(np.mean(probes.std_errors() ** 2)), rel=0.5
        )
        texts = np.random.default_rng(seed).choice(1200, 40, replace=False)
        losses = np.array([learner.judge_texts("", plan)[0][texts].mean() for plan in plans])
        full = learner.judge_texts("", plans[1])[0]
        # Even against full rank on the very same texts.
        shared.append((losses - full[texts].mean() + full.mean() - truth).mean())
    assert np.std(own) < 0.4 * np.std(shared)


def _removed(learner: Probed, plans: IntArray) -> FloatArray:
    return learner.utility.loss(0 * plans[:1]) - learner.utility.loss(plans)


def test_a_calibration_from_texts_of_their_own_knows_the_true_mean() -> None:
    learner: Any = Probed(1)
    plans = random_plans(np.random.default_rng(0), 120, LAYOUT)
    probes = probe(learner, "validation", plans, texts_per_plan=60, seed=1)
    made = Calibration.of_probes(probes, LAYOUT, np.random.default_rng(0), 1, link="identity")
    unseen = random_plans(np.random.default_rng(7), 200, LAYOUT)
    truth = learner.hardness.mean() + 1.0 - _removed(learner, unseen)
    assert np.abs(made.loss(unseen) - truth).mean() < 0.5 * made.quality.sampling_std
    assert made.quality.r2_explainable is not None
    assert made.quality.r2 < made.quality.r2_explainable
    assert Calibration.from_plain(made.to_plain()).quality.r2_explainable is not None
