"""Settings of the file that a run is to end in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from rankcast.errors import ConfigError

LEAST_BYTES = 200
"""A header and hardly more."""


@dataclass(frozen=True)
class CodecConfig:
    """A file of a given size, and how an adapter trains for it.

    Attributes:
        target_bytes: of the whole file; with it a run trains one adapter for this size instead of a
            policy for every link.
        prefix_bytes: sizes below it, ascending, at which the file's beginning is to be an adapter
            that was trained for that size. What comes later refines it.
        smaller_bytes: sizes below it, descending, of files beside it, to which the same weights are
            trained down once it is made. Each stands alone. Not with `prefix_bytes`.
        rank: components of each projection, of each size; by default as many as the bytes suggest.
        rounded_share: share of the training steps in which weights are rounded and bits have a
            price; the steps before train as usual.
        lr: what a weight moves at most in a training step, at the beginning of those, in quantiser
            steps; by default 0.012, or more where there are few steps.
        teachers: adapters in float32 that train first, at rank `finetune.r_max`, and whose mean
            answers the small one then learns beside the labels.
        teacher_share: share of the training steps that they have together.
        answer_weight: of their answers; the rest is that of the labels.
        plan_episodes: episodes after training in which a policy learns which projections each link
            is to get from which of the files; needs `smaller_bytes`.
        relative_step: quantiser step as a multiple of the root mean square of the weights, at
            their beginning; by default one at which the file is somewhat too large.

    Raises:
        ConfigError: a value out of its range.
    """

    target_bytes: int | None = None
    prefix_bytes: tuple[int, ...] = ()
    smaller_bytes: tuple[int, ...] = ()
    rank: int | None = None
    rounded_share: float = 0.75
    lr: float | None = None
    teachers: int = 2
    teacher_share: float = 0.4
    answer_weight: float = 0.7
    relative_step: float | None = None
    plan_episodes: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes, ascending; none if nothing is to have a given size."""
        return () if self.target_bytes is None else (*self.prefix_bytes, self.target_bytes)

    def __post_init__(self) -> None:
        """Check every range."""
        self._check_sizes()
        if not 0 < self.rounded_share < 1:
            raise ConfigError(
                f"rounded_share must be between 0 and 1, got {self.rounded_share}: weights that "
                f"have not been trained at all are zero, and stay so once they are rounded."
            )
        if self.teachers < 0 or not (0 < self.teacher_share < 1 and 0 <= self.answer_weight <= 1):
            raise ConfigError(
                f"teachers must be at least 0, teacher_share between 0 and 1, answer_weight from 0 "
                f"to 1, got {self.teachers}, {self.teacher_share} and {self.answer_weight}."
            )
        for name in ("rank", "lr", "relative_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"codec.{name} must be positive, got {value}.")

    def _check_sizes(self) -> None:
        """Check the sizes, and what makes sense with several alone."""
        if self.prefix_bytes and self.target_bytes is None:
            raise ConfigError("codec.prefix_bytes needs codec.target_bytes, the size of the whole.")
        sizes = (LEAST_BYTES - 1, *self.prefix_bytes, self.target_bytes or math.inf)
        if any(low >= high for low, high in pairwise(sizes)) and self.prefix_bytes:
            raise ConfigError(
                f"codec.prefix_bytes must ascend from at least {LEAST_BYTES} to less than "
                f"target_bytes, got {list(self.prefix_bytes)} and {self.target_bytes}."
            )
        if self.target_bytes is not None and self.target_bytes < LEAST_BYTES:
            raise ConfigError(
                f"target_bytes must be at least {LEAST_BYTES}, got {self.target_bytes}: a file has "
                f"a header beside its weights."
            )
        descending = (self.target_bytes or 0, *self.smaller_bytes, LEAST_BYTES - 1)
        if self.smaller_bytes and not (
            all(high > low for high, low in pairwise(descending)) and not self.prefix_bytes
        ):
            raise ConfigError(
                f"codec.smaller_bytes must descend from below target_bytes to at least "
                f"{LEAST_BYTES}, without prefix_bytes, got {list(self.smaller_bytes)}."
            )
        if self.plan_episodes < 0 or (self.plan_episodes and not self.smaller_bytes):
            raise ConfigError(
                f"codec.plan_episodes must be at least 0 and needs codec.smaller_bytes: one file "
                f"leaves nothing to choose; got {self.plan_episodes}."
            )
