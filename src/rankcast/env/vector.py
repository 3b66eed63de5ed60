"""B links stepped as one array operation: the MDP of Sec. IV-A as a vector environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from rankcast.env.config import EnvConfig
from rankcast.env.observing import observation_space, to_vector
from rankcast.errors import ConfigError
from rankcast.finetune.learner import Learner, StepResult
from rankcast.link.costs import LinkCostModel
from rankcast.link.process import SnrProcess, SnrState
from rankcast.records import FloatArray, IntArray, LinkState, Observation


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
        self._bandwidth_hz = np.full(self.num_envs, self.config.bandwidth_hz)
        self._step = 0
        # In force; where only the increase is paid for: received, and free from then on.
        self._ranks = np.zeros((self.num_envs, self.layout.n_projections), dtype=np.int64)

    def observe(self) -> Observation:
        """Return the state s_t as a record.

        Its ranks are those in force; where only the increase is paid for, those that were received.

        Raises:
            ConfigError: before the first reset.
        """
        return Observation(self._link(), self.learner.next_text(), self._ranks.copy())

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin B episodes with the ranks that are in force (0 at first); a seed restarts noise.

        Where only the increase is paid for, each episode is a new delivery and begins with rank 0.
        """
        if isinstance(seed, list):
            raise ConfigError("All copies share one generator; pass one integer seed.")
        super().reset(seed=seed, options=options)
        if seed is not None:
            self._np_random = np.random.default_rng(seed)
        if seed is not None or self.config.payment == "increase":
            self._ranks = np.zeros_like(self._ranks)
        # Another stream than the link's: one seed for both would tie the noise to the SNR.
        self.learner.reset(None if seed is None else _seed_of_learner(seed))
        self._snr = self.process.start(self.np_random, self.num_envs)
        self._bandwidth_hz = self._draw_bandwidth()
        self._step = 0
        return to_vector(self.observe(), self.layout.r_max), {}

    def step(self, actions: Any) -> tuple[Any, FloatArray, Any, Any, dict[str, Any]]:
        """Put the (B, N) ranks in force, train one step, pay for the link (Eq. 10).

        Raises:
            ConfigError: actions outside the action space, or no reset before.
        """
        link = self._link()
        ranks = self._checked(actions)
        self.learner.apply(ranks)
        result = self.learner.step()
        link_cost = self._deliver(ranks, link)
        reward = -result.task_loss - self.config.link_weight * link_cost
        self._step += 1
        assert self._snr is not None
        self._snr = self.process.advance(self._snr, self.np_random)
        self._bandwidth_hz = self._draw_bandwidth()
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
            "bandwidth_hz": self._bandwidth_hz.copy(),
            "ranks": self._ranks.copy(),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._np_random = np.random.default_rng()
        self._np_random.bit_generator.state = state["rng"]
        self._snr = None if state["snr"] is None else SnrState.from_arrays(state["snr"])
        if "bandwidth_hz" in state:  # older checkpoints are of a constant bandwidth
            self._bandwidth_hz = np.array(state["bandwidth_hz"])
        self._ranks = np.array(state["ranks"])
        self._step = int(state["step"])

    def _link(self) -> LinkState:
        """Return the B links of this moment."""
        if self._snr is None:
            raise ConfigError("The environment has no state yet; call reset() first.")
        return LinkState(
            self._snr.snr_db,
            self._bandwidth_hz.copy(),
            np.full(self.num_envs, self.config.deadline_s),
        )

    def _draw_bandwidth(self) -> FloatArray:
        """Return (B,) bandwidths of the next step [Hz]; a constant one draws nothing."""
        config, octaves = self.config, self.config.bandwidth_octaves
        if octaves == 0.0:
            return np.full(self.num_envs, config.bandwidth_hz)
        return config.bandwidth_hz * 2.0 ** self.np_random.uniform(-octaves, octaves, self.num_envs)

    def _deliver(self, ranks: IntArray, link: LinkState) -> FloatArray:
        """Take note of what the device now has; return (B,) η of what is paid for."""
        if self.config.payment == "plan":
            self._ranks = ranks
            return self.link_costs.link_cost(ranks, link)
        had = self._ranks
        self._ranks = np.maximum(had, ranks)
        return self.link_costs.link_cost(self._ranks, link, had)

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
