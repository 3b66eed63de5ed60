"""Teachers are asked once about each text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rankcast.learner.answer_memory import AnswerMemory
from rankcast.learner.batching import Batch
from rankcast.records import TextStats

TEXT = TextStats(np.zeros(1), np.zeros(1))


def batch_of(*indices: int) -> Batch:
    ids = torch.tensor([[i, i + 1] for i in indices])
    return Batch(ids, torch.ones_like(ids), torch.tensor(indices), TEXT, np.array(indices))


class Teacher:
    """Answers with the first token, and remembers of which texts it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, batch: Batch) -> Tensor:
        self.asked.append(batch.indices.tolist())
        assert batch.labels is not None
        assert batch.labels.tolist() == batch.indices.tolist()
        return torch.stack([batch.input_ids[:, 0], -batch.input_ids[:, 0]], dim=1).float()


def test_each_text_is_asked_once() -> None:
    memory, teacher = AnswerMemory(10), Teacher()
    assert memory.answers(batch_of(3, 1), teacher).tolist() == [[3, -3], [1, -1]]
    assert memory.answers(batch_of(1, 7, 3, 9), teacher)[:, 0].tolist() == [1, 7, 3, 9]
    assert memory.answers(batch_of(9, 1), teacher)[:, 1].tolist() == [-9, -1]
    assert teacher.asked == [[3, 1], [7, 9]]


def test_it_continues_from_its_state() -> None:
    memory, teacher = AnswerMemory(10), Teacher()
    fresh = AnswerMemory(10)
    fresh.load_state_dict(memory.state_dict(), torch.device("cpu"))  # nothing was asked yet
    memory.answers(batch_of(3, 1), teacher)
    fresh.load_state_dict(memory.state_dict(), torch.device("cpu"))
    assert fresh.answers(batch_of(1, 3, 5), teacher)[:, 0].tolist() == [1, 3, 5]
    assert teacher.asked == [[3, 1], [5]]
