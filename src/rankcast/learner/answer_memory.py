"""What teachers answer to training texts: each text is asked once.

Adapters that a small one learns from do not change, and training comes back to the same texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankcast.learner.batching import Batch


class AnswerMemory:
    """Mean answers of teachers, for classifiers: some numbers a text.

    Of several processes each remembers what it has asked for itself.

    Args:
        n_texts: of the training split.
    """

    def __init__(self, n_texts: int) -> None:
        self._known = np.zeros(n_texts, dtype=np.bool_)
        self._answers: Tensor | None = None

    def answers(self, batch: Batch, ask: Callable[[Batch], Tensor]) -> Tensor:
        """Return (B, C) answers; texts that have not been seen are asked for, and remembered.

        Args:
            batch: texts of the training split.
            ask: returns (b, C) answers to b of the texts.
        """
        (new,) = np.nonzero(~self._known[batch.indices])
        if new.size:
            found = ask(batch if new.size == len(batch.indices) else _rows(batch, new)).detach()
            if self._answers is None:
                self._answers = found.new_zeros(len(self._known), *found.shape[1:])
            self._answers[torch.from_numpy(batch.indices[new]).to(found.device)] = found
            self._known[batch.indices[new]] = True
        assert self._answers is not None  # a batch has texts
        return self._answers[torch.from_numpy(batch.indices).to(self._answers.device)]

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as copies."""
        (known,) = np.nonzero(self._known)
        if self._answers is None:
            return {"texts": known, "answers": None}
        return {"texts": known, "answers": self._answers[torch.from_numpy(known)].clone()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from `state_dict()`."""
        texts = np.asarray(state["texts"], dtype=np.int64)
        self._known[:] = False
        self._known[texts] = True
        self._answers = None
        if state["answers"] is not None:
            answers = torch.as_tensor(state["answers"]).to(device)
            self._answers = answers.new_zeros(len(self._known), *answers.shape[1:])
            self._answers[torch.from_numpy(texts).to(device)] = answers


def _rows(batch: Batch, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
    """Return some texts of a batch, padded as they are."""
    chosen = torch.from_numpy(rows).to(batch.input_ids.device)

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[chosen]

    return replace(
        batch,
        input_ids=batch.input_ids[chosen],
        attention_mask=batch.attention_mask[chosen],
        labels=of(batch.labels),
        indices=batch.indices[rows],
        answers=of(batch.answers),
    )
