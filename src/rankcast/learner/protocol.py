"""The protocol between the MDP and the model that is fine-tuned.

`rankcast.learner.transformer.TransformerLearner` is the live model,
`rankcast.learner.synthetic.SyntheticLearner` a utility with a known optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from rankcast.errors import ModelError
from rankcast.records import AdapterLayout, FloatArray, IntArray, TextStats


@dataclass(frozen=True, slots=True)
class StepResult:
    """The losses of one training step under a plan, for B environments.

    Attributes:
        task_loss: (B,) U(r_t), the loss of this batch under the plan.
        reference_loss: (B,) the loss of the same batch under full rank, or None if it was not
            measured. The difference of the two has a small fraction of the noise of either.

    Raises:
        ModelError: a loss that is not a finite number, from which no belief could recover.
    """

    task_loss: FloatArray
    reference_loss: FloatArray | None = None

    def __post_init__(self) -> None:
        """Refuse losses that are not finite numbers."""
        for name in ("task_loss", "reference_loss"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                raise ModelError(
                    f"{name} is {value}: the training has diverged. Lower its learning rate, or "
                    f"check the learner that reported it."
                )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss and accuracy over one held-out split.

    Attributes:
        loss: mean task loss.
        accuracy: share of right answers in [0, 1] (of next tokens for a causal model).
        n_examples: how many were judged.
    """

    loss: float
    accuracy: float
    n_examples: int


@runtime_checkable
class Learner(Protocol):
    """A model, or a stand-in for one, that trains under a rank vector.

    One step of the MDP is `next_text()` (part of the observation), `apply(ranks)`, `step()`.
    """

    @property
    def layout(self) -> AdapterLayout:
        """The projections and their largest rank."""
        ...

    @property
    def n_envs(self) -> int:
        """B, the number of environments stepped at once; 1 for a live model."""
        ...

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; a live model keeps what it has learned."""
        ...

    def next_text(self) -> TextStats:
        """Return the statistics of the batch that the next `step` will train on."""
        ...

    def apply(self, ranks: IntArray) -> None:
        """Activate (B, N) ranks."""
        ...

    def step(self) -> StepResult:
        """Train one step under the active ranks and report its loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue bit-exactly."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        ...
