"""The MDP of Sec. IV-A as Gymnasium environments: one link, or B links stepped as one operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rankcast.errors import ConfigError
from rankcast.finetune.learner import Learner, StepResult
from rankcast.finetune.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.fading import IidSnr, SnrProcess, SnrState
from rankcast.link.payload import LinkCostModel
from rankcast.records import AdapterLayout, FloatArray, IntArray, LinkState, Observation

N_STATE = 5  # entries of the observation vector that precede the ranks
_LOW = (-60.0, 0.0, -6.0, 0.0, 0.0)
_HIGH = (60.0, 12.0, 6.0, 20.0, 1.0)


@dataclass(frozen=True)
class EnvConfig:
    """What surrounds the learner.

    Attributes:
        bandwidth_hz: W_t [Hz], constant (the paper: 100 MHz).
        deadline_s: T_max [s] (the paper: 1 s).
        link_weight: λ of Eq. 10.
        horizon: T_env, steps of an episode; reaching it truncates.
    """

    bandwidth_hz: float = 100e6
    deadline_s: float = 1.0
    link_weight: float = 0.1
    horizon: int = 15

    def __post_init__(self) -> None:
        """Refuse an empty episode."""
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1 step, got {self.horizon}.")


def observation_space(layout: AdapterLayout) -> gym.spaces.Box:
    """Return the space of one observation vector (5 + N,)."""
    n = layout.n_projections
    low = np.array([*_LOW, *[0.0] * n], dtype=np.float32)
    high = np.array([*_HIGH, *[1.0] * n], dtype=np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


def to_vector(observation: Observation, r_max: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the (B, 5 + N) float32 vector of an observation; see `RankAllocationEnv`.

    What lies beyond the space, such as a very deep fade, is shown as its bound.
    """
    link, text = observation.link, observation.text
    head = np.column_stack(
        [
            link.snr_db,
            np.log10(link.bandwidth_hz),
            np.log10(link.deadline_s),
            text.lexical_entropy,
            text.oov_rate,
        ]
    )
    head = np.clip(head, _LOW, _HIGH)
    return np.concatenate([head, observation.ranks / r_max], axis=1).astype(np.float32)


class RankAllocationVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """B copies of `RankAllocationEnv` over one learner, stepped as one array operation.

    All copies share the horizon, so that they end together; autoreset is off: call `reset`.

    Args:
        learner: what is fine-tuned; its `n_envs` is B.
        process: how the SNR changes from step to step.
        link_costs: turns ranks and a link into η.
        config: bandwidth, deadline, λ and horizon.
        stop: maps the (B,) rewards of a step to whether each copy has reached its goal (the
            paper's early stopping); this terminates an episode, where the horizon truncates it.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        learner: Learner,
        process: SnrProcess,
        link_costs: LinkCostModel,
        config: EnvConfig | None = None,
        stop: Callable[[FloatArray], np.ndarray[Any, np.dtype[np.bool_]]] | None = None,
    ) -> None:
        self.learner, self.process, self.link_costs = learner, process, link_costs
        self.config = config or EnvConfig()
        self.layout = learner.layout
        self.num_envs = learner.n_envs
        self.single_observation_space = observation_space(self.layout)
        self.single_action_space = gym.spaces.MultiDiscrete(
            np.full(self.layout.n_projections, self.layout.r_max + 1)
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._stop = stop
        self._snr: SnrState | None = None
        self._step = 0
        self._ranks = np.zeros((self.num_envs, self.layout.n_projections), dtype=np.int64)

    def observe(self) -> Observation:
        """Return the state s_t as a record.

        Raises:
            ConfigError: before the first reset.
        """
        return Observation(self._link(), self.learner.next_text(), self._ranks.copy())

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin B episodes with the ranks that are in force (0 at first); a seed restarts noise."""
        if isinstance(seed, list):
            raise ConfigError("All copies share one generator; pass one integer seed.")
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._np_random = np.random.default_rng(seed)
            self._ranks = np.zeros_like(self._ranks)
        # Another stream than the link's: one seed for both would tie the noise to the SNR.
        self.learner.reset(None if seed is None else _seed_of_learner(seed))
        self._snr = self.process.start(self.np_random, self.num_envs)
        self._step = 0
        return to_vector(self.observe(), self.layout.r_max), {}

    def step(self, actions: Any) -> tuple[Any, FloatArray, Any, Any, dict[str, Any]]:
        """Put the (B, N) ranks in force, train one step, pay for the link (Eq. 10).

        Raises:
            ConfigError: actions outside the action space, or no reset before.
        """
        link = self._link()
        self._ranks = self._checked(actions)
        self.learner.apply(self._ranks)
        result = self.learner.step()
        link_cost = self.link_costs.link_cost(self._ranks, link)
        reward = -result.task_loss - self.config.link_weight * link_cost
        self._step += 1
        assert self._snr is not None
        self._snr = self.process.advance(self._snr, self.np_random)
        terminated = (
            np.zeros(self.num_envs, dtype=bool) if self._stop is None else self._stop(reward)
        )
        truncated = np.full(self.num_envs, self._step >= self.config.horizon)
        info = _info(result, link_cost)
        return to_vector(self.observe(), self.layout.r_max), reward, terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the learner's state (the learner has its own)."""
        return {
            "rng": self.np_random.bit_generator.state,
            "snr": None if self._snr is None else self._snr.to_arrays(),
            "ranks": self._ranks.copy(),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._np_random = np.random.default_rng()
        self._np_random.bit_generator.state = state["rng"]
        self._snr = None if state["snr"] is None else SnrState.from_arrays(state["snr"])
        self._ranks = np.array(state["ranks"])
        self._step = int(state["step"])

    def _link(self) -> LinkState:
        """Return the B links of this moment."""
        if self._snr is None:
            raise ConfigError("The environment has no state yet; call reset() first.")
        config = self.config
        return LinkState(
            self._snr.snr_db,
            np.full(self.num_envs, config.bandwidth_hz),
            np.full(self.num_envs, config.deadline_s),
        )

    def _checked(self, actions: Any) -> IntArray:
        """Return the actions as (B, N) ranks, or raise `ConfigError`."""
        given = np.asarray(actions)
        ranks = given.astype(np.int64)
        inside = given.shape == self._ranks.shape and (given == ranks).all()
        if not (inside and (ranks >= 0).all() and (ranks <= self.layout.r_max).all()):
            raise ConfigError(
                f"Actions are whole ranks in 0..{self.layout.r_max} of shape {self._ranks.shape}, "
                f"got {given!r}."
            )
        return ranks


class RankAllocationEnv(gym.Env[Any, Any]):
    """Which rank for every projection, for the link of this moment? (`rankcast/RankAllocation-v0`).

    Observation (Box, float32): the state s_t of Sec. IV-A. Differs from the paper: the deadline is
    part of it, because users set it.

    | index | what | unit, range |
    |---|---|---|
    | 0 | SNR | dB, -60..60 |
    | 1 | log10 of the bandwidth W | log10 Hz, 0..12 |
    | 2 | log10 of the deadline T_max | log10 s, -6..6 |
    | 3 | lexical entropy H of the next batch | nats, 0..20 |
    | 4 | OOV rate ρ of the next batch | 0..1 |
    | 5..5+N-1 | ranks in force, divided by r_max | 0..1 |

    Action (MultiDiscrete, N entries): the rank 0..r_max of every projection.

    Reward (Eq. 10): R_t = -U(r_t) - λ·η(r_t). A plan that misses the deadline (η > 1) is paid for,
    not refused: allocators, not the environment, guarantee Eq. 7; `info["arrives"]` tells.

    Episode: T_env steps, then `truncated`. `terminated` only if a stopping rule is given and met.
    The ranks in force survive a reset without a seed, as a device keeps its adapter.

    Info of a step: `task_loss` U, `link_cost` η, `arrives`, and `reference_loss` where measured.

    Args:
        learner: what is fine-tuned (B = 1); None makes a synthetic one.
        process: how the SNR changes; None draws it from the paper's set -5..15 dB.
        link_costs: turns ranks and a link into η; None: exact FP32 payload at the AWGN rate.
        config: bandwidth, deadline, λ and horizon.
        stop: see `RankAllocationVectorEnv`.
        utility_seed: of the synthetic learner's utility.
        render_mode: none is supported.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        learner: Learner | None = None,
        process: SnrProcess | None = None,
        link_costs: LinkCostModel | None = None,
        config: EnvConfig | None = None,
        *,
        stop: Callable[[FloatArray], np.ndarray[Any, np.dtype[np.bool_]]] | None = None,
        utility_seed: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        chosen = synthetic_learner(utility_seed) if learner is None else learner
        if chosen.n_envs != 1:
            raise ConfigError(
                f"This environment is single; a learner of {chosen.n_envs} copies belongs in "
                f"RankAllocationVectorEnv."
            )
        self.batched = RankAllocationVectorEnv(
            chosen,
            process or IidSnr(),
            link_costs or LinkCostModel.for_layout(chosen.layout, Awgn()),
            config,
            stop,
        )
        self.observation_space = self.batched.single_observation_space
        self.action_space = self.batched.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see the class."""
        super().reset(seed=seed)
        vector, info = self.batched.reset(seed=seed, options=options)
        self._np_random = self.batched.np_random
        return vector[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; see the class.

        Raises:
            ConfigError: an action outside the action space.
        """
        vector, reward, terminated, truncated, info = self.batched.step(np.asarray(action)[None])
        single = {name: value[0] for name, value in info.items()}
        return vector[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), single


def synthetic_learner(seed: int = 0, n_envs: int = 1) -> SyntheticLearner:
    """Return the synthetic learner that the environments use by default."""
    layout = transformer_layout()
    utility = SyntheticUtility.draw(np.random.default_rng(seed), layout)
    return SyntheticLearner(layout, utility, n_envs, seed=seed)


def register() -> None:
    """Register `rankcast/RankAllocation-v0` with Gymnasium; importing this module does it."""
    if "rankcast/RankAllocation-v0" not in gym.registry:
        gym.register("rankcast/RankAllocation-v0", entry_point="rankcast.env:RankAllocationEnv")


def _seed_of_learner(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])


def _info(result: StepResult, link_cost: FloatArray) -> dict[str, Any]:
    info: dict[str, Any] = {
        "task_loss": result.task_loss,
        "link_cost": link_cost,
        "arrives": link_cost <= 1.0,
    }
    if result.reference_loss is not None:
        info["reference_loss"] = result.reference_loss
    return info


register()
