from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test, parallel_seed_test

from helpers.bands import LADDERS
from helpers.commands import fresh_python
from rankcast.band.cell import Cell, DemandConfig
from rankcast.band.features import FEATURES
from rankcast.band.ladder import Ladder
from rankcast.band.parallel import SharedBandEnv, parallel_env
from rankcast.errors import ConfigError

CELL = Cell(bandwidth_hz=20e3, n_slots=40)
WINDOWS = DemandConfig(4, shortest_s=1.0, longest_s=3.0)


def environment(ladders: tuple[Ladder, ...] = LADDERS) -> SharedBandEnv:
    return parallel_env(ladders, CELL, WINDOWS)


def test_pettingzoo_accepts_it() -> None:
    env = environment()
    parallel_api_test(env, num_cycles=100)
    assert env.metadata["name"] == "rankcast/SharedBand-v0"
    assert env.observation_space("device_0").shape == (len(FEATURES),)


def test_the_same_seed_is_the_same_episode() -> None:
    parallel_seed_test(environment)
    env = environment()
    assert episode(env, 0.5, seed=3) == episode(env, 0.5, seed=3)
    assert episode(env, 0.5, seed=3) != episode(env, 0.5, seed=4)


def episode(env: SharedBandEnv, share: float, seed: int = 0) -> tuple[float, list[set[str]]]:
    env.reset(seed=seed)
    total, present = 0.0, []
    while env.agents:
        agents = list(env.agents)
        present.append(set(agents))
        action = np.array([share], np.float32)
        seen, rewards, ended, cut, _ = env.step(dict.fromkeys(agents, action))
        assert set(seen) == set(rewards) == set(ended) == set(cut) == set(agents)
        assert all(env.observation_space(a).contains(seen[a]) for a in agents)
        total += sum(rewards.values())
    return total, present


def test_asking_for_more_than_there_is_is_normalised_and_asking_for_nothing_gains_nothing() -> None:
    env = environment()
    crowded, present = episode(env, 1.0)
    assert crowded > 0.0
    assert episode(env, 0.0)[0] == 0.0
    assert all(later <= sooner for sooner, later in pairwise(present))
    assert len(present) <= CELL.n_slots


def test_the_rewards_of_an_episode_are_the_worth_that_arrived() -> None:
    """A file of one bit arrives whole in any window, so each of four devices gains its worth."""
    tiny = Ladder(np.array([0.0, 1.0]), np.array([0.0, 0.25]))
    total, present = episode(environment((tiny,)), 0.2)
    assert total == pytest.approx(1.0)
    assert present[-1]  # it ended because the last file was complete, not at the horizon


def test_a_device_that_has_not_arrived_sees_nothing_and_takes_nothing() -> None:
    env = environment()
    seen, _ = env.reset(seed=3)
    waiting = [a for a in env.agents if seen[a][0] == 0.0]
    there = [a for a in env.agents if seen[a][0] == 1.0]
    assert waiting
    assert all((seen[a] == 0.0).all() for a in waiting)
    actions: Any = {a: np.ones(1, np.float32) for a in waiting}
    *_, info = env.step({**actions, **{a: np.zeros(1, np.float32) for a in there}})
    assert all(info[a]["airtime_s"] == 0.0 for a in waiting)


@pytest.mark.parametrize("action", [np.array([1.5]), np.array([-0.1]), np.array([np.nan]), [0, 0]])
def test_what_is_no_share_is_refused(action: Any) -> None:
    env = environment()
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="device_0 asks for a share"):
        env.step({"device_0": action})


def test_it_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="reset"):
        environment().step({})
    with pytest.raises(ConfigError, match="ladder"):
        environment(())
    script = (
        "import sys; sys.modules['pettingzoo'] = None\n"
        "import rankcast.band.lagrangian\n"
        "try:\n    import rankcast.band.parallel\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    assert "ConfigError This needs PettingZoo: pip install" in fresh_python(script).stdout


def test_the_room_needs_neither_torch_nor_pettingzoo() -> None:
    script = (
        "import sys, rankcast.band.lagrangian, rankcast.band.clairvoyant, rankcast.band.features\n"
        "print([m for m in ('torch', 'gymnasium', 'pettingzoo', 'scipy') if m in sys.modules])"
    )
    assert fresh_python(script).stdout.strip() == "[]"
