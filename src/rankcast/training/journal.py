"""The rows of a run, as JSON Lines and, where wanted, for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankcast.errors import CheckpointError


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


class Journal:
    """Appends rows until it is closed; a resumed run drops those that came after its checkpoint.

    Args:
        path: the JSONL file; None, for all but the first process, writes nothing.
        n_rows: rows that are kept.
        tensorboard: folder of TensorBoard's events; None for none.
        step: step that the run is at.

    Raises:
        CheckpointError: fewer than `n_rows` rows are left.
    """

    def __init__(
        self, path: Path | None, n_rows: int = 0, tensorboard: Path | None = None, step: int = 0
    ) -> None:
        self.n_rows = n_rows
        self._file, self._board = None, None
        if path is None:
            return
        kept = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        if len(kept) < n_rows:
            raise CheckpointError(
                f"{path} has {len(kept)} rows, but its checkpoint was written after {n_rows}. "
                f"Restore the file, or train again with --overwrite."
            )
        path.write_text("".join(kept[:n_rows]), "utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = None if tensorboard is None else _summary_writer(tensorboard, step)

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, kind: str, records: Sequence[Any], **more: Any) -> None:
        """Append records as rows of one kind.

        Args:
            kind: `step`, `episode` or `evaluation`.
            records: dataclasses.
            **more: what else each row holds, such as its step.
        """
        if self._file is None:
            return
        rows = [{"kind": kind} | asdict(record) | more for record in records]
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        self.n_rows += len(rows)
        if self._board is None:
            return
        for row in rows:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("step", "episode"):
                    self._board.add_scalar(f"{kind}/{name}", value, row["step"])


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind: `step`, `episode` or `evaluation`."""
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [row for row in rows if row["kind"] == kind]


def _summary_writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 takes a second

    return SummaryWriter(str(folder), purge_step=step or None)
