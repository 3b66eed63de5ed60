"""Describe a release of an adapter in one signed file that names every byte.

A release is one or more `.rcast` files of the same training, such as the adapter as trained and
after quantization-aware training for several sizes. Header and chunks of each are blobs, addressed
by the SHA-256 of their bytes, so that they never change and any cache may keep them. The manifest
is a target of The Update Framework; what it names is trusted because it is.

In the manifest's JSON, files are called `ladders` and chunks `rungs`: devices in the field read it.
Updates to a file (`codec.update`) stand beside its chunks, and copies of the base model
(`release.runs_on`), a proof (`release.proof`) and the versions that devices may go back to beside
the files, where programs that know none of them pass over them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeGuard

from rankcast.codec.container import Container
from rankcast.codec.header import BaseModel, header_bytes, is_fingerprint
from rankcast.errors import DeliveryError
from rankcast.release.proof import Proof
from rankcast.release.runs_on import MOST_COPIES, BaseCopy

LARGEST_BLOB = 2**30
"""Bytes."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
BASE_DIGITS = 16
_BASE = re.compile(rf"[0-9a-f]{{{BASE_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that never change.

    Attributes:
        sha256: of the bytes, in hexadecimal; also their address.
        n_bytes: their length.
    """

    sha256: str
    n_bytes: int


def blob_of(data: bytes) -> Blob:
    """Return the address of some bytes."""
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def checked_name(name: object) -> str:
    """Return an adapter's name, refusing what could be anything but a file's name.

    Raises:
        DeliveryError: other characters, or too long.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise DeliveryError(
            f"An adapter's name has lower-case letters, digits, dots, dashes and underscores, at "
            f"most 64, got {name!r}."
        )
    return name


def checked_sha256(text: object) -> str:
    """Return a SHA-256 in hexadecimal.

    Raises:
        DeliveryError: anything else.
    """
    if not isinstance(text, str) or not is_sha256(text):
        raise DeliveryError(f"A SHA-256 has 64 hexadecimal digits, got {text!r}.")
    return text


def checked_fingerprint(text: object) -> str:
    """Return the fingerprint of a base model, whole or cut.

    Raises:
        DeliveryError: anything else.
    """
    if not isinstance(text, str) or not is_fingerprint(text):
        raise DeliveryError(
            f"The fingerprint of a base model is a SHA-256 of 64 hexadecimal digits, or at least "
            f"the first 16 of them, got {text!r}."
        )
    return text


def is_sha256(text: object) -> bool:
    """Return whether something is a SHA-256 in hexadecimal."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def check_blob(blob: Blob) -> None:
    """Refuse an address or a length that cannot be.

    Raises:
        DeliveryError: one.
    """
    checked_sha256(blob.sha256)
    if isinstance(blob.n_bytes, bool) or not isinstance(blob.n_bytes, int):
        raise DeliveryError(f"A blob's length is a whole number, got {blob.n_bytes!r}.")
    if not 0 < blob.n_bytes <= LARGEST_BLOB:
        raise DeliveryError(f"A blob has 1 to {LARGEST_BLOB:,} bytes, got {blob.n_bytes}.")


LARGEST_MANIFEST = 2**20
"""Bytes."""
MOST_FILES = 64
MOST_CHUNKS = 4096
MOST_UPDATES = 16
"""To one file."""
MOST_OLDER = 64
"""Versions that devices may go back to."""
LARGEST_VERSION = 2**53
"""Beyond it JSON readers disagree about whole numbers."""
MOST_CHOICES = 1024
DEEPEST_TASK = 32
"""Levels of lists and objects in a task."""
_MALFORMED = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
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
class Update:
    """What makes a file of an older one, and of its first chunks the first chunks.

    Attributes:
        base: first `BASE_DIGITS` digits of the SHA-256 of the older file's header, which has the
            checksums of its chunks. Enough to choose: what comes out is checked in full.
        blob: the update itself.
    """

    base: str
    blob: Blob


def base_of(header: Blob) -> str:
    """Return by which name updates call the file that begins with a header."""
    return header.sha256[:BASE_DIGITS]


@dataclass(frozen=True, slots=True)
class Older:
    """A version that devices may go back to, because the publisher signs that they may.

    Attributes:
        version: of the release.
        blob: its manifest as `Manifest.listed` writes it.
    """

    version: int
    blob: Blob


@dataclass(frozen=True, slots=True)
class File:
    """One `.rcast` file.

    Attributes:
        header: what stands before its chunks, magic and digest included.
        chunks: in order.
        updates: what makes it of older files.
    """

    header: Blob
    chunks: tuple[Chunk, ...]
    updates: tuple[Update, ...] = ()

    @classmethod
    def of(cls, container: Container) -> File:
        """Return the file of a whole container.

        Raises:
            DeliveryError: chunks are missing.
        """
        if not container.is_whole:
            raise DeliveryError("Only whole files can be published; fetch the missing chunks.")
        chunks = tuple(
            Chunk(blob_of(chunk), entry.loss, entry.accuracy)
            for chunk, entry in zip(container.chunks, container.header.chunks, strict=True)
        )
        return cls(blob_of(header_bytes(container.header)), chunks)

    def blobs(self, n_chunks: int | None = None) -> tuple[Blob, ...]:
        """Return the header and the first chunks, all of them if left out, as they are joined."""
        return (self.header, *(chunk.blob for chunk in self.chunks[:n_chunks]))


@dataclass(frozen=True, slots=True)
class Choice:
    """The file that the planner of a release chose for a link.

    Attributes:
        rate_bps: of the link [bit/s].
        snr_db: of the link [dB].
        bandwidth_hz: of the link [Hz].
        file_index: in the release.
    """

    rate_bps: float
    snr_db: float
    bandwidth_hz: float
    file_index: int


PlannerName = Literal["solver", "policy"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release.

    Attributes:
        name: of the adapter: lower-case letters, digits, dots, dashes, underscores.
        version: 1 for the first release, one more for each.
        base: the model that it adapts; its fingerprint is not None.
        files: at least one; the first is the one to prefer at equal worth.
        task: for people and exporters, from the file's header.
        planner: `solver`: the best of all prefixes is looked for; `policy`: the file that a trained
            policy chose for such a link comes first.
        choices: the policy's, empty for the solver.
        runs_on: copies of the base model that the files run on, too.
        proof: what the adapter changes; None if nobody measured it.
        older: versions that devices may go back to, the newest first.
    """

    name: str
    version: int
    base: BaseModel
    files: tuple[File, ...]
    task: Mapping[str, Any]
    planner: PlannerName = "solver"
    choices: tuple[Choice, ...] = ()
    runs_on: tuple[BaseCopy, ...] = ()
    proof: Proof | None = None
    older: tuple[Older, ...] = ()

    def __post_init__(self) -> None:
        """Check everything that could lead a reader astray.

        Raises:
            DeliveryError: a name, version, digest or length outside its range.
        """
        checked_name(self.name)
        in_range = 1 <= self.version <= LARGEST_VERSION
        if not in_range or not 1 <= len(self.files) <= MOST_FILES:
            raise DeliveryError(
                f"A release has a version from 1 on and 1 to {MOST_FILES} files, got "
                f"{self.version} and {len(self.files)}."
            )
        if self.base.name is not None and not isinstance(self.base.name, str):
            raise DeliveryError(f"A base model's name is a text, got {self.base.name!r}.")
        if not is_fingerprint(self.base.fingerprint):
            raise DeliveryError(
                "A release names its base model by fingerprint, and this file has none. Name the "
                "base model's folder: rankcast pack --base-model DIR, or rankcast publish "
                "--base-model DIR."
            )
        for file in self.files:
            if not 1 <= len(file.chunks) <= MOST_CHUNKS:
                raise DeliveryError(f"A file has 1 to {MOST_CHUNKS} chunks.")
            for blob in file.blobs():
                check_blob(blob)
            _check_updates(file)
        if self.planner not in ("solver", "policy") or (self.planner == "policy") is not bool(
            self.choices
        ):
            raise DeliveryError("A release by a policy has its choices, one by the solver none.")
        for choice in self.choices:
            _check_choice(choice, len(self.files))
        if len(self.runs_on) > MOST_COPIES:
            raise DeliveryError(f"A release names at most {MOST_COPIES} copies of its base model.")
        _check_older(self.version, self.older)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every blob once."""
        return tuple(dict.fromkeys(blob for file in self.files for blob in file.blobs()))

    @property
    def update_blobs(self) -> tuple[Blob, ...]:
        """Every update once."""
        updates = (update for file in self.files for update in file.updates)
        return tuple(dict.fromkeys(update.blob for update in updates))

    def without_updates(self) -> Manifest:
        """Return the same files, to be fetched whole."""
        return replace(self, files=tuple(replace(file, updates=()) for file in self.files))

    def listed(self) -> bytes:
        """Return what later releases list of this one as an older version: its files alone."""
        return replace(self.without_updates(), older=()).to_bytes()

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        plain = asdict(self)
        plain["ladders"] = [
            {"header": file["header"], "rungs": file["chunks"]}
            | (
                {"updates": [{"base": u["base"], **u["blob"]} for u in file["updates"]]}
                if file["updates"]
                else {}
            )
            for file in plain.pop("files")
        ]
        for choice in plain["choices"]:
            choice["ladder"] = choice.pop("file_index")
        del plain["runs_on"], plain["proof"], plain["older"]
        if self.runs_on:
            plain["runs_on"] = [copy.to_plain() for copy in self.runs_on]
        if self.proof is not None:
            plain["proof"] = self.proof.to_plain()
        if self.older:
            plain["older"] = [{"version": x.version, **asdict(x.blob)} for x in self.older]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

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
            files = tuple(_file(x) for x in raw["ladders"][: MOST_FILES + 1])
            name, version, task = raw["name"], raw["version"], raw["task"]
            planner = raw.get("planner", "solver")
            choices = tuple(_choice(**x) for x in raw.get("choices", [])[: MOST_CHOICES + 1])
            copies = raw.get("runs_on", [])[: MOST_COPIES + 1]
            runs_on = tuple(BaseCopy.from_plain(x) for x in copies)
            proof = None if raw.get("proof") is None else Proof.from_plain(raw["proof"])
            listed = raw.get("older", [])[: MOST_OLDER + 1]
            older = tuple(Older(x["version"], _blob(x)) for x in listed)
        except _MALFORMED as error:
            raise DeliveryError(f"No manifest: {error}.") from error
        if not isinstance(version, int) or isinstance(version, bool) or not isinstance(task, dict):
            raise DeliveryError("No manifest: version or task has the wrong type.")
        if _depth(task) > DEEPEST_TASK:
            raise DeliveryError(f"No manifest: its task nests deeper than {DEEPEST_TASK} levels.")
        return cls(name, version, base, files, task, planner, choices, runs_on, proof, older)


def _check_older(version: int, older: tuple[Older, ...]) -> None:
    """Refuse versions that nobody could go back to.

    Raises:
        DeliveryError: too many, not older, not in order, or digests and lengths that cannot be.
    """
    if len(older) > MOST_OLDER:
        raise DeliveryError(f"A release names at most {MOST_OLDER} older versions.")
    for listed in older:
        check_blob(listed.blob)
        if isinstance(listed.version, bool) or not isinstance(listed.version, int):
            raise DeliveryError(f"A version is a whole number, got {listed.version!r}.")
        if listed.blob.n_bytes > LARGEST_MANIFEST:
            raise DeliveryError(f"No manifest has {listed.blob.n_bytes:,} bytes.")
    versions = [version, *(listed.version for listed in older), 0]
    if any(a <= b for a, b in pairwise(versions)):
        raise DeliveryError(
            f"Version {version} names older versions from the newest on, got {versions[1:-1]}."
        )


def _check_choice(choice: Choice, n_files: int) -> None:
    index = choice.file_index
    numbers = (choice.rate_bps, choice.snr_db, choice.bandwidth_hz)
    if not all(_is_number(x) for x in numbers) or min(choice.rate_bps, choice.bandwidth_hz) <= 0.0:
        raise DeliveryError(f"A choice is for a link with a positive rate, got {choice}.")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_files:
        raise DeliveryError(f"A choice names one of {n_files} files, got {index!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN, and for integers of any length


def _choice(*, ladder: int, **link: float) -> Choice:
    return Choice(**link, file_index=ladder)


def _check_updates(file: File) -> None:
    """Refuse updates that no file can have.

    Raises:
        DeliveryError: too many, or digests and lengths that cannot be.
    """
    if len(file.updates) > MOST_UPDATES:
        raise DeliveryError(f"A file has at most {MOST_UPDATES} updates, got {len(file.updates)}.")
    for update in file.updates:
        if not isinstance(update.base, str) or not _BASE.fullmatch(update.base):
            raise DeliveryError(
                f"An update names the file that it starts from by {BASE_DIGITS} hexadecimal "
                f"digits, got {update.base!r}."
            )
        check_blob(update.blob)


def _file(raw: Mapping[str, Any]) -> File:
    return File(
        _blob(raw["header"]),
        tuple(_chunk(r) for r in raw["rungs"][: MOST_CHUNKS + 1]),
        tuple(Update(u["base"], _blob(u)) for u in raw.get("updates", [])[: MOST_UPDATES + 1]),
    )


def _chunk(raw: Mapping[str, Any]) -> Chunk:
    return Chunk(_blob(raw["blob"]), _worth(raw["loss"]), _worth(raw["accuracy"]))


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
