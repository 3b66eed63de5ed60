"""From a fine-tuned model to a learner that stands in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.models import keyword_splits
from rankcast.config.learner import FinetuneConfig
from rankcast.errors import CheckpointError, ConfigError, DataError
from rankcast.learner.text_complexity import TextComplexity
from rankcast.learner.transformer import TransformerLearner
from studies.surrogate.calibrated import CalibratedLearner
from studies.surrogate.calibration import Calibration
from studies.surrogate.probing import ProbeSet, probe, random_plans

CONFIG = FinetuneConfig(
    model="tiny",
    lr=2e-2,
    r_max=4,
    alpha=4.0,
    total_steps=40,
    warmup_steps=2,
    batch_size=16,
    mixed_precision="no",
    nested_prob=0.5,
)


@pytest.fixture(scope="module")
def trained() -> TransformerLearner:
    live = TransformerLearner(CONFIG, keyword_splits())
    for _ in range(25):
        live.apply(np.full((1, 12), 4))
        live.step()
    return live


def test_a_model_is_probed_and_stood_in_for(trained: TransformerLearner, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    plans = random_plans(rng, 60, trained.layout)
    before = trained.adapter.ranks
    seen: list[tuple[int, int]] = []
    probes = probe(trained, "test", plans, tmp_path / "p.npz", lambda k, n: seen.append((k, n)))
    assert seen == [(k, 60) for k in range(1, 61)]
    assert np.array_equal(trained.adapter.ranks, before)
    assert probes.losses.shape == (60, 24)
    assert np.array_equal(probes.losses[1], probes.reference_losses)
    assert probes.mean_losses()[5] == pytest.approx(trained.evaluate("test", plans[5]).loss)
    stats = TextComplexity(trained.tokenizer).per_sample(trained.data.test.texts)
    assert np.array_equal(probes.lexical_entropy, stats.lexical_entropy)
    assert np.array_equal(ProbeSet.load(tmp_path / "p.npz").losses, probes.losses)

    made = Calibration.of_probes(probes, trained.layout, rng, n_groups=1, link="exp")
    assert made.quality.r2 > 0.5
    learner = CalibratedLearner(made, n_envs=3)
    learner.apply(np.zeros((3, 12), dtype=int))
    result = learner.step()
    assert result.reference_loss is not None
    assert result.task_loss.mean() > result.reference_loss.mean()


def test_probing_continues_where_it_stopped(trained: TransformerLearner, tmp_path: Path) -> None:
    plans = random_plans(np.random.default_rng(1), 25, trained.layout)
    path = tmp_path / "p.npz"

    def stop(done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(trained, "test", plans, path, stop)
    assert len(ProbeSet.load(path)) == 10
    seen: list[int] = []
    continued = probe(trained, "test", plans, path, lambda k, _: seen.append(k))
    assert seen == list(range(11, 26))
    assert np.array_equal(continued.losses, probe(trained, "test", plans).losses)
    # Fewer plans than are there need no measuring, and those that are there stay.
    assert len(probe(trained, "test", plans[:7], path)) == 7
    assert len(ProbeSet.load(path)) == 25


def test_probes_of_something_else_are_refused(trained: TransformerLearner, tmp_path: Path) -> None:
    plans = random_plans(np.random.default_rng(1), 4, trained.layout)
    path = tmp_path / "p.npz"
    probe(trained, "test", plans, path)
    with pytest.raises(CheckpointError, match="other plans"):
        probe(trained, "test", plans[::-1], path)
    untrained = TransformerLearner(CONFIG, keyword_splits())
    with pytest.raises(CheckpointError, match="another model"):
        probe(untrained, "test", plans, path)
    with pytest.raises(ConfigError, match="shape"):
        probe(trained, "test", plans[:, :5])


def test_texts_are_judged_in_the_order_they_are_named(trained: TransformerLearner) -> None:
    ranks = np.arange(12) % 5
    whole = trained.judge_texts("test", ranks)
    named = np.array([17, 3, 8])
    for some, every in zip(trained.judge_texts("test", ranks, indices=named), whole, strict=True):
        assert some == pytest.approx(every[named], abs=1e-5)
    for wrong in ([24], [-1], [], [[1]], [0.5]):
        with pytest.raises(DataError, match="positions"):
            trained.judge_texts("test", ranks, indices=np.array(wrong))
    with pytest.raises(DataError, match="not both"):
        trained.judge_texts("test", ranks, 3, np.array([1]))


def test_plans_are_probed_on_texts_of_their_own(trained: TransformerLearner) -> None:
    plans = random_plans(np.random.default_rng(2), 6, trained.layout)
    every = probe(trained, "test", plans)
    some = probe(trained, "test", plans, texts_per_plan=10, seed=3)
    assert np.array_equal(some.reference_losses, every.reference_losses)
    expected = np.take_along_axis(every.losses, some.texts, axis=1)
    assert some.losses == pytest.approx(expected, abs=1e-5)
    error = np.abs(some.mean_losses() - every.mean_losses())
    assert (error <= 4 * some.std_errors() + 1e-5).all()
