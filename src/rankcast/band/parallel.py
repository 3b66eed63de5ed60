"""One cell as a PettingZoo parallel environment: every device is an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

from rankcast.band.cell import Cell, DemandConfig, draw_demands
from rankcast.band.delivery import Delivery, Frame
from rankcast.band.features import FEATURES, LIMIT, features
from rankcast.band.ladder import Ladder
from rankcast.errors import ConfigError

try:
    from pettingzoo import ParallelEnv
except ImportError as error:
    raise ConfigError("This needs PettingZoo: pip install 'rankcast[band]'.") from error

Vector = np.ndarray[Any, np.dtype[np.float32]]


class SharedBandEnv(ParallelEnv[str, Vector, Vector]):
    """Devices ask for shares of one band (`rankcast/SharedBand-v0`).

    Agents `device_0` to `device_{D-1}` are all there from the first slot. One leaves when its file
    is complete or its deadline is over (terminated), or at the end of the episode (truncated).

    Observation (Box, float32), what a device knows of itself, then of its cell:

    | index | what | unit |
    |---|---|---|
    | 0 | whether it can be served in this slot | 0 or 1 |
    | 1 | rate of this slot | log10 kbit/s |
    | 2 | mean rate over the fading | log10 kbit/s |
    | 3 | time left until the deadline | log10 s |
    | 4 | bits received, as a share of the file | 0..1 |
    | 5 | gain of the prefix in reach that gains most per bit | worth |
    | 6 | seconds of the whole band that it takes at the mean rate | log10 s |
    | 7 | gain of the longest prefix in reach | worth |
    | 8 | load: devices that can be served, as a share of all | 0..1 |
    | 9 | price of airtime (`rankcast.band.lagrangian.AirtimePlan`) | log10 worth/s |

    It has no entropy and OOV rate, which `LevelAllocation-v0` shows: files are packed, and nothing
    is trained here. Levels are what made the ladder; here they are its prefixes.

    Action (Box, one number in [0, 1]): share of the airtime wanted. Shares of a cell that add up to
    more than 1 are divided by their sum; those of devices that cannot be served count as 0.

    Reward: worth of the chunks that became whole in this slot. A chunk counts when its last bit
    arrives before the deadline.

    Args:
        ladders: each device draws one.
        cell: the band.
        config: how demands are drawn.

    Raises:
        ConfigError: PettingZoo is not installed (on import), or no ladder.
    """

    metadata: dict[str, Any] = {"name": "rankcast/SharedBand-v0", "render_modes": []}  # noqa: RUF012 - PettingZoo's own declaration

    def __init__(
        self,
        ladders: Sequence[Ladder],
        cell: Cell | None = None,
        config: DemandConfig | None = None,
    ) -> None:
        if not ladders:
            raise ConfigError("There must be at least one ladder.")
        self.ladders, self.cell = tuple(ladders), cell or Cell()
        self.config = config or DemandConfig()
        self.possible_agents = [f"device_{d}" for d in range(self.config.n_devices)]
        self.agents: list[str] = []
        self.render_mode = None
        self._rng = np.random.default_rng()
        self._delivery: Delivery | None = None
        box = gym.spaces.Box(-LIMIT, LIMIT, (len(FEATURES),), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, box)
        share = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_spaces = dict.fromkeys(self.possible_agents, share)
        # One space for each agent, always the same, so that sampling from it moves on.
        self.observation_space = cache(lambda agent: self.observation_spaces[agent])
        self.action_space = cache(lambda agent: self.action_spaces[agent])

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Vector], dict[str, dict[str, Any]]]:
        """Begin an episode with new demands and fading."""
        del options
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        demands = draw_demands(self.cell, self.ladders, self.config, self._rng)
        rates_bps = self.cell.rates_of(demands.mean_snr_db, self._rng)
        self._delivery = Delivery(self.cell, demands, rates_bps)
        self.agents = list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, Vector]) -> tuple[Any, Any, Any, Any, Any]:
        """Divide one slot.

        Raises:
            ConfigError: no reset before, or an action that is no share.
        """
        delivery = self._running()
        outcome = delivery.step(self._shares(delivery.frame(), actions))
        done = delivery.received_bits[0] >= delivery.demands.file_bits[0] - 1e-6
        late = delivery.slot >= delivery.demands.deadline[0]
        agents, index = self.agents, [self.possible_agents.index(a) for a in self.agents]
        rewards = {a: float(outcome.gain[0, d]) for a, d in zip(agents, index, strict=True)}
        ended = {a: bool(done[d] or late[d]) for a, d in zip(agents, index, strict=True)}
        cut = {a: outcome.over and not ended[a] for a in agents}
        airtime_s = {
            a: {"airtime_s": float(outcome.airtime_s[0, d])}
            for a, d in zip(agents, index, strict=True)
        }
        observations = self._observe()
        self.agents = [] if outcome.over else [a for a in agents if not ended[a]]
        return observations, rewards, ended, cut, airtime_s

    def _shares(self, frame: Frame, actions: Mapping[str, Vector]) -> np.ndarray[Any, Any]:
        wanted = np.zeros(frame.active.shape)
        for agent, action in actions.items():
            share = np.asarray(action, dtype=np.float64).reshape(-1)
            if share.shape != (1,) or not 0.0 <= share[0] <= 1.0:
                raise ConfigError(f"{agent} asks for a share in [0, 1], not {action!r}.")
            wanted[0, self.possible_agents.index(agent)] = share[0]
        wanted = np.where(frame.active, wanted, 0.0)
        return wanted / max(1.0, float(wanted.sum()))

    def _observe(self) -> dict[str, Vector]:
        delivery = self._running()
        if delivery.slot >= self.cell.n_slots:  # no slot is left to look at
            blank = np.zeros(len(FEATURES), dtype=np.float32)
            return {agent: blank.copy() for agent in self.agents}
        rows = features(delivery.frame())[0].astype(np.float32)
        return {agent: rows[self.possible_agents.index(agent)] for agent in self.agents}

    def _running(self) -> Delivery:
        if self._delivery is None:
            raise ConfigError("The environment has no state yet; call reset() first.")
        return self._delivery


def parallel_env(
    ladders: Sequence[Ladder], cell: Cell | None = None, config: DemandConfig | None = None
) -> SharedBandEnv:
    """Return the environment, under the name that PettingZoo's tools look for."""
    return SharedBandEnv(ladders, cell, config)
