"""Prove that an engine answers with an adapter, by what the adapter changes.

Whoever publishes records, for a few prompts of token ids, how likely the base model and the adapter
on it hold a few next tokens. A device asks its engine the same with and without the adapter. A
quantised base shifts all answers, with and without the adapter alike, so that what is compared is
the *change* from one to the other: it has to be nearer to the recorded change than no change is.

Likelihoods are compared as square roots of probabilities, which counts what is likely and leaves
the far tail alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankcast.errors import DeliveryError

MOST_PROBES, MOST_IDS, MOST_TOKENS, MOST_ANSWERS = 8, 64, 16, 256
_LARGEST_ID = 2**31 - 1
_MOST_ERROR = 1.0
"""Of the change, as a share of the recorded one: at 1 it is as far away as no change at all."""
_LOWEST = -60.0
"""Logarithm of a probability that rounds to nothing [nats]."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, and what the base model alone says next.

    Attributes:
        prompt: token ids.
        tokens: ids of next tokens whose likelihood counts.
        base: logarithms of their probabilities under the base model alone [nats].
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    base: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ProbeAnswers:
    """What the adapter of one prefix says next.

    Attributes:
        file_index: of the release.
        n_chunks: of the prefix.
        logprobs: for each probe, of its tokens [nats].
    """

    file_index: int
    n_chunks: int
    logprobs: tuple[tuple[float, ...], ...]


class Answering(Protocol):
    """Says how likely an engine holds next tokens after a prompt."""

    def __call__(self, prompt: Sequence[int], tokens: Sequence[int]) -> Sequence[float]:
        """Return the logarithms of their probabilities [nats]."""
        ...


@dataclass(frozen=True, slots=True)
class Proof:
    """What an adapter changes, recorded where the release was published.

    Attributes:
        probes: prompts.
        answers: of prefixes of the release; in order of files and chunks.
    """

    probes: tuple[Probe, ...]
    answers: tuple[ProbeAnswers, ...]

    def __post_init__(self) -> None:
        """Check everything that could lead a reader astray.

        Raises:
            DeliveryError: a number outside its range, or lengths that do not fit.
        """
        if not 1 <= len(self.probes) <= MOST_PROBES or not 1 <= len(self.answers) <= MOST_ANSWERS:
            raise DeliveryError("A proof has prompts, and answers to them; neither too many.")
        for probe in self.probes:
            _check_ids(probe.prompt, MOST_IDS)
            _check_ids(probe.tokens, MOST_TOKENS)
            _check_logprobs(probe.base, len(probe.tokens))
        for answer in self.answers:
            if len(answer.logprobs) != len(self.probes):
                raise DeliveryError("A proof answers every prompt once.")
            for probe, logprobs in zip(self.probes, answer.logprobs, strict=True):
                _check_logprobs(logprobs, len(probe.tokens))

    def expected(self, file_index: int, n_chunks: int) -> ProbeAnswers | None:
        """Return the answers of a prefix, or of the nearest that was recorded of its file."""
        of_file = [answer for answer in self.answers if answer.file_index == file_index]
        return min(of_file, key=lambda a: abs(a.n_chunks - n_chunks), default=None)

    def judge(self, expected: ProbeAnswers, base: Answering, adapted: Answering) -> Verdict:
        """Ask an engine with and without the adapter, and compare the change with the recorded one.

        Args:
            expected: see `expected`.
            base: the engine without the adapter.
            adapted: the engine with it.
        """
        wanted, found = [], []
        for probe, logprobs in zip(self.probes, expected.logprobs, strict=True):
            wanted.append(change(probe.base, logprobs))
            before = base(probe.prompt, probe.tokens)
            found.append(change(before, adapted(probe.prompt, probe.tokens)))
        return Verdict.of(np.concatenate(wanted), np.concatenate(found))

    def to_plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "probes": [
                {"prompt": list(p.prompt), "tokens": list(p.tokens), "base": list(p.base)}
                for p in self.probes
            ],
            "answers": [
                {
                    "file_index": a.file_index, "n_chunks": a.n_chunks,
                    "logprobs": [list(row) for row in a.logprobs],
                }
                for a in self.answers
            ],
        }  # fmt: skip

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Self:
        """Rebuild one; fields that are not known are passed over.

        Raises:
            DeliveryError, KeyError, TypeError: something is missing or wrong.
        """
        probes = tuple(
            Probe(tuple(p["prompt"]), tuple(p["tokens"]), tuple(p["base"]))
            for p in raw["probes"][: MOST_PROBES + 1]
        )
        answers = tuple(
            ProbeAnswers(
                _count(a["file_index"], 0),
                _count(a["n_chunks"], 1),
                tuple(map(tuple, a["logprobs"])),
            )
            for a in raw["answers"][: MOST_ANSWERS + 1]
        )
        return cls(probes, answers)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an engine's change compares with the recorded one.

    Attributes:
        share: of the recorded change that is there; 1 is all of it, 0 none.
        error: distance of the two changes, as a share of the recorded one.
    """

    share: float
    error: float

    @classmethod
    def of(cls, wanted: NDArray[np.float64], found: NDArray[np.float64]) -> Self:
        """Compare two changes."""
        size = float(wanted @ wanted) or math.nan
        error = float(np.linalg.norm(found - wanted)) / math.sqrt(size)
        return cls(float(found @ wanted) / size, error)

    @property
    def passes(self) -> bool:
        """Whether the change is nearer to the recorded one than no change is, from both sides.

        The first says that the engine changed enough, the second that it did not change too much.
        """
        return self.share > 0.5 and self.error < _MOST_ERROR

    @property
    def words(self) -> str:
        """What was found, for people."""
        return (
            f"{self.share:.0%} of the change that it was published with is there, and the change "
            f"is off by {self.error:.0%} of it"
        )


def change(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """Return by how much square roots of probabilities differ, of logarithms [nats]."""
    low = [np.maximum(np.asarray(x, np.float64), _LOWEST) for x in (before, after)]
    return np.exp(low[1] / 2.0) - np.exp(low[0] / 2.0)


def _count(value: object, least: int) -> int:
    if type(value) is not int or not least <= value <= _LARGEST_ID:
        raise DeliveryError(f"A proof names files and chunks by number, got {value!r}.")
    return value


def _check_ids(ids: tuple[object, ...], most: int) -> None:
    if not 1 <= len(ids) <= most or any(
        type(x) is not int or not 0 <= x <= _LARGEST_ID for x in ids
    ):
        raise DeliveryError(f"A proof's prompts and tokens are 1 to {most} token ids, got {ids!r}.")


def _check_logprobs(values: tuple[object, ...], n: int) -> None:
    good = len(values) == n and all(
        isinstance(x, int | float) and not isinstance(x, bool) and -1e3 <= x <= 0.0 for x in values
    )
    if not good:
        raise DeliveryError(f"A proof has a logarithm of a probability per token, got {values!r}.")
