"""One link: the MDP of Sec. IV-A as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from rankcast.env.config import EnvConfig
from rankcast.env.vector import RankAllocationVectorEnv
from rankcast.errors import ConfigError
from rankcast.finetune.learner import Learner
from rankcast.finetune.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.link.capacity import Awgn
from rankcast.link.costs import LinkCostModel
from rankcast.link.fading import IidSnr
from rankcast.link.process import SnrProcess
from rankcast.records import FloatArray


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

    With `payment="increase"` an episode is the delivery of one adapter: it begins with rank 0, with
    or without a seed; η counts what the device lacks; what it has received stays there, is free,
    and is what the observation shows, also after a step that put less of it in force.

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
