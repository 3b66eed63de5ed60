"""Live models for experiments: texts to train, probe and judge on, and plans judged by a run.

Every seed of a task has the same pool of judged texts: validation, test, and a slice of the
training texts that is kept out of training, together with whatever contains it or lies within it.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.errors import DataError
from rankcast.experiment.spec import RunContext
from rankcast.files import replace_file
from rankcast.finetune.config import FinetuneConfig
from rankcast.finetune.datasets import DatasetConfig, load_dataset
from rankcast.finetune.texts import DatasetSplits, TextDataset
from rankcast.finetune.transformer import TransformerLearner
from rankcast.records import FloatArray, IntArray
from rankcast.run.folder import load_state, save_state
from rankcast.run.schema import to_plain

CHECKPOINT_EVERY = 100
QUICK_TEXTS = 200
SHORTEST_HELD_OUT = 10  # words; shorter phrases occur all over the training texts
SHORTEST_REMOVED = 4  # words


@dataclass(frozen=True, slots=True)
class LiveTask:
    """A data set and how its texts are shared out.

    Attributes:
        name: of the task.
        folder: of its tables below the data folder.
        n_held_out: training texts that join the judged pool.
        n_probe: training texts from which those are drawn on which plans are probed. Texts that
            overlap with them leave the training, too.
        finetune: model and training; the seed is set per run.
        first: how many of the training texts that could be kept out to pass over, so that two
            tasks can have other texts.
    """

    name: str
    folder: str
    n_held_out: int
    n_probe: int
    finetune: FinetuneConfig
    first: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return the task as it stands in a job's settings, so that a changed task is run anew.

        `first` is left out where it is 0, as it was before there was such a setting.
        """
        plain = to_plain(self)
        if not self.first:
            del plain["first"]
        return plain

    def splits(self, data: Path | None) -> DatasetSplits:
        """Return train, probe (as `validation`) and the judged pool (as `test`).

        Raises:
            DataError: the data folder is not known or does not hold the task.
        """
        if data is None or not (data / self.folder).is_dir():
            raise DataError(
                f"This experiment trains on {self.folder}, which is not in {data}. Name the folder "
                f"that holds {self.folder}/train.tsv with --data, or set RANKCAST_DATA."
            )
        return _held_out(data / self.folder, self.n_held_out, self.n_probe, self.first)

    def splits_for(self, context: RunContext) -> DatasetSplits:
        """Return the splits for a job: at the quick scale few texts to probe and to judge.

        Raises:
            DataError: as `splits`.
        """
        splits = self.splits(context.data)
        return fewer(splits, QUICK_TEXTS if context.scale == "quick" else None)


@lru_cache(maxsize=2)
def _held_out(folder: Path, n_held_out: int, n_probe: int, first: int) -> DatasetSplits:
    """Read a folder's tables and split them, once for all jobs of a worker."""
    config = DatasetConfig(source=str(folder), text_column="sentence", label_column="label")
    return hold_out(load_dataset(config), n_held_out, n_probe, first)


def fewer(splits: DatasetSplits, most: int | None) -> DatasetSplits:
    """Return the splits with at most so many texts to probe and to judge, always the same."""
    return DatasetSplits(
        splits.train, splits.validation.sample(most, 0), splits.test.sample(most, 0)
    )


def hold_out(whole: DatasetSplits, n_held_out: int, n_probe: int, first: int = 0) -> DatasetSplits:
    """Keep a slice of the training texts out of training; see `LiveTask.splits`."""
    texts = whole.train.texts
    order = np.random.default_rng(0).permutation(len(texts)).tolist()
    long = [i for i in order if len(texts[i].split()) >= SHORTEST_HELD_OUT][first:]
    held, probe = long[:n_held_out], long[n_held_out : n_held_out + n_probe]
    away = [texts[i].strip() for i in (*held, *probe)]
    overlapping = _overlapping(texts, away)
    kept = [i for i in range(len(texts)) if i not in overlapping]
    pool = [whole.validation, whole.test, *([whole.train.subset(held)] if held else [])]
    return DatasetSplits(
        whole.train.subset(kept), whole.train.subset(probe), _joined(pool, whole.train.label_names)
    )


