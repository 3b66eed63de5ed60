"""The MDP of Sec. IV-A: B links over one learner, stepped as one array operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankcast.allocation.problem import AllocationProblem
from rankcast.config.run import EnvConfig
from rankcast.errors import ConfigError
from rankcast.learner.protocol import Learner
from rankcast.link.processes import SnrProcess, SnrState
from rankcast.records import FloatArray, IntArray, LinkState, Observation

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step of B links.

    Attributes:
        reward: (B,) R_t = -U(r_t) - λ·η(r_t) (Eq. 10).
        task_loss: (B,) U.
        link_cost: (B,) η of what is paid for.
        terminated: (B,) whether the goal was reached.
        truncated: (B,) whether the horizon was reached.
        reference_loss: (B,) loss of the same batches at full rank, where measured.
    """

    reward: FloatArray
    task_loss: FloatArray
    link_cost: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    reference_loss: FloatArray | None = None

    @property
    def done(self) -> bool:
        """Whether an episode is over; all links share the horizon."""
        return bool(self.terminated.any() or self.truncated.any())


class AllocationMdp:
    """B links that share a learner, a horizon and a generator of random numbers.

    Args:
        learner: what is fine-tuned; its `n_envs` is B.
        process: how the SNR changes from step to step.
        problem: layout, link costs and λ.
        config: bandwidth, deadline and horizon.
        stop: maps the (B,) rewards of a step to whether each link has reached its goal (the
            paper's early stopping); this terminates an episode, where the horizon truncates it.
        on_step: called after each step with its links, ranks and outcome.

    Raises:
        ConfigError: learner and problem have different projections.
    """

    def __init__(
        self,
        learner: Learner,
        process: SnrProcess,
        problem: AllocationProblem,
        config: EnvConfig | None = None,
        stop: Callable[[FloatArray], BoolArray] | None = None,
        *,
        on_step: Callable[[LinkState, IntArray, Outcome], None] | None = None,
    ) -> None:
        if learner.layout != problem.layout:
            raise ConfigError("Learner and problem must have the same projections and r_max.")
        self.learner, self.process, self.problem = learner, process, problem
        self.config = config or EnvConfig()
        self.layout, self.n_envs = learner.layout, learner.n_envs
        self.rng = np.random.default_rng()
        self._stop, self._on_step = stop, on_step
        self._snr: SnrState | None = None
        self._bandwidth_hz = np.full(self.n_envs, self.config.bandwidth_hz)
        self._step = 0
        # Active; where only the increase is paid for: received, and free from then on.
        self._ranks = np.zeros((self.n_envs, self.layout.n_projections), dtype=np.int64)

    def observe(self) -> Observation:
        """Return the state s_t.

        Its ranks are the active ones; where only the increase is paid for, those received.

        Raises:
            ConfigError: before the first reset.
        """
        return Observation(self._link(), self.learner.next_text(), self._ranks.copy())

    def reset(self, seed: int | None = None) -> None:
        """Begin B episodes with the active ranks (0 at first); a seed restarts all noise.

        Where only the increase is paid for, each episode is a new delivery and begins with rank 0.
        """
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        if seed is not None or self.config.payment == "increase":
            self._ranks = np.zeros_like(self._ranks)
        # Another stream than the link's: one seed for both would tie the noise to the SNR.
        self.learner.reset(None if seed is None else _seed_of_learner(seed))
        self._snr = self.process.start(self.rng, self.n_envs)
        self._bandwidth_hz = self._draw_bandwidth()
        self._step = 0

    def step(self, ranks: IntArray) -> Outcome:
        """Apply the (B, N) ranks, train one step, pay for the link (Eq. 10).

        Raises:
            ConfigError: ranks outside 0..r_max, or no reset before.
        """
        link, ranks = self._link(), self._checked(ranks)
        self.learner.apply(ranks)
        result = self.learner.step()
        held = self._ranks if self.config.payment == "increase" else None
        self._ranks = ranks if held is None else np.maximum(held, ranks)
        link_cost = self.problem.link_costs.link_cost(self._ranks, link, held)
        reward = -result.task_loss - self.problem.link_weight * link_cost
        self._step += 1
        assert self._snr is not None
        self._snr = self.process.advance(self._snr, self.rng)
        self._bandwidth_hz = self._draw_bandwidth()
        outcome = Outcome(
            reward,
            result.task_loss,
            link_cost,
            np.zeros(self.n_envs, dtype=bool) if self._stop is None else self._stop(reward),
            np.full(self.n_envs, self._step >= self.config.horizon),
            result.reference_loss,
        )
        if self._on_step is not None:
            self._on_step(link, ranks, outcome)
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the learner's state (the learner has its own)."""
        return {
            "rng": self.rng.bit_generator.state,
            "snr": None if self._snr is None else self._snr.to_arrays(),
            "bandwidth_hz": self._bandwidth_hz.copy(),
            "ranks": self._ranks.copy(),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]
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
            np.full(self.n_envs, self.config.deadline_s),
        )

    def _draw_bandwidth(self) -> FloatArray:
        """Return (B,) bandwidths of the next step [Hz]; a constant one draws nothing."""
        config, octaves = self.config, self.config.bandwidth_octaves
        if octaves == 0.0:
            return np.full(self.n_envs, config.bandwidth_hz)
        return config.bandwidth_hz * 2.0 ** self.rng.uniform(-octaves, octaves, self.n_envs)

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
