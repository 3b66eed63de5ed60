"""What a release of an adapter consists of: one signed file that names every byte.

A release is one or more ladders (`.rcast` files) of the same fine-tuning, such as the adapter as
trained and after finishes of several sizes. Header and chunks of each are blobs, addressed by the
SHA-256 of their bytes, so that they never change and any cache may keep them. The manifest is a
target of The Update Framework; what it names is trusted because it is.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

from rankcast.codec.container import Container, header_bytes
from rankcast.codec.header import BaseModel
from rankcast.delivery.blobs import Blob, blob_of, check_blob, checked_name, is_sha256
from rankcast.errors import DeliveryError

LARGEST_MANIFEST = 2**20
"""Bytes."""
MOST_LADDERS = 64
MOST_CHUNKS = 4096
LARGEST_VERSION = 2**53
"""Beyond it JSON readers disagree about whole numbers."""
MOST_CHOICES = 1024
DEEPEST_TASK = 32
"""Levels of lists and objects in a task."""
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rung:
    """A chunk, and what the prefix that ends with it is worth.

    Attributes:
        blob: its bytes.
        loss: expected of the prefix [nats]; None if not measured.
        accuracy: likewise, a share.
    """

    blob: Blob
    loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Ladder:
    """One `.rcast` file.

    Attributes:
        header: what stands before its chunks, magic and digest included.
        rungs: chunks in order.
    """

    header: Blob
    rungs: tuple[Rung, ...]

    @classmethod
    def of(cls, container: Container) -> Ladder:
        """Return the ladder of a whole container.

        Raises:
            DeliveryError: chunks are missing.
        """
        if not container.is_whole:
            raise DeliveryError("Only whole files can be published; fetch the missing chunks.")
        rungs = tuple(
            Rung(Blob(entry.sha256, entry.n_bytes), entry.loss, entry.accuracy)
            for entry in container.header.chunks
        )
        return cls(blob_of(header_bytes(container.header)), rungs)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which ladder the planner of a release chose for a link.

    Attributes:
        rate_bps: of the link [bit/s].
        snr_db: of the link [dB].
        bandwidth_hz: of the link [Hz].
        ladder: index in the release.
    """

    rate_bps: float
    snr_db: float
    bandwidth_hz: float
    ladder: int


PlannerName = Literal["solver", "policy"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release.

    Attributes:
        name: of the adapter: lower-case letters, digits, dots, dashes, underscores.
        version: 1 for the first release, one more for each.
        base: the model that it adapts; its fingerprint is not None.
        ladders: at least one; the first is the one to prefer at equal worth.
        task: for people and exporters, from the file's header.
        planner: `solver`: the best of all prefixes is looked for; `policy`: the ladder that a
            trained policy chose for such a link comes first.
        choices: the policy's, empty for the solver.
    """

    name: str
    version: int
    base: BaseModel
    ladders: tuple[Ladder, ...]
    task: Mapping[str, Any]
    planner: PlannerName = "solver"
    choices: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        """Check everything that could lead a reader astray.

        Raises:
            DeliveryError: a name, version, digest or length outside its range.
        """
        checked_name(self.name)
        in_range = 1 <= self.version <= LARGEST_VERSION
        if not in_range or not 1 <= len(self.ladders) <= MOST_LADDERS:
            raise DeliveryError(
                f"A release has a version from 1 on and 1 to {MOST_LADDERS} ladders, got "
                f"{self.version} and {len(self.ladders)}."
            )
        if self.base.name is not None and not isinstance(self.base.name, str):
            raise DeliveryError(f"A base model's name is a text, got {self.base.name!r}.")
        found = self.base.fingerprint
        if not is_sha256(found):
            raise DeliveryError(
                "A release names its base model by fingerprint; pack with rankcast pack RUN, or "
                "with --base-model."
            )
        for ladder in self.ladders:
            if not 1 <= len(ladder.rungs) <= MOST_CHUNKS:
                raise DeliveryError(f"A ladder has 1 to {MOST_CHUNKS} chunks.")
            for blob in (ladder.header, *(rung.blob for rung in ladder.rungs)):
                check_blob(blob)
        if self.planner not in ("solver", "policy") or (self.planner == "policy") is not bool(
            self.choices
        ):
            raise DeliveryError("A release by a policy has its choices, one by the solver none.")
        for choice in self.choices:
            _check_choice(choice, len(self.ladders))

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every blob once."""
        found = [b for x in self.ladders for b in (x.header, *(r.blob for r in x.rungs))]
        return tuple(dict.fromkeys(found))

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"),
                          allow_nan=False).encode()  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Rebuild a release.

        Raises:
            DeliveryError: too long, no JSON, or a field missing or wrong.
        """
        if len(data) > LARGEST_MANIFEST:
            raise DeliveryError(f"A manifest of {len(data):,} bytes is too long.")
        try:
            raw = json.loads(data, parse_constant=_finite, parse_float=_finite)
            base = BaseModel(raw["base"]["name"], raw["base"]["fingerprint"])
            ladders = tuple(_ladder(x) for x in raw["ladders"][: MOST_LADDERS + 1])
            name, version, task = raw["name"], raw["version"], raw["task"]
            planner = raw.get("planner", "solver")
            choices = tuple(Choice(**x) for x in raw.get("choices", [])[: MOST_CHOICES + 1])
        except _MALFORMED as error:
            raise DeliveryError(f"No manifest: {error}.") from error
        if not isinstance(version, int) or isinstance(version, bool) or not isinstance(task, dict):
            raise DeliveryError("No manifest: version or task has the wrong type.")
        if _depth(task) > DEEPEST_TASK:
            raise DeliveryError(f"No manifest: its task nests deeper than {DEEPEST_TASK} levels.")
        return cls(name, version, base, ladders, task, planner, choices)


def _check_choice(choice: Choice, n_ladders: int) -> None:
    index = choice.ladder
    numbers = (choice.rate_bps, choice.snr_db, choice.bandwidth_hz)
    if not all(_is_number(x) for x in numbers) or min(choice.rate_bps, choice.bandwidth_hz) <= 0.0:
        raise DeliveryError(f"A choice is for a link with a positive rate, got {choice}.")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_ladders:
        raise DeliveryError(f"A choice names one of {n_ladders} ladders, got {index!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN, and for integers of any length


def _ladder(raw: Mapping[str, Any]) -> Ladder:
    rungs: Sequence[Mapping[str, Any]] = raw["rungs"][: MOST_CHUNKS + 1]
    return Ladder(_blob(raw["header"]), tuple(_rung(r) for r in rungs))


def _rung(raw: Mapping[str, Any]) -> Rung:
    return Rung(_blob(raw["blob"]), _worth(raw["loss"]), _worth(raw["accuracy"]))


def _blob(raw: Mapping[str, Any]) -> Blob:
    return Blob(raw["sha256"], raw["n_bytes"])


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def _depth(value: Any) -> int:
    """Return how many levels of lists and objects a JSON value has, without recursion."""
    level, depth = [value], 0
    while True:
        inner = [x if isinstance(x, list) else list(x.values())
                 for x in level if isinstance(x, list | dict)]  # fmt: skip
        if not inner:
            return depth
        level, depth = [x for items in inner for x in items], depth + 1


def _worth(value: object) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise DeliveryError(f"Loss and accuracy are finite numbers, got {value!r}.")
    return float(value)
