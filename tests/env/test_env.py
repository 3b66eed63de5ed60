from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rankcast.allocation.problem import AllocationProblem
from rankcast.config.run import EnvConfig
from rankcast.env import AllocationMdp, RankAllocationEnv, RankAllocationVectorEnv, to_vector
from rankcast.errors import ConfigError
from rankcast.learner.protocol import StepResult
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import GaussMarkovSnr, IidSnr, StaticSnr
from rankcast.records import (
    AdapterLayout,
    FloatArray,
    IntArray,
    LinkState,
    Observation,
    Projection,
    TextStats,
)

ONE = AdapterLayout((Projection("only", 0, "q", 3, 4),), r_max=2)  # 8 parameters a rank
SMALL = transformer_layout(n_layers=1, d_hidden=4, d_ffn=8, r_max=3)


class FixedLoss(SyntheticLearner):
    """A learner that reports 0.5 per copy, and a reference of 0.4."""

    def step(self) -> StepResult:
        return StepResult(np.full(self.n_envs, 0.5), np.full(self.n_envs, 0.4))


def learner(n_envs: int = 1, layout: AdapterLayout = SMALL, seed: int = 0) -> SyntheticLearner:
    utility = SyntheticUtility.draw(np.random.default_rng(3), layout)
    return SyntheticLearner(layout, utility, n_envs, seed=seed)


def problem(layout: AdapterLayout = SMALL, link_weight: float = 0.1) -> AllocationProblem:
    return AllocationProblem(layout, LinkCostModel.for_layout(layout, Awgn()), link_weight)


def environment(n_envs: int = 1, **config: Any) -> RankAllocationVectorEnv:
    mdp = AllocationMdp(learner(n_envs), IidSnr(), problem(), EnvConfig(1e4, **config))
    return RankAllocationVectorEnv(mdp)


def actions(env: RankAllocationVectorEnv, steps: int, seed: int = 5) -> list[IntArray]:
    rng = np.random.default_rng(seed)
    shape = (env.num_envs, SMALL.n_projections)
    return [rng.integers(0, SMALL.r_max + 1, shape) for _ in range(steps)]


def rollout(env: RankAllocationVectorEnv, steps: int, seed: int = 5) -> list[FloatArray]:
    rows = []
    for action in actions(env, steps, seed):
        vector, reward, *_ = env.step(action)
        rows.append(np.column_stack([vector, reward]))
    return rows


def test_gymnasium_accepts_the_registered_environment() -> None:
    from gymnasium.utils.env_checker import check_env

    env = gym.make("rankcast/RankAllocation-v0")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space == gym.spaces.MultiDiscrete([9] * 36)
    assert env.observation_space.shape == (5 + 36,)


def test_reward_is_eq_10_by_hand() -> None:
    # 2 ranks of 8 parameters at 32 bits are 512 bits. At 0 dB one hertz carries one bit a second:
    # 256 Hz for 4 s carry 1024 bits, so η is one half.
    env = RankAllocationEnv(
        FixedLoss(ONE, SyntheticUtility(np.zeros((1, 2)))),
        StaticSnr(0.0),
        problem(ONE, 0.3),
        EnvConfig(bandwidth_hz=256.0, deadline_s=4.0),
    )
    env.reset(seed=0)
    vector, reward, _, _, info = env.step(np.array([2]))
    assert reward == pytest.approx(-0.5 - 0.3 * 0.5)
    assert info["task_loss"] == 0.5
    assert info["reference_loss"] == 0.4
    assert info["link_cost"] == pytest.approx(0.5)
    assert info["arrives"]
    expected = [0.0, np.log10(256.0), np.log10(4.0), 2.5, 0.1, 1.0]
    assert vector == pytest.approx(np.array(expected), rel=1e-6)


def test_a_late_plan_is_paid_for_and_shown() -> None:
    env = RankAllocationEnv(
        FixedLoss(ONE, SyntheticUtility(np.zeros((1, 2)))),
        StaticSnr(0.0),
        problem(ONE, 0.3),
        EnvConfig(bandwidth_hz=64.0, deadline_s=4.0),
    )
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([2]))
    assert reward == pytest.approx(-0.5 - 0.3 * 2.0)
    assert not info["arrives"]


