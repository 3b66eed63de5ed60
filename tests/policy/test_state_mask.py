from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from helpers.allocation import COSTS, FULL_BITS, LAYOUT, PROBLEM, SMALL_POLICY
from helpers.tensors import seeded
from rankcast.allocation.beliefs import BayesianUtility
from rankcast.allocation.problem import AllocationProblem
from rankcast.config.plain import from_plain
from rankcast.config.policy import PolicyConfig, StateName, TeacherConfig, TrainingConfig
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp
from rankcast.errors import ConfigError
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility
from rankcast.link.processes import IidSnr
from rankcast.policy.airllm import AirLLM, StateMask, state_features
from rankcast.policy.algorithm1 import AirLLMTrainer
from rankcast.policy.teacher import Teacher
from rankcast.records import LinkState, Observation, TextStats
from studies.sequential.problem import IncrementalProblem

NAMES: tuple[StateName, ...] = get_args(StateName)

Change = Callable[[Observation], Observation]
CHANGES: Mapping[StateName, Change] = {
    "snr": lambda o: replace(o, link=replace(o.link, snr_db=o.link.snr_db - 7.0)),
    "bandwidth": lambda o: replace(o, link=replace(o.link, bandwidth_hz=o.link.bandwidth_hz / 3)),
    "entropy": lambda o: replace(
        o, text=replace(o.text, lexical_entropy=o.text.lexical_entropy + 0.5)
    ),
    "oov": lambda o: replace(o, text=replace(o.text, oov_rate=o.text.oov_rate + 0.2)),
    "ranks": lambda o: replace(o, ranks=o.ranks + 1),
}


def observation(size: int = 6) -> Observation:
    link = LinkState(np.linspace(-5, 15, size), FULL_BITS * 20.0, 1.0)
    text = TextStats(np.linspace(2.0, 3.0, size), np.linspace(0.0, 0.2, size))
    return Observation(link, text, np.arange(size)[:, None] % 3 + np.zeros((1, 12), dtype=np.int64))


def policy(*blind: StateName, problem: AllocationProblem = PROBLEM) -> AirLLM:
    return AirLLM(problem, PolicyConfig(**SMALL_POLICY, blind=blind))


def seen_by(one: AirLLM, state: Observation) -> list[torch.Tensor]:
    coarse = torch.zeros(state.link.size, one.describe.size)
    return [one.actor_input(state), one.condition(state, coarse, explore=False)]


@pytest.mark.parametrize("changed", NAMES)
@pytest.mark.parametrize("hidden", NAMES)
def test_what_is_hidden_and_nothing_else_makes_no_difference(
    hidden: StateName, changed: StateName
) -> None:
    one, state = policy(hidden), observation()
    other = CHANGES[changed](state)
    seen, then = seen_by(one, state), seen_by(one, other)
    same = [torch.equal(a, b) for a, b in zip(seen, then, strict=True)]
    # The denoiser never sees the active ranks.
    assert same == ([True, True] if hidden == changed else [False, changed == "ranks"])
    if hidden == changed:
        plans = [one.act(s, seeded(), explore=True) for s in (state, other)]
        assert torch.equal(plans[0].coarse, plans[1].coarse)
        assert torch.equal(plans[0].value, plans[1].value)


def test_a_hidden_part_has_its_nominal_value_and_the_rest_is_as_it_was() -> None:
    mask, state = StateMask(("snr", "oov"), bandwidth_hz=1e6), observation()
    seen = mask(state)
    assert seen.link.snr_db.tolist() == [5.0] * 6
    assert seen.text.oov_rate.tolist() == [0.1] * 6
    assert np.array_equal(seen.link.bandwidth_hz, state.link.bandwidth_hz)
    assert np.array_equal(seen.link.deadline_s, state.link.deadline_s)
    assert np.array_equal(seen.text.lexical_entropy, state.text.lexical_entropy)
    assert np.array_equal(seen.ranks, state.ranks)
    hidden = StateMask(("bandwidth", "entropy", "ranks"), bandwidth_hz=1e6)(state)
    assert hidden.link.bandwidth_hz.tolist() == [1e6] * 6
    assert hidden.text.lexical_entropy.tolist() == [2.5] * 6
    assert not hidden.ranks.any()
    assert np.array_equal(hidden.link.snr_db, state.link.snr_db)


