"""The protocol between the MDP and the model that is fine-tuned.

`rankcast.learner.transformer.TransformerLearner` is the live model,
`rankcast.learner.synthetic.SyntheticLearner` a utility with a known optimum.
"""

from __future__ import annotations

import math
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

    A language model is judged on the tokens of answers alone, where texts have prompts.

    Attributes:
        loss: mean task loss [nats]: of a text, or of a token for a causal model.
        accuracy: share of right answers in [0, 1] (of next tokens for a causal model).
        n_examples: how many texts were judged.
        exact_match: of a causal model: share of texts all of whose tokens are the likeliest, each
            given those before it; None for others.
    """

    loss: float
    accuracy: float
    n_examples: int
    exact_match: float | None = None

    @property
    def perplexity(self) -> float | None:
        """Of a token: exp(loss); None unless the model predicts tokens."""
        return None if self.exact_match is None else math.exp(min(self.loss, 700.0))

    def to_plain(self, suffix: str = "") -> dict[str, float]:
        """Return it for machines, without what does not apply.

        Args:
            suffix: of the names.
        """
        plain = {"loss": self.loss, "accuracy": self.accuracy}
        if self.exact_match is not None and self.perplexity is not None:
            plain |= {"perplexity": self.perplexity, "exact_match": self.exact_match}
        return {f"{name}{suffix}": value for name, value in plain.items()}

    @property
    def words(self) -> str:
        """Loss and accuracy for people, and what else applies."""
        if self.exact_match is None:
            return f"loss {self.loss:.3f}, accuracy {self.accuracy:.1%}"
        return (
            f"loss {self.loss:.3f} nats per token (perplexity {self.perplexity:.2f}), "
            f"{self.accuracy:.1%} of tokens and {self.exact_match:.1%} of texts right"
        )


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