def test_the_price_is_that_of_the_link_that_was_observed() -> None:
    env = environment()
    env.reset(seed=2)
    for action in actions(env, 8):
        observed = env.mdp.observe().link
        *_, info = env.step(action)
        assert info["link_cost"] == pytest.approx(
            env.mdp.problem.link_costs.link_cost(action, observed)
        )


def test_the_horizon_truncates_and_does_not_terminate() -> None:
    env = environment(2, horizon=3)
    env.reset(seed=0)
    ends = [env.step(a)[2:4] for a in actions(env, 3)]
    assert [t.tolist() for _, t in ends] == [[False] * 2, [False] * 2, [True] * 2]
    assert not any(terminated.any() for terminated, _ in ends)
    env.reset()
    assert not env.step(actions(env, 1)[0])[3].any()


def test_a_goal_terminates_and_does_not_truncate() -> None:
    env = RankAllocationVectorEnv(
        AllocationMdp(
            learner(2),
            IidSnr(),
            problem(),
            EnvConfig(1e4, horizon=3),
            stop=lambda reward: reward >= reward.max(),
        )
    )
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step(actions(env, 1)[0])
    assert terminated.tolist() == (reward == reward.max()).tolist()
    assert terminated.sum() == 1
    assert not truncated.any()


def test_a_batch_has_the_shapes_of_as_many_single_environments() -> None:
    batched = environment(3)
    single = RankAllocationEnv(learner(), config=EnvConfig(1e4))
    vectors, _ = batched.reset(seed=0)
    vector, _ = single.reset(seed=0)
    assert vectors.shape == (3, *vector.shape)
    assert vectors.dtype == vector.dtype == np.float32
    assert batched.single_observation_space == single.observation_space
    assert batched.single_action_space == single.action_space
    chosen = batched.action_space.sample()
    vectors, rewards, terminated, truncated, info = batched.step(chosen)
    vector, reward, done, cut, own = single.step(chosen[0])
    assert vectors.shape == (3, *vector.shape)
    assert rewards.shape == terminated.shape == truncated.shape == (3,)
    assert isinstance(reward, float)
    assert isinstance(done, bool)
    assert isinstance(cut, bool)
    assert {name: np.shape(x)[1:] for name, x in info.items()} == {
        name: np.shape(x) for name, x in own.items()
    }


def test_same_seed_same_episodes_other_seed_others() -> None:
    first, second, third = environment(2), environment(2), environment(2)
    for env, seed in ((first, 7), (second, 7), (third, 8)):
        env.reset(seed=seed)
    rows = [np.array(rollout(env, 10)) for env in (first, second, third)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    first.reset(seed=7)
    assert np.array_equal(rows[0], np.array(rollout(first, 10)))


def test_a_seed_does_not_tie_the_noise_of_the_loss_to_the_link() -> None:
    # One generator for both would make the first shadowing and the first noise the same number.
    process = GaussMarkovSnr(5.0, 6.0, 0.9)
    env = RankAllocationVectorEnv(AllocationMdp(learner(), process, problem(), EnvConfig(1e4)))
    zero = np.zeros((1, 6), dtype=np.int64)
    noise, snr = [], []
    for seed in range(400):
        vector, _ = env.reset(seed=seed)
        snr.append(vector[0, 0])
        noise.append(env.step(zero)[4]["task_loss"][0])
    assert abs(np.corrcoef(snr, noise)[0, 1]) < 4.5 / np.sqrt(400)


def test_ranks_survive_a_reset_without_a_seed() -> None:
    env = environment()
    assert not env.reset(seed=0)[0][0, 5:].any()
    action = np.array([[3, 2, 1, 0, 3, 2]])
    env.step(action)
    vector, _ = env.reset()
    assert vector[0, 5:] == pytest.approx(action[0] / 3)
    assert np.array_equal(env.mdp.observe().ranks, action)
    env.mdp.observe().ranks[:] = 0  # a copy
    assert np.array_equal(env.mdp.observe().ranks, action)
    assert not env.reset(seed=1)[0][0, 5:].any()


def test_what_was_received_is_paid_for_once_by_hand() -> None:
    # A rank of 8 parameters at 32 bits is 256 bits, a quarter of what 256 Hz carry in 4 s at 0 dB.
    utility = SyntheticUtility(np.array([[0.2, 0.1]]))
    env = RankAllocationEnv(
        SyntheticLearner(ONE, utility, noise_std=0.0),
        StaticSnr(0.0),
        problem(ONE, 0.4),
        EnvConfig(256.0, 4.0, horizon=6, payment="increase"),
    )
    env.reset(seed=0)
    steps = [env.step(np.array([rank])) for rank in (1, 2, 0, 2)]
    assert [info["link_cost"] for *_, info in steps] == pytest.approx([0.25, 0.25, 0.0, 0.0])
    assert [info["task_loss"] for *_, info in steps] == pytest.approx([0.5, 0.4, 0.7, 0.4])
    assert [reward for _, reward, *_ in steps] == pytest.approx([-0.6, -0.5, -0.7, -0.4])
    # What was received is shown, also after a step that put less of it to use.
    assert [vector[5] for vector, *_ in steps] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("payment", "kept"), [("plan", 1.0), ("increase", 0.0)])
