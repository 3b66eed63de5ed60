"""Answers of a model in which one projection of its adapter is changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rankcast.adapters.projections import find_projections
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.config.learner import FinetuneConfig
from rankcast.learner.base_models import load_model
from rankcast.learner.objectives import SequenceClassification
from rankcast.learner.texts import DatasetSplits, TextDataset
from studies.unseen.answers import Answers, Asked

TEXTS = TextDataset(("a red house", "a blue car and a boat", "red red", "two boats"), (0, 1, 0, 1),
                    ("home", "vehicle"))  # fmt: skip
SPLITS = DatasetSplits(TEXTS, TEXTS, TEXTS)
CONFIG = FinetuneConfig(model="tiny", max_length=8)


@pytest.fixture(scope="module")
def whole() -> AdapterTensors:
    base = load_model("tiny", SequenceClassification(2), 0, train_texts=TEXTS.texts)
    projections, rng = find_projections(base.model).projections, np.random.default_rng(0)
    factors = [
        Factors(*(rng.normal(size=s).astype(np.float32) for s in ((p.d_out, 2), (2, p.d_in))))
        for p in projections
    ]
    head = {
        name: rng.normal(size=tuple(base.model.state_dict()[name].shape)).astype(np.float32)
        for name in ("classifier.weight", "classifier.bias")
    }
    return AdapterTensors(projections, tuple(factors), head, dict.fromkeys(head, "full"))


@pytest.fixture(scope="module")
def answers(whole: AdapterTensors) -> Answers:
    return Answers(CONFIG, SPLITS, whole)


@pytest.fixture(scope="module")
def asked(answers: Answers) -> Asked:
    return answers.texts(TEXTS)


@pytest.mark.parametrize("index", [0, 5, 8, 11])
def test_layers_before_the_change_need_not_run_again(
    whole: AdapterTensors, answers: Answers, asked: Asked, index: int
) -> None:
    own = whole.factors[index]
    other = Factors(own.left[:, :1], own.right[:1])
    factors = (*whole.factors[:index], other, *whole.factors[index + 1 :])
    expected = answers.judge(asked, replace(whole, factors=factors)).divergence
    assert expected > 1e-4
    assert asked.divergence_with(index, other) == pytest.approx(expected, rel=1e-4)


def test_nothing_changed_diverges_by_nothing_and_leaves_no_trace(
    whole: AdapterTensors, answers: Answers, asked: Asked
) -> None:
    nothing = whole.truncated(np.zeros(len(whole.factors), dtype=np.int64))
    assert answers.judge(asked, nothing).divergence > 1e-3
    assert asked.divergence_with(3, whole.factors[3]) == pytest.approx(0.0, abs=1e-9)
    assert answers.judge(asked, whole).divergence == pytest.approx(0.0, abs=1e-9)


def test_loss_and_accuracy_are_of_the_texts_in_the_order_of_their_answers(asked: Asked) -> None:
    found = asked.judged(asked.wanted)
    logs = asked.wanted.double().log_softmax(1).numpy()
    labels = asked.labels.numpy()
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    assert found.loss == pytest.approx(-float(logs[np.arange(4), labels].mean()), rel=1e-5)
    assert found.accuracy == float((logs.argmax(1) == labels).mean())


def test_norms_are_of_the_frozen_weights(whole: AdapterTensors, answers: Answers) -> None:
    base = load_model("tiny", SequenceClassification(2), CONFIG.seed, train_texts=TEXTS.texts)
    weight = base.model.get_parameter(f"{whole.projections[4].name}.weight")
    assert answers.weight_norms()[4] == pytest.approx(float(weight.detach().norm()))
