"""What a run writes down of each step and of each evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rankcast.env import RankAllocationVectorEnv
from rankcast.records import FloatArray


@dataclass(frozen=True, slots=True)
class StepRow:
    """One training step of the live model.

    Attributes:
        step: counted from 1.
        snr_db: SNR that the plan was made for [dB].
        reward: R_t.
        task_loss: U under the plan.
        reference_loss: loss of the same batch at full rank, where measured.
        link_cost: η.
        mean_rank: mean over the projections.
    """

    step: int
    snr_db: float
    reward: float
    task_loss: float
    reference_loss: float | None
    link_cost: float
    mean_rank: float


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """A look at the validation split under the policy's plan for one link.

    Attributes:
        step: training steps taken.
        snr_db: the link that the plan is for [dB].
        accuracy: share of right answers.
        loss: mean task loss.
        mean_rank: of the plan.
        reward: mean reward of the episodes since the evaluation before.
    """

    step: int
    snr_db: float
    accuracy: float
    loss: float
    mean_rank: float
    reward: float


class RecordingEnv(RankAllocationVectorEnv):
    """The environment of one live model, which also writes down its steps.

    Args:
        *args: see `RankAllocationVectorEnv`.

    Attributes:
        on_step: called with each row, if set.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.on_step: Callable[[StepRow], None] | None = None
        self.n_steps = 0
        self._rows: list[StepRow] = []

    def step(self, actions: Any) -> tuple[Any, FloatArray, Any, Any, dict[str, Any]]:
        """Take one step, see `RankAllocationVectorEnv.step`, and write it down."""
        snr_db = float(self.observe().link.snr_db[0])
        vector, reward, terminated, truncated, info = super().step(actions)
        self.n_steps += 1
        reference = info.get("reference_loss")
        row = StepRow(
            self.n_steps,
            snr_db,
            float(reward[0]),
            float(info["task_loss"][0]),
            None if reference is None else float(reference[0]),
            float(info["link_cost"][0]),
            float(self.observe().ranks.mean()),
        )
        self._rows.append(row)
        if self.on_step is not None:
            self.on_step(row)
        return vector, reward, terminated, truncated, info

    def take_rows(self) -> list[StepRow]:
        """Return the rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the learner's state."""
        return {**super().state_dict(), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        super().load_state_dict(state)
        self.n_steps = int(state["n_steps"])


def as_row(kind: str, record: Any) -> dict[str, Any]:
    """Return a record as a row of the journal."""
    return {"kind": kind, **asdict(record)}