def test_an_episode_that_pays_for_the_increase_is_a_delivery_of_its_own(
    payment: Any, kept: float
) -> None:
    env = environment(payment=payment)
    env.reset(seed=0)
    env.step(np.full((1, 6), 3))
    assert env.reset()[0][0, 5:].tolist() == [kept] * 6
    *_, info = env.step(np.full((1, 6), 3))
    assert info["link_cost"] > 0  # either way


def test_a_delivery_continues_identically_from_its_state() -> None:
    env, other = (environment(2, payment="increase") for _ in range(2))
    env.reset(seed=4)
    rollout(env, 3)
    other.mdp.load_state_dict(copy.deepcopy(env.mdp.state_dict()))
    other.mdp.learner.load_state_dict(copy.deepcopy(env.mdp.learner.state_dict()))
    assert np.array_equal(rollout(env, 3, seed=6), rollout(other, 3, seed=6))


def test_continues_identically_from_its_state() -> None:
    env = environment(2, horizon=6)
    env.reset(seed=4)
    rollout(env, 4)
    state = copy.deepcopy((env.mdp.state_dict(), env.mdp.learner.state_dict()))
    expected = rollout(env, 4, seed=6)
    other = environment(2, horizon=6)
    other.mdp.load_state_dict(state[0])
    other.mdp.learner.load_state_dict(state[1])
    rows = []
    ends = []
    for action in actions(other, 4, 6):
        vector, reward, _, truncated, _ = other.step(action)
        rows.append(np.column_stack([vector, reward]))
        ends.append(bool(truncated[0]))
    assert np.array_equal(expected, rows)
    assert ends == [False, True, True, True]


def test_the_bandwidth_varies_within_its_octaves_and_is_charged_for() -> None:
    env = environment(200, bandwidth_octaves=1.5)
    env.reset(seed=0)
    octaves = []
    for action in actions(env, 3):
        link = env.mdp.observe().link
        octaves.append(np.log2(link.bandwidth_hz / 1e4))
        vector, _, _, _, info = env.step(action)
        assert info["link_cost"] == pytest.approx(
            env.mdp.problem.link_costs.link_cost(action, link)
        )
        assert vector[:, 1] == pytest.approx(
            np.log10(env.mdp.observe().link.bandwidth_hz), rel=1e-6
        )
    drawn = np.array(octaves)
    assert not (drawn[0] == drawn[1]).any()
    # Uniform in [-1.5, 1.5]: of 600, the quarters hold 150 each, give or take 4.5 deviations.
    assert np.abs(np.histogram(drawn, 4, (-1.5, 1.5))[0] - 150).max() < 48
    assert np.abs(drawn).max() <= 1.5


