"""Settings of a whole run, and of the environment that a policy acts in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from rankcast.config.codec import CodecConfig
from rankcast.config.learner import DatasetConfig, FinetuneConfig
from rankcast.config.link import LinkConfig
from rankcast.config.policy import PolicyConfig, TrainingConfig
from rankcast.errors import ConfigError, check_choice

Payment = Literal["plan", "increase"]
"""Whether a step pays for all its ranks (the paper) or for what the device does not have yet."""


@dataclass(frozen=True)
class EnvConfig:
    """Settings of the MDP around a learner.

    Attributes:
        bandwidth_hz: W_t [Hz], constant (the paper: 100 MHz) unless `bandwidth_octaves` is set.
        deadline_s: T_max [s] (the paper: 1 s).
        horizon: T_env, steps of an episode; reaching it truncates.
        payment: `plan` pays for all ranks at every step (Eq. 10); `increase` only for what exceeds
            the ranks that the device has received in this delivery, and an episode is a delivery.
        bandwidth_octaves: o; at each step the bandwidth is W·2^u, u uniform in [-o, o] and
            independent of everything else.

    Raises:
        ConfigError: an empty episode, an unknown way of paying, or a negative spread.
    """

    bandwidth_hz: float = 100e6
    deadline_s: float = 1.0
    horizon: int = 15
    payment: Payment = "plan"
    bandwidth_octaves: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1 step, got {self.horizon}.")
        check_choice("payment", self.payment, get_args(Payment))
        if not 0.0 <= self.bandwidth_octaves < float("inf"):
            raise ConfigError(
                f"bandwidth_octaves must be at least 0 and finite, got {self.bandwidth_octaves}."
            )


@dataclass(frozen=True)
class RunConfig:
    """A run from the first text to the last picture.

    Attributes:
        data: what is learned from.
        finetune: the base model and how its adapters train.
        link: the radio link.
        codec: the file that the run is to end in, where it is to have a given size.
        policy: what the policy is made of.
        training: how the policy trains (Algorithm 1).
        steps: training steps in all, rounded up to whole episodes.
        horizon: steps T_env of an episode.
        eval_every: steps between two evaluations.
        eval_max_examples: texts of such an evaluation; none for all.
        checkpoint_every: episodes between two checkpoints.
        early_stopping: end early, as Sec. V-A of the paper does.
        patience: evaluations without improvement that early stopping allows.
        tensorboard: also log for TensorBoard.
        seed: seed of everything that has no seed of its own.
        output: folder of the run.

    Raises:
        ConfigError: a count below 1.
    """

    data: DatasetConfig = field(default_factory=DatasetConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    steps: int = 300
    horizon: int = 15
    eval_every: int = 100
    eval_max_examples: int | None = None
    checkpoint_every: int = 5
    early_stopping: bool = False
    patience: int = 5
    tensorboard: bool = True
    seed: int = 0
    output: str = "runs/run"

    def __post_init__(self) -> None:
        """Check every count."""
        for name in ("steps", "horizon", "eval_every", "checkpoint_every", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def total_steps(self) -> int:
        """Training steps in whole episodes."""
        return -(-self.steps // self.horizon) * self.horizon
