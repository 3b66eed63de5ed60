"""The rows of a run: JSON Lines, and TensorBoard where wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rankcast.errors import CheckpointError


class Journal:
    """Appends rows; a resumed run drops the rows that came after its checkpoint.

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

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, each with its `kind` and `step`."""
        if self._file is None:
            return
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()
        self.n_rows += len(rows)
        if self._board is None:
            return
        for row in rows:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("step", "episode"):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind: `step`, `episode` or `evaluation`."""
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return [row for row in rows if row["kind"] == kind]


def _summary_writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 takes a second

    return SummaryWriter(str(folder), purge_step=step or None)
