"""What the denoiser is taught where gains depend on the text, and what it must not be taught."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.allocation import COSTS, FULL_BITS, LAYOUT, PROBLEM, SMALL_POLICY, budget, text
from rankcast.allocation.saturating import make_utility
from rankcast.config.policy import (
    PolicyConfig,
    StateName,
    TeacherConfig,
    TrainingConfig,
    UtilityConfig,
    UtilityForm,
)
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility
from rankcast.link.processes import IidSnr
from rankcast.policy.airllm import AirLLM
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.policy.diffusion_loss import modelled_reward
from rankcast.policy.teacher import Teacher
from rankcast.records import Observation, TextStats

HALF, N = LAYOUT.n_projections // 2, LAYOUT.n_projections
FORMS: tuple[UtilityForm, ...] = ("additive", "saturating")


def taught(form: UtilityForm, *hidden: StateName) -> Teacher:
    """Return a teacher that met easy and hard text on one link.

    Only the first half of the projections lowers the loss of easy text, and only the second half
    that of hard text.
    """
    config = UtilityConfig(form=form, text_amplitude=1.0, paired_noise_std=0.005)
    utility, rng = make_utility(LAYOUT, config, hidden=hidden), np.random.default_rng(0)
    ranks = rng.integers(0, 2, (400, N)) * LAYOUT.r_max
    hard = np.arange(400) % 2 == 1
    words = TextStats(np.where(hard, 3.0, 2.0), np.where(hard, 0.15, 0.05))
    helps = np.where(hard[:, None], np.arange(N) >= HALF, np.arange(N) < HALF)
    missing = (helps * (LAYOUT.r_max - ranks)).sum(axis=1) / (HALF * LAYOUT.r_max)
    utility.update(ranks, 0.2 + 0.5 * missing, words, np.full(400, 0.2))
    policy = AirLLM(PROBLEM, PolicyConfig(**SMALL_POLICY, blind=hidden))
    settings = TeacherConfig(plans=40, wide_links=0.0, group_price_spread=0.0)
    guide = Teacher(PROBLEM, utility, policy.describe, settings, mask=policy.mask)
    link = budget(*[FULL_BITS / 2] * 20)
    shown = TextStats(words.lexical_entropy[:20], words.oov_rate[:20])
    guide.remember(Observation(link, shown, np.zeros((20, N), dtype=np.int64)))
    return guide


@pytest.mark.parametrize("form", FORMS)
def test_plans_are_taught_for_the_text_that_comes(form: UtilityForm) -> None:
    lesson = taught(form).lesson(np.random.default_rng(1))
    hard = lesson.text.lexical_entropy > 2.5
    first, second = lesson.ranks[:, :HALF].mean(axis=1), lesson.ranks[:, HALF:].mean(axis=1)
    assert 0 < hard.sum() < len(hard)
    assert (second[hard] > first[hard]).all()
    assert (first[~hard] > second[~hard]).all()
    assert lesson.features[:, 2] == pytest.approx(lesson.text.lexical_entropy - 2.5)


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_acts_for_the_text_that_comes(form: UtilityForm) -> None:
    words = TextStats(np.array([2.0, 3.0]), np.array([0.05, 0.15]))
    link = budget(FULL_BITS / 2, FULL_BITS / 2)
    state = Observation(link, words, np.zeros((2, N), dtype=np.int64))
    easy, hard = taught(form).act(state, np.random.default_rng(2))
    assert easy[:HALF].mean() > easy[HALF:].mean()
    assert hard[HALF:].mean() > hard[:HALF].mean()


@pytest.mark.parametrize("form", FORMS)
def test_for_text_that_is_hidden_all_plans_are_the_same(form: UtilityForm) -> None:
    lesson = taught(form, "entropy", "oov").lesson(np.random.default_rng(1))
    solved = lesson.ranks[~lesson.explore]
    assert len(np.unique(lesson.text.lexical_entropy)) == 2
    assert len(np.unique(solved, axis=0)) == 1
    assert len(np.unique(lesson.features, axis=0)) == 1


def test_the_modelled_reward_by_text_is_that_of_each() -> None:
    guide = taught("additive")
    lesson = guide.lesson(np.random.default_rng(3))
    at = np.arange(6)
    gains = guide.utility.mean_gains(lesson.text.select(at))
    prices = 0.1 * COSTS.component_costs(lesson.link)[at]
    codes = torch.linspace(-0.9, 0.9, 6 * N).reshape(6, N)
    together = modelled_reward(gains, prices)(codes)
    alone = [modelled_reward(gains[k], prices[[k]])(codes[k : k + 1]) for k in range(6)]
    assert together.numpy() == pytest.approx(torch.cat(alone).numpy(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("blind", [(), ("entropy",), ("entropy", "oov")])
def test_a_policy_trains_saves_and_goes_on(blind: tuple[StateName, ...]) -> None:
    def trainer() -> AirLLMTrainer:
        utility = SyntheticUtility.draw(np.random.default_rng(0), LAYOUT)
        learner = SyntheticLearner(LAYOUT, utility, 2, seed=0)
        env = AllocationMdp(learner, IidSnr((0.0, 10.0)), PROBLEM, EnvConfig(FULL_BITS, 1.0, 3))
        config = TrainingConfig(
            guided_every=2, gradient_steps=4, warm_up_steps=2,
            teacher=TeacherConfig(plans=16), utility=UtilityConfig(text_amplitude=0.5),
        )  # fmt: skip
        return AirLLMTrainer(
            env, AirLLM(PROBLEM, PolicyConfig(**SMALL_POLICY, blind=blind)), config
        )

    one, other = trainer(), trainer()
    assert np.isfinite([one.run_episode().reward for _ in range(2)]).all()
    other.load_state_dict(one.state_dict())
    words = text(1, 3.0, 0.15)
    assert np.array_equal(one.utility.mean_gains(words), other.utility.mean_gains(words))
    sizes = {len(u.utility.state_dict()["information"]) for u in (one, other)}
    assert sizes == {3 + (3 - len(blind)) * N * LAYOUT.r_max}
