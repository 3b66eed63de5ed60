"""The MDP as Gymnasium environments: one link, or B links."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rankcast.allocation.level_problem import LevelProblem
from rankcast.allocation.problem import AllocationProblem
from rankcast.config.run import EnvConfig
from rankcast.env.mdp import AllocationMdp, BoolArray, Outcome
from rankcast.errors import ConfigError
from rankcast.learner.protocol import Learner
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.learner.synthetic_levels import synthetic_level_problem
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.processes import IidSnr, SnrProcess
from rankcast.records import AdapterLayout, FloatArray, Observation

NARROW_HZ = 10e3
"""Bandwidth of links over which coded adapters of a small encoder do not fit within a second."""
_LOW = (-60.0, 0.0, -6.0, 0.0, 0.0)
_HIGH = (60.0, 12.0, 6.0, 20.0, 1.0)


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
        mdp: the links and what they are stepped with.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, mdp: AllocationMdp) -> None:
        self.mdp, self.num_envs = mdp, mdp.n_envs
        self.single_observation_space = observation_space(mdp.layout)
        self.single_action_space = gym.spaces.MultiDiscrete(
            np.full(mdp.layout.n_projections, mdp.layout.r_max + 1)
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin B episodes; see `AllocationMdp.reset`."""
        if isinstance(seed, list):
            raise ConfigError("All copies share one generator; pass one integer seed.")
        super().reset(seed=seed, options=options)
        self.mdp.reset(seed)
        return self._vector(), {}

    def step(self, actions: Any) -> tuple[Any, FloatArray, Any, Any, dict[str, Any]]:
        """Take one step; see `AllocationMdp.step`.

        Raises:
            ConfigError: actions outside the action space, or no reset before.
        """
        outcome = self.mdp.step(actions)
        terminated, truncated = outcome.terminated, outcome.truncated
        return self._vector(), outcome.reward, terminated, truncated, _info(outcome)

    def _vector(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return to_vector(self.mdp.observe(), self.mdp.layout.r_max)


class RankAllocationEnv(gym.Env[Any, Any]):
    """Choose a rank for every projection at every step (`rankcast/RankAllocation-v0`).

    Observation (Box, float32): the state s_t of Sec. IV-A. Differs from the paper: the deadline is
    part of it, because users set it.

    | index | what | unit, range |
    |---|---|---|
    | 0 | SNR | dB, -60..60 |
    | 1 | log10 of the bandwidth W | log10 Hz, 0..12 |
    | 2 | log10 of the deadline T_max | log10 s, -6..6 |
    | 3 | lexical entropy H of the next batch | nats, 0..20 |
    | 4 | OOV rate ρ of the next batch | 0..1 |
    | 5..5+N-1 | active ranks, divided by r_max | 0..1 |

    Action (MultiDiscrete, N entries): the rank 0..r_max of every projection.

    Reward (Eq. 10): R_t = -U(r_t) - λ·η(r_t). A plan that misses the deadline (η > 1) is paid for,
    not refused: allocators, not the environment, guarantee Eq. 7; `info["arrives"]` says whether
    it arrived.

    Episode: T_env steps, then `truncated`. `terminated` only if a stopping rule is given and met.
    The active ranks survive a reset without a seed, as a device keeps its adapter.

    With `payment="increase"` an episode is the delivery of one adapter: it begins with rank 0, with
    or without a seed; η counts what the device does not have yet; what it has received stays there,
    is free, and is what the observation shows, also after a step that used less of it.

    Info of a step: `task_loss` U, `link_cost` η, `arrives`, and `reference_loss` where measured.

    Args:
        learner: what is fine-tuned (B = 1); None makes a synthetic one.
        process: how the SNR changes; None draws it from the paper's set -5..15 dB.
        problem: link costs and λ; None: exact FP32 payload at the AWGN rate, λ = 0.1.
        config: bandwidth, deadline and horizon.
        stop: see `AllocationMdp`.
        utility_seed: of the synthetic learner's utility.
        render_mode: none is supported.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        learner: Learner | None = None,
        process: SnrProcess | None = None,
        problem: AllocationProblem | None = None,
        config: EnvConfig | None = None,
        *,
        stop: Callable[[FloatArray], BoolArray] | None = None,
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
        if problem is None:
            costs = LinkCostModel.for_layout(chosen.layout, Awgn())
            problem = AllocationProblem(chosen.layout, costs)
        self.mdp = AllocationMdp(chosen, process or IidSnr(), problem, config, stop)
        batched = RankAllocationVectorEnv(self.mdp)
        self.observation_space = batched.single_observation_space
        self.action_space = batched.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; see the class."""
        super().reset(seed=seed, options=options)
        self.mdp.reset(seed)
        self.np_random = self.mdp.rng
        return self._vector(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; see the class.

        Raises:
            ConfigError: an action outside the action space.
        """
        outcome = self.mdp.step(np.asarray(action)[None])
        info = {name: value[0] for name, value in _info(outcome).items()}
        terminated, truncated = bool(outcome.terminated[0]), bool(outcome.truncated[0])
        return self._vector(), float(outcome.reward[0]), terminated, truncated, info

    def _vector(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return to_vector(self.mdp.observe(), self.mdp.layout.r_max)[0]


class LevelAllocationEnv(RankAllocationEnv):
    """Choose a level for every projection at every step (`rankcast/LevelAllocation-v0`).

    A level is a rank and a step of the quantiser, and η counts coded bits, the file's overhead
    included (`rankcast.codec.levels`). Spaces, reward, episode and info are those of
    `RankAllocationEnv`, with levels 0..K for ranks 0..r_max. `info["ranks"]` and
    `info["exponents"]` say what the levels are.

    Differs from the paper, which chooses ranks and pays 32 bits a parameter.

    Args:
        learner: what is fine-tuned (B = 1), given levels; None makes a synthetic one.
        process: how the SNR changes; None draws it from the paper's set -5..15 dB.
        problem: levels, link costs and λ; None for those of the synthetic learner.
        config: bandwidth, deadline and horizon; None for 10 kHz and one second, where coded
            adapters of this size do not fit.
        stop: see `AllocationMdp`.
        utility_seed: of the synthetic learner's utility.
        render_mode: none is supported.

    Raises:
        ConfigError: only one of learner and problem is given.
    """

    def __init__(
        self,
        learner: Learner | None = None,
        process: SnrProcess | None = None,
        problem: LevelProblem | None = None,
        config: EnvConfig | None = None,
        *,
        stop: Callable[[FloatArray], BoolArray] | None = None,
        utility_seed: int = 0,
        render_mode: str | None = None,
    ) -> None:
        if (learner is None) != (problem is None):
            raise ConfigError("Give both the learner and the problem of its levels, or neither.")
        if learner is None or problem is None:
            learner, problem = synthetic_level_problem(utility_seed)
        self.levels = problem.levels
        config = config or EnvConfig(bandwidth_hz=NARROW_HZ)
        super().__init__(learner, process, problem, config, stop=stop, render_mode=render_mode)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; see the class.

        Raises:
            ConfigError: an action outside the action space.
        """
        observed, reward, terminated, truncated, info = super().step(action)
        ranks, exponents = self.levels.chosen(np.asarray(action, dtype=np.int64))
        return observed, reward, terminated, truncated, {
            **info, "ranks": ranks, "exponents": exponents,
        }  # fmt: skip


def synthetic_learner(seed: int = 0, n_envs: int = 1) -> SyntheticLearner:
    """Return the synthetic learner that the environments use by default."""
    layout = transformer_layout()
    utility = SyntheticUtility.draw(np.random.default_rng(seed), layout)
    return SyntheticLearner(layout, utility, n_envs, seed=seed)


def register() -> None:
    """Register both environments with Gymnasium; importing `rankcast.env` does it."""
    for name in ("RankAllocation", "LevelAllocation"):
        if f"rankcast/{name}-v0" not in gym.registry:
            gym.register(f"rankcast/{name}-v0", entry_point=f"rankcast.env:{name}Env")


def _info(outcome: Outcome) -> dict[str, Any]:
    info: dict[str, Any] = {
        "task_loss": outcome.task_loss,
        "link_cost": outcome.link_cost,
        "arrives": outcome.link_cost <= 1.0,
    }
    if outcome.reference_loss is not None:
        info["reference_loss"] = outcome.reference_loss
    return info