def test_a_constant_bandwidth_draws_nothing() -> None:
    env, rng = environment(2), np.random.default_rng(3)
    env.reset(seed=3)
    expected = [IidSnr().start(rng, 2)]
    for action in actions(env, 3):
        assert np.array_equal(env.mdp.observe().link.snr_db, expected[-1].snr_db)
        assert env.mdp.observe().link.bandwidth_hz.tolist() == [1e4, 1e4]
        env.step(action)
        expected.append(IidSnr().advance(expected[-1], rng))
    assert env.mdp.state_dict()["rng"] == rng.bit_generator.state


def test_a_varying_bandwidth_continues_identically_from_its_state() -> None:
    env, other = (environment(2, bandwidth_octaves=1.0) for _ in range(2))
    env.reset(seed=4)
    rollout(env, 3)
    other.mdp.load_state_dict(copy.deepcopy(env.mdp.state_dict()))
    other.mdp.learner.load_state_dict(copy.deepcopy(env.mdp.learner.state_dict()))
    assert np.array_equal(
        env.mdp.observe().link.bandwidth_hz, other.mdp.observe().link.bandwidth_hz
    )
    assert np.array_equal(rollout(env, 3, seed=6), rollout(other, 3, seed=6))


def test_a_state_from_before_bandwidths_varied_is_still_read() -> None:
    env, other = environment(2), environment(2)
    env.reset(seed=4)
    state = env.mdp.state_dict()
    del state["bandwidth_hz"]
    other.mdp.load_state_dict(state)
    assert other.mdp.observe().link.bandwidth_hz.tolist() == [1e4, 1e4]


def test_what_lies_beyond_the_space_is_shown_as_its_bound() -> None:
    env = environment()
    link = LinkState(np.array([-120.0]), 1e4, 1e-9)
    text = TextStats(np.array([2.0]), np.array([0.0]))
    vector = to_vector(Observation(link, text, np.zeros((1, 6), dtype=np.int64)), 3)
    assert env.single_observation_space.contains(vector[0])
    assert vector[0, :3].tolist() == [-60.0, 4.0, -6.0]


@pytest.mark.parametrize(
    "action",
    [
        np.full((1, 6), 4),
        np.full((1, 6), -1),
        np.full((1, 6), 0.5),
        np.zeros((1, 5), dtype=int),
        np.zeros(6, dtype=int),
    ],
)
def test_actions_outside_the_space_are_refused_before_anything_changes(action: Any) -> None:
    env = environment()
    env.reset(seed=0)
    before = env.mdp.state_dict()
    with pytest.raises(ConfigError, match=r"0\.\.3"):
        env.step(action)
    after = env.mdp.state_dict()
    assert after["rng"] == before["rng"]
    assert np.array_equal(after["ranks"], before["ranks"])


def test_misuse_is_refused() -> None:
    with pytest.raises(ConfigError, match="call reset"):
        environment().mdp.observe()
    with pytest.raises(ConfigError, match="RankAllocationVectorEnv"):
        RankAllocationEnv(learner(2))
    with pytest.raises(ConfigError, match="horizon"):
        EnvConfig(horizon=0)
    for octaves in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="bandwidth_octaves"):
            EnvConfig(bandwidth_octaves=octaves)
    unknown: Any = "increases"
    with pytest.raises(ConfigError, match="did you mean 'increase'"):
        EnvConfig(payment=unknown)
    with pytest.raises(ConfigError, match="one integer seed"):
        environment(2).reset(seed=[1, 2])


def test_learner_and_problem_must_fit() -> None:
    with pytest.raises(ConfigError, match="same projections"):
        AllocationMdp(learner(), IidSnr(), problem(ONE))


def test_a_watcher_sees_every_step_with_its_link() -> None:
    seen = []
    mdp = AllocationMdp(
        learner(),
        IidSnr(),
        problem(),
        EnvConfig(1e4),
        on_step=lambda link, ranks, outcome: seen.append((link, ranks, outcome)),
    )
    mdp.reset(seed=0)
    observed = mdp.observe().link
    outcome = mdp.step(np.full((1, 6), 2))
    ((link, ranks, told),) = seen
    assert link.snr_db == observed.snr_db
    assert ranks.tolist() == [[2] * 6]
    assert told is outcome
