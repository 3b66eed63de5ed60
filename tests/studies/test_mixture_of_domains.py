"""One adapter for several domains: its batches, its gains, the guess, and what readers see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from helpers.codec import random_adapter
from rankcast.adapters.arrays import balanced_tensors_of
from rankcast.codec.container import read_container
from rankcast.codec.levels import Levels
from rankcast.errors import CheckpointError, DataError, InfeasibleSizeError
from rankcast.records import FloatArray
from studies.domains.answering import MergedModel, at_levels
from studies.domains.gains import Gains, links, planned, problem_of, source_of, worth
from studies.domains.guessing import DomainTexts, guesses
from studies.domains.measured import QUICK, measured_job, pack_losses, unpack_losses
from studies.domains.measured_presentation import (
    MeasuredRow,
    cost_of_hiding,
    domain_worth,
    measured_answer,
    measured_claims,
    measured_tables,
)
from studies.domains.mixture import (
    MixtureLearner,
    MixtureSettings,
    OneDomainBatches,
    config_of,
    mixture_of,
    train_to_end,
)
from studies.domains.study import STUDY
from studies.harness.spec import Result, Row, RunContext
from studies.shared.judging import pack

# Texts and training


def test_each_batch_is_of_one_domain_and_all_domains_come_as_often() -> None:
    domains = np.repeat([0, 1, 2], (9, 7, 20))
    batches = OneDomainBatches(domains, np.ones(36, dtype=np.int64), 3, seed=0)
    for _ in range(2):
        epoch = []
        for _ in range(6):  # two of each domain: the smallest has seven texts
            epoch.append(batches.peek())
            batches.advance()
        assert all(len(set(domains[batch])) == 1 for batch in epoch)
        assert sorted(int(domains[batch[0]]) for batch in epoch) == [0, 0, 1, 1, 2, 2]
        assert len(set(np.concatenate(epoch).tolist())) == 18


def test_batches_go_on_where_they_were() -> None:
    domains, lengths = np.repeat([0, 1], 8), np.ones(16, dtype=np.int64)
    one, other = (OneDomainBatches(domains, lengths, 4, seed=1) for _ in range(2))
    for _ in range(5):  # into the second epoch
        one.advance()
    other.load_state_dict(one.state_dict())
    assert np.array_equal(one.peek(), other.peek())
    with pytest.raises(CheckpointError):
        OneDomainBatches(domains, lengths, 4, seed=2).load_state_dict(one.state_dict())


def test_a_mixture_has_the_classes_of_all_domains_and_no_text_twice() -> None:
    mixture = mixture_of(QUICK.mixture, None)
    splits = mixture.splits
    assert len(splits.train.label_names) == 6  # two packages in each of three domains
    assert "docstrings/http+importlib: http" in splits.train.label_names
    for split in ("validation", "test"):
        labels = np.array(splits[split].labels)
        assert np.array_equal(labels // 2, mixture.domain_of(split))
    assert np.array_equal(np.array(splits.train.labels) // 2, mixture.training_domains)
    every = splits.train.texts + splits.validation.texts + splits.test.texts
    assert len(set(every)) == len(every) == 120 + 24 + 24


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sst2/train\.tsv with --data"):
        mixture_of(MixtureSettings(), tmp_path)
    with pytest.raises(DataError, match="held-out texts, this study asks for 4000"):
        mixture_of(MixtureSettings(domains=("docstrings",), n_judged=3760), None)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> MixtureLearner:
    config = config_of(QUICK.mixture, 0, in_bfloat16=False)
    fresh = MixtureLearner(config, mixture_of(QUICK.mixture, None))
    return train_to_end(fresh, tmp_path_factory.mktemp("mixture") / "checkpoint.pt")


def test_one_projection_at_another_level_answers_as_the_whole_plan_does(
    learner: MixtureLearner,
) -> None:
    """The layers that are not run again change nothing."""
    tensors = balanced_tensors_of(learner.adapter)
    levels = Levels.of(source_of(tensors), None, 2)
    mixture = mixture_of(QUICK.mixture, None)
    model = MergedModel(learner.config, mixture, tensors, torch.float32)
    tokens = model.tokens(mixture.splits.validation)
    at = np.ones(len(tensors.factors), dtype=np.int64)
    asked = [0, 7, len(at) - 1]  # of the first layer, and of the last
    for i, found in list(model.each_level(tokens, tensors, levels, at, asked)):
        for level, logits in enumerate(found):
            plan = np.where(np.arange(len(at)) == i, level, at)
            whole = model.answers(tokens, at_levels(tensors, levels, plan))
            torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)


def test_only_the_classes_of_a_texts_domain_count(learner: MixtureLearner) -> None:
    mixture = mixture_of(QUICK.mixture, None)
    tensors = balanced_tensors_of(learner.adapter)
    alone = replace(mixture, class_domains=np.zeros(6, dtype=np.int64))  # as if it were one domain
    every, own = (MergedModel(learner.config, m, tensors, torch.float32) for m in (alone, mixture))
    tokens = every.tokens(mixture.splits.validation)
    as_learned = learner.judge_texts("validation", None)[0]
    assert every.judge(tokens, tensors).loss == pytest.approx(as_learned, abs=1e-5)
    odds = every.answers(tokens, tensors).softmax(1).numpy()
    labels = np.array(mixture.splits.validation.labels)
    rows = np.arange(len(labels))
    among_two = odds[rows, labels] + odds[rows, labels ^ 1]  # each domain has two classes
    wanted = -np.log(odds[rows, labels] / among_two)
    assert own.judge(tokens, tensors).loss == pytest.approx(wanted, abs=1e-5)


# Gains and plans


def drawn_gains(common: float, own: float, noise: float) -> Gains:
    """Return gains whose domains share a part, differ in a part, and are measured with noise."""
    rng = np.random.default_rng(0)
    shape = (3, 1, 40, 4)
    true = common * rng.normal(size=(1, *shape[1:])) + own * rng.normal(size=shape)
    true[..., 0] = 0.0
    errors = noise * rng.normal(size=(3, 200, *shape[2:]))
    errors[..., 0] = 0.0
    return Gains(true + errors)


def test_what_is_measured_badly_counts_less() -> None:
    sure, unsure = drawn_gains(1.0, 1.0, 0.1), drawn_gains(1.0, 1.0, 14.1)
    alike = drawn_gains(1.0, 0.0, 5.0)
    assert sure.shares == pytest.approx(np.ones(3), abs=1e-3)
    # Errors of the mean have the standard deviation 14.1 / √200 = 1, as the domains' own parts.
    assert unsure.shares == pytest.approx(np.full(3, 0.5), abs=0.15)
    assert (alike.shares < 0.25).all()
    drawn = unsure.expected
    assert drawn.mean(axis=0) == pytest.approx(unsure.mean.mean(axis=0), abs=0.2)
    assert np.ptp(drawn, axis=0).sum() < np.ptp(unsure.mean, axis=0).sum()


def test_correlations_are_freed_of_the_errors_that_lower_them() -> None:
    measured, without = drawn_gains(1.0, 1.0, 14.1).correlations()
    above = np.triu_indices(3, 1)
    # Half of the variance is shared; as measured it is a third.
    assert measured[above].mean() == pytest.approx(1 / 3, abs=0.1)
    assert without[above].mean() == pytest.approx(0.5, abs=0.15)
    assert np.diag(without) == pytest.approx(np.ones(3))


def test_a_plan_arrives_and_gains_more_by_its_own_gains_than_any_other() -> None:
    source = source_of(random_adapter(0, ((48, 40), (40, 64), (64, 40)), (4, 4, 4)))
    problem = problem_of(source, Levels.of(source, None, 3))
    late, early = problem.levels.gains.copy(), problem.levels.gains.copy()
    late[0], early[2] = 0.0, 0.0
    budget = 0.5 * problem.link_costs.full_bits
    found = [planned(source, problem, gains, budget) for gains in (late, early)]
    for plan, file in found:
        assert file.n_bits <= budget
        decoded = read_container(file.to_bytes()).tensors()
        assert np.array_equal(decoded.ranks, problem.levels.chosen(plan)[0])
    assert found[0][0][0] == 0
    assert found[1][0][2] == 0
    assert worth(late, found[0][0]) > worth(late, found[1][0])
    assert worth(early, found[1][0]) > worth(early, found[0][0])
    with pytest.raises(InfeasibleSizeError):
        planned(source, problem, late, 80.0)


def test_links_are_all_snrs_at_each_bandwidth() -> None:
    link = links((-5.0, 15.0), (5e3, 2e4))
    assert link.snr_db.tolist() == [-5.0, 15.0, -5.0, 15.0]
    assert link.bandwidth_hz.tolist() == [5e3, 5e3, 2e4, 2e4]


# The guess


def test_the_posterior_is_that_of_normal_means() -> None:
    rng = np.random.default_rng(0)
    stats = rng.normal(size=(2, 50, 2)) * [0.3, 0.02] + [[[2.5, 0.1]], [[2.7, 0.1]]]
    texts = DomainTexts.of(stats)
    means = rng.normal(size=(6, 2)) * [0.2, 0.01] + [2.6, 0.1]
    odds = np.array([
        multivariate_normal(mean, covariance / 4).pdf(means)
        for mean, covariance in zip(texts.means, texts.covariances, strict=True)
    ]).T  # fmt: skip
    assert texts.posterior(means, 4) == pytest.approx(odds / odds.sum(axis=1, keepdims=True))


def test_a_planner_takes_the_domains_plan_where_it_knows_and_the_mixtures_where_not() -> None:
    rng = np.random.default_rng(0)
    # The domains are alike in the first statistic and far apart in the second.
    apart = np.array([[[0.0, 0.0]], [[0.0, 50.0]], [[0.0, 100.0]]])
    stats = rng.normal(size=(3, 200, 2)) + apart
    # Its own plan brings 3 to a domain and nothing to the others; the one for all brings 2.
    worths = np.concatenate([3 * np.eye(3), np.full((1, 3), 2.0)])[None]
    shown = guesses(stats, stats, worths, 16, 100)
    assert shown.accuracy == 1.0
    assert np.array_equal(shown.chosen[0], np.eye(3, 4))
    alike = rng.normal(size=(3, 200, 1))
    hidden = guesses(alike, alike, worths, 1, 300)
    assert hidden.accuracy == pytest.approx(1 / 3, abs=0.1)
    assert hidden.chosen[0, :, 3].min() > 0.95


# Rows and what readers see


def test_losses_survive_as_text() -> None:
    losses = np.abs(np.random.default_rng(0).normal(size=50))
    assert unpack_losses(pack_losses(losses)) == pytest.approx(losses, rel=2**-11)


@pytest.fixture(scope="module")
def quick_values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("measured") / "job"
    folder.mkdir()
    context = RunContext(folder, "quick", {}, {}, None)
    first = STUDY.run(measured_job(0, quick=True), context)
    assert STUDY.run(measured_job(0, quick=True), context) == first  # from what was kept
    return json.loads(json.dumps(first))


def test_the_quick_job_measures_plans_and_judges(quick_values: dict[str, Any]) -> None:
    values = quick_values
    assert len(values["answers"]) == len(values["budget_bytes"]) == 3
    for budget, sizes, answers in zip(
        values["budget_bytes"], values["file_bytes"], values["answers"], strict=True
    ):
        assert max(sizes) <= budget
        assert len(answers) == 5  # three domains, their mixture, and energy
    assert values["n_texts"] == 24
    row = MeasuredRow(Row(measured_job(0, quick=True), values, 0.0, 0.0, "cpu", {}))
    assert row.table("loss").shape == (3, 5, 24)
    for name in ("known", "mixture", "energy", "both", "no-oov", "no-entropy"):
        assert row.chosen(name).sum(axis=1) == pytest.approx(np.ones((3, 24)))
    assert np.isfinite(row.way("snr", "loss")).all()


RIGHT = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
HALF = [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]
GUESSED = {
    "means": [[2.0, 0.1], [3.0, 0.1]],
    "deviations": [[0.5, 0.1], [0.5, 0.1]],
    "accuracy": {"both-16": 1.0, "no-oov-16": 0.75, "no-entropy-16": 0.75},
    "chosen": {
        "both-16": [RIGHT] * 2,
        "no-oov-16": [HALF] * 2,
        "no-entropy-16": [HALF] * 2,
    },
}
"""Of two domains: every batch is guessed right from both statistics, half of them from either."""


def made_row(seed: int) -> MeasuredRow:
    """A row of two domains with one text each, over links of 100 and 400 bytes.

    A text loses 1 nat without an adapter. Over the small link its own plan leaves 1/2, the other
    domain's 7/8 and the mixture's 5/8; over the large one all leave 1/8 less.
    """
    settings = {"snrs_db": [-5.0, 15.0], "bandwidths_hz": [5e3], "batch_sizes": [16]}

    def answers(*losses: float) -> dict[str, str]:
        return {"loss": pack_losses(np.array(losses)), "correct": pack(np.array(losses) < 0.7)}

    def at(less: float) -> list[dict[str, str]]:
        table = ((0.5, 0.875), (0.875, 0.5), (0.625, 0.625), (0.75, 0.75))
        return [answers(*(loss - less for loss in losses)) for losses in table]

    values = {
        "domains": ["a", "b"],
        "budget_bytes": [100, 400],
        "file_bytes": [[90] * 4, [300] * 4],
        "worths": [[[0.4, 0.4]] * 4, [[0.5, 0.5]] * 4],
        "correlations": [[[1.0, 0.2], [0.2, 1.0]], [[1.0, 0.4], [0.4, 1.0]]],
        "correlations_by_labels": [[[1.0, 0.1], [0.1, 1.0]], [[1.0, None], [None, 1.0]]],
        "shares": [0.5, 1.0],
        "texts": GUESSED,
        "n_texts": 2,
        "nothing": answers(1.0, 1.0),
        "whole": answers(0.25, 0.25),
        "answers": [at(0.0), at(0.125)],
    }  # fmt: skip
    job = replace(measured_job(seed), settings={"kind": "measured", "measured": settings})
    return MeasuredRow(Row(job, values, 0.0, 0.0, "cpu", {}))


def test_costs_of_hiding_are_paired_differences() -> None:
    rows = [made_row(0), made_row(1)]
    assert domain_worth(rows).value == pytest.approx(0.125)
    assert cost_of_hiding(rows, "mixture").value == pytest.approx(0.125)
    assert cost_of_hiding(rows, "no-oov").value == pytest.approx(0.0625)
    assert cost_of_hiding(rows, "known").value == 0.0
    assert cost_of_hiding(rows, "mixture", "correct").value == 0.0


def test_without_the_snr_one_file_serves_all_links() -> None:
    """A small file brings 0.4 to two links, a large one 0.5 to one: the small one is sent."""
    row = made_row(0)
    found: FloatArray = row.way("snr", "loss")
    assert found == pytest.approx(np.full((2, 2), 0.5))
    assert row.way("bandwidth", "loss") == pytest.approx(row.under("both", "loss"))  # there is one
    values = dict(row.values) | {"worths": [[[0.2, 0.2]] * 4, [[0.5, 0.5]] * 4]}
    late = MeasuredRow(Row(row.row.job, values, 0.0, 0.0, "cpu", {})).way("snr", "loss")
    assert late == pytest.approx(np.array([[1.0, 1.0], [0.375, 0.375]]))


def test_the_tables_claims_and_words_come_from_the_rows() -> None:
    rows = [made_row(0), made_row(1)]
    hidden, by_link, guessed, correlations, domains = measured_tables(rows)
    assert [line[0] for line in hidden.rows][:2] == ["domain told", "nothing hidden"]
    assert hidden.rows[1][1:] == ("0.4375", "100.00 %", "–", "–")
    assert by_link.rows[0][2:6] == ("100", "0.7500", "0.6250", "0.5000")
    assert guessed.rows[0] == ("both", "100.0 %")
    assert correlations.rows[0] == ("a, b", "0.20", "0.40", "0.10", "–")
    assert domains.rows[0][0] == "a"
    worth, *others = measured_claims(rows)
    assert (worth.ours, worth.seeds) == ("+0.1250 nats", (0, 1))
    assert len(others) == 6
    text = measured_answer(rows)
    assert "correlate by 0.40" in text
    assert "100.0 % of batches" in text
    shown = STUDY.present(Result("domains", "default", "", tuple(r.row for r in rows)), {})
    assert shown.text == text
    assert len(shown.tables) == 5