def _overlapping(texts: tuple[str, ...], away: list[str]) -> set[int]:
    """Return the indices of texts that lie within one of `away`, or contain one."""
    if not away:
        return set()
    haystack = "\n".join(away)
    inside = {
        i
        for i, text in enumerate(texts)
        if len(text.split()) >= SHORTEST_REMOVED and text.strip() in haystack
    }
    everything = "\n".join(texts)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    for phrase in away:
        at = everything.find(phrase)
        while at >= 0:
            inside.add(int(np.searchsorted(starts, at, side="right")) - 1)
            at = everything.find(phrase, at + 1)
    return inside


def _joined(parts: list[TextDataset], names: tuple[str, ...]) -> TextDataset:
    labels = tuple(y for part in parts for y in (part.labels or ()))
    return TextDataset(tuple(t for part in parts for t in part.texts), labels, names)


def trained(learner: TransformerLearner, ranks: IntArray, checkpoint: Path) -> TransformerLearner:
    """Train a learner to the end of its schedule, resuming from a checkpoint.

    Args:
        learner: what to train.
        ranks: (N,) ranks, or (K, N) of which every step draws one.
        checkpoint: where it is kept.
    """
    if checkpoint.is_file():
        learner.load_state_dict(load_state(checkpoint)["learner"])
    plans = np.atleast_2d(ranks)
    while learner.n_steps < learner.config.total_steps:
        rng = np.random.default_rng([learner.config.seed, learner.n_steps, 1])
        learner.apply(plans[rng.integers(len(plans))][None])
        learner.train_step()
        done = learner.n_steps == learner.config.total_steps
        if done or learner.n_steps % CHECKPOINT_EVERY == 0:
            save_state(checkpoint, {"learner": learner.state_dict()})
    return learner


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan on the pool of judged texts.

    Attributes:
        correct: (n,) whether each text was answered rightly.
        loss: mean loss [nats].
    """

    correct: np.ndarray[tuple[int], np.dtype[np.bool_]]
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())


class PlanJudge:
    """Judges plans on the real model; each plan once, whoever asks for it.

    Args:
        learner: the trained model.
        cache: folder of what was judged before; of this very model.
    """

    def __init__(self, learner: TransformerLearner, cache: Path) -> None:
        self.learner, self._cache = learner, cache
        cache.mkdir(parents=True, exist_ok=True)

    def __call__(self, ranks: IntArray) -> Judged:
        """Return how (N,) ranks fare on the pool."""
        key = hashlib.sha256(np.asarray(ranks, dtype=np.int64).tobytes()).hexdigest()[:24]
        path = self._cache / f"{key}.npz"
        if not path.is_file():
            loss, correct, _ = self.learner.judge_texts("test", np.asarray(ranks), None)
            replace_file(path, lambda partial: _save(partial, loss, correct))
        with np.load(path) as found:
            return Judged(found["correct"].astype(bool), float(found["loss"].mean()))


def _save(path: Path, loss: FloatArray, correct: FloatArray) -> None:
    with path.open("wb") as file:
        np.savez(file, loss=loss.astype(np.float32), correct=correct.astype(bool))


def pack(correct: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> str:
    """Return one bit a text, as text, so that paired statistics need only the result file."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def judgement(correct: Any, loss: float) -> dict[str, Any]:
    """Return what a row keeps of (n,) right answers and their mean loss [nats]."""
    right = np.asarray(correct, dtype=bool)
    return {
        "accuracy": float(right.mean()),
        "loss": loss,
        "correct": pack(right),
        "n_texts": len(right),
    }


def unpack(packed: str, n_texts: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return what `pack` packed."""
    bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=n_texts).astype(bool)