def test_the_nominal_link_carries_full_rank_in_a_second() -> None:
    mask = StateMask.for_problem(PROBLEM, ("snr", "bandwidth"))
    assert state_features(mask(observation()), PROBLEM)[:, 0] == pytest.approx(0.0, abs=1e-9)


def test_nothing_hidden_changes_nothing() -> None:
    state = observation()
    assert StateMask.for_problem(PROBLEM)(state) is state
    expected = torch.tensor(state_features(state, PROBLEM), dtype=torch.float32)
    assert torch.equal(policy().actor_input(state)[:, :4], expected)


def test_a_blind_policy_still_keeps_the_true_deadline() -> None:
    one, state = policy(*NAMES), observation()
    narrow = replace(state, link=replace(state.link, bandwidth_hz=np.full(6, FULL_BITS / 20)))
    wide_plan, plan = (one.act(s, seeded(), explore=False).ranks for s in (state, narrow))
    assert (COSTS.link_cost(plan, narrow.link) <= 1.0).all()
    assert (COSTS.link_cost(wide_plan, narrow.link) > 1.0).any()


def test_random_ranks_are_not_shown_either() -> None:
    features, rng = np.zeros((3, 4)), np.random.default_rng(0)
    assert (policy("ranks").lesson_input(features, None, rng)[:, 4:] == -1.0).all()
    assert policy().lesson_input(features, None, rng)[:, 4:].std() > 0.1


@pytest.mark.parametrize("hidden", [(), ("snr", "bandwidth"), ("ranks",)])
def test_lessons_show_what_the_policy_sees_and_solve_what_is_true(
    hidden: tuple[StateName, ...],
) -> None:
    problem = IncrementalProblem(LAYOUT, COSTS)

    def lesson(*names: StateName) -> Any:
        one = policy(*names, problem=problem)
        utility, config = BayesianUtility(LAYOUT), TeacherConfig(plans=16, wide_links=0.0)
        teacher = Teacher(problem, utility, one.describe, config, mask=one.mask)
        teacher.remember(observation())
        return teacher.lesson(np.random.default_rng(0))

    blind, full = lesson(*hidden), lesson()
    assert np.array_equal(blind.ranks, full.ranks)
    assert np.array_equal(blind.link.snr_db, full.link.snr_db)
    assert (np.ptp(blind.features[:, :2], axis=0) > 0).tolist() == ["snr" not in hidden] * 2
    assert blind.received.any() == ("ranks" not in hidden)
    assert full.received.any()


def inputs_of_training(monkeypatch: pytest.MonkeyPatch, *blind: StateName) -> torch.Tensor:
    """Return all inputs (M, 4 + N) that the actor had in two episodes of a changing state."""
    utility = SyntheticUtility.draw(np.random.default_rng(3), LAYOUT)
    config = EnvConfig(FULL_BITS, horizon=4, bandwidth_octaves=1.0)
    env = AllocationMdp(SyntheticLearner(LAYOUT, utility), IidSnr(), PROBLEM, config)
    quick = TrainingConfig(
        gradient_steps=4, warm_up_steps=4, imitate_every=1, teacher=TeacherConfig(plans=32)
    )
    trainer = AirLLMTrainer(env, policy(*blind), quick, seed=1)
    actor, seen = trainer.policy.actor_critic.actor, list[torch.Tensor]()
    forward = actor.forward
    monkeypatch.setattr(actor, "forward", lambda x: (seen.append(x.detach()), forward(x))[1])
    trainer.run_episode()
    trainer.run_episode()
    return torch.cat(seen)


def test_a_wholly_blind_policy_is_trained_on_one_and_the_same_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The deadline is shown: links drawn from the whole range differ in it, those met do not.
    inputs = inputs_of_training(monkeypatch, *NAMES)
    assert (inputs[:, 1:] == inputs[0, 1:]).all()
    met = inputs[:, 0].abs() < 1e-6
    assert 0.5 < met.float().mean() < 1.0
    assert (inputs_of_training(monkeypatch).std(dim=0) > 0).sum() > 12


def test_settings_name_the_parts() -> None:
    assert from_plain(PolicyConfig, {"blind": ["snr", "oov"]}).blind == ("snr", "oov")
    wrong: Any = ("snrs",)
    with pytest.raises(ConfigError, match="did you mean 'snr'"):
        PolicyConfig(blind=wrong)
    with pytest.raises(ConfigError, match="did you mean 'snr'"):
        StateMask(wrong, 1e6)
    with pytest.raises(ConfigError):
        from_plain(PolicyConfig, {"blind": ["snrs"]})
