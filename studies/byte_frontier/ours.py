"""Ways of our own to make a file of at most so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankcast.config.learner import FinetuneConfig
from studies.byte_frontier.judging import Judge, Weights
from studies.byte_frontier.training import TaskTexts

ONE_PACKET, FEW_PACKETS = 1_200, 2_000
"""Bytes of a whole file: what a packet carries, and what the goal allows."""


@dataclass(frozen=True)
class Request:
    """What a file is made from.

    Attributes:
        task: name of the task.
        config: budget of the training, with the seed.
        texts: to learn from, and to choose on; what is judged is not for a maker.
        judge: measures weights, and has those of the base model.
        target_bytes: that the whole file may have.
        scratch: a folder that survives interruptions.
    """

    task: str
    config: FinetuneConfig
    texts: TaskTexts
    judge: Judge
    target_bytes: int
    scratch: Path


@dataclass(frozen=True)
class OurFile:
    """A file and what a decoder makes of it.

    Attributes:
        data: the whole file, header included.
        weights: what replaces weights of the base model, decoded from `data`.
        more: what else a row keeps, as JSON values.
    """

    data: bytes
    weights: Weights
    more: Mapping[str, Any] = field(default_factory=dict)


Maker = Callable[[Request], OurFile]
MAKERS: Mapping[str, Maker] = {}
"""By the name that stands in settings of jobs."""
TARGETS: Mapping[str, tuple[int, ...]] = {}
"""Bytes at which each of them is measured."""
LABELS: Mapping[str, str] = {}
"""What readers call each of them."""
