"""Accuracy on the real model: judge plans, keep a bit for each text, compare answers in pairs.

Every plan answers the same pool of texts, so differences are taken text by text.

Shapes: S seeds, `n` judged texts, `N` projections.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import ConfigError
from rankcast.files import replace_file
from rankcast.learner.transformer import TransformerLearner
from rankcast.records import FloatArray, IntArray
from studies.harness.spec import Claim, Row, Series, Verdict
from studies.report.statistics import Estimate, pooled_bootstrap


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan on the pool of judged texts.

    Attributes:
        correct: (n,) whether each text was answered correctly.
        loss: mean loss [nats].
    """

    correct: NDArray[np.bool_]
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return float(self.correct.mean())


class PlanJudge:
    """Judges plans on the real model, each plan once.

    Args:
        learner: the trained model.
        cache: folder of what was judged before; of this very model.
    """

    def __init__(self, learner: TransformerLearner, cache: Path) -> None:
        self.learner, self._cache = learner, cache
        cache.mkdir(parents=True, exist_ok=True)

    def __call__(self, ranks: IntArray) -> Judged:
        """Return how (N,) ranks do on the pool."""
        key = hashlib.sha256(np.asarray(ranks, dtype=np.int64).tobytes()).hexdigest()[:24]
        path = self._cache / f"{key}.npz"
        if not path.is_file():
            loss, correct, _ = self.learner.judge_texts("test", np.asarray(ranks), None)
            replace_file(path, lambda partial: _save(partial, loss, correct))
        with np.load(path) as kept:
            return Judged(kept["correct"].astype(bool), float(kept["loss"].mean()))


def _save(path: Path, loss: FloatArray, correct: FloatArray) -> None:
    with path.open("wb") as file:
        np.savez(file, loss=loss.astype(np.float32), correct=correct.astype(bool))


def judgement(correct: Any, loss: float) -> dict[str, Any]:
    """Return what a row keeps of (n,) correct answers and their mean loss [nats]."""
    right = np.asarray(correct, dtype=bool)
    return {
        "accuracy": float(right.mean()),
        "loss": loss,
        "correct": pack(right),
        "n_texts": len(right),
    }


def judged_plans(
    judge: PlanJudge, plans: Mapping[float, IntArray], judge_db: Sequence[float]
) -> list[dict[str, Any]]:
    """Return accuracy and answers of the plans for some links [dB]."""
    judgements = [(snr_db, judge(plans[snr_db])) for snr_db in judge_db]
    return [{"snr_db": snr_db, **judgement(j.correct, j.loss)} for snr_db, j in judgements]


def pack(correct: NDArray[np.bool_]) -> str:
    """Return one bit a text, as text, so that paired statistics need only the result file."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def unpack(packed: str, n_texts: int) -> NDArray[np.bool_]:
    """Return what `pack` packed."""
    bits = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.unpackbits(bits, count=n_texts).astype(bool)


def pack_groups(groups: IntArray) -> str:
    """Return as text one bit for each of n texts: whether it begins another group.

    Args:
        groups: (n,) group of each text; texts of one group follow one another.

    Raises:
        ConfigError: they do not.
    """
    begins = np.ones(len(groups), dtype=bool)
    begins[1:] = groups[1:] != groups[:-1]
    if begins.sum() != len(np.unique(groups)):
        raise ConfigError("Texts of one group must follow one another: sort the texts by group.")
    return pack(begins)


def unpack_groups(packed: str, n_texts: int) -> IntArray:
    """Return (n,) group of each text, numbered in their order, of what `pack_groups` packed."""
    return np.cumsum(unpack(packed, n_texts)) - 1


@dataclass(frozen=True)
class Answers:
    """Who answered which judged text correctly, seed by seed.

    Attributes:
        correct: (S, n) of S seeds and n texts.
        seeds: S seeds.
        groups: (n,) group of each text; intervals resample whole groups. None where each text is a
            group of its own.
    """

    correct: FloatArray
    seeds: tuple[int, ...]
    groups: IntArray | None = None

    @classmethod
    def of(
        cls, judgements: Iterable[tuple[int, Mapping[str, Any]]], groups: IntArray | None = None
    ) -> Answers | None:
        """Return the answers of seeds and their judgements; None if there are none."""
        pairs = list(judgements)
        if not pairs:
            return None
        correct = [unpack(seen["correct"], seen["n_texts"]) for _, seen in pairs]
        return cls(np.array(correct, dtype=np.float64), tuple(seed for seed, _ in pairs), groups)

    @cached_property
    def accuracy(self) -> Estimate:
        """Share of correct answers, resampling seeds and texts."""
        return pooled_bootstrap(self.correct, 0, groups=self.groups)

    def shared(self, other: Answers) -> tuple[int, ...]:
        """Return the seeds that both have; none where they were asked different texts."""
        if self.correct.shape[1] != other.correct.shape[1]:
            return ()
        return tuple(seed for seed in self.seeds if seed in other.seeds)

    def of_seed(self, seed: int) -> FloatArray:
        """Return the (n,) answers of one seed."""
        return self.correct[self.seeds.index(seed)]

    def minus(self, other: Answers) -> Estimate:
        """Return the paired difference over the seeds and texts that both have.

        Raises:
            ConfigError: no seed in common, or other texts.
        """
        both = self.shared(other)
        if not both:
            raise ConfigError(
                f"Seeds {self.seeds} on {self.correct.shape[1]} texts cannot be paired with seeds "
                f"{other.seeds} on {other.correct.shape[1]}. Judge both on the same texts."
            )
        mine, theirs = (np.array([a.of_seed(seed) for seed in both]) for a in (self, other))
        return pooled_bootstrap(mine - theirs, 0, groups=self.groups)


def live_answers(rows: Sequence[Row], snr_db: float) -> Answers | None:
    """Return the answers under the plans for one link, of the rows that were judged live."""
    return Answers.of(
        (row.job.seed, seen)
        for row in rows
        for seen in row.values["live"]
        if seen["snr_db"] == snr_db
    )


def direct_answers(rows: Sequence[Row]) -> Answers | None:
    """Return the answers of rows that hold one plan each, such as AdaLoRA's."""
    return Answers.of((row.job.seed, row.values) for row in rows)


def percent(estimate: Estimate | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return a share as percent with its interval, or a dash."""
    return "–" if estimate is None else f"{estimate.scaled(100):{'+' if sign else ''}.{digits}f} %"


def points(difference: Estimate) -> str:
    """Return a difference in accuracy in points, with its interval."""
    return f"{difference.scaled(100):+.2f}"


def points_claim(
    claim: str,
    difference: Estimate,
    verdict: Verdict,
    seeds: tuple[int, ...],
    note: str,
    *,
    paper: str = "",
    more: str = "",
) -> Claim:
    """Return a claim about a difference in accuracy, in points; `more` follows the number."""
    ours = f"{100 * difference.value:+.2f} points{more}"
    return Claim(claim, paper, ours, difference.scaled(100).interval, verdict, seeds, note)


def accuracy_series(label: str, points: Iterable[tuple[float, Answers]]) -> Series:
    """Return accuracies [%] with their intervals as a line over some x."""
    ordered = sorted(points, key=lambda point: point[0])
    accuracy = [answers.accuracy.scaled(100) for _, answers in ordered]
    return Series(
        label,
        [x for x, _ in ordered],
        [a.value for a in accuracy],
        [a.low for a in accuracy],
        [a.high for a in accuracy],
    )
