"""What a release may run on beside the base model that it was made for: copies in other precisions.

A copy has other bytes, such as those of a Q4_K_M GGUF, and so a fingerprint of its own. Whoever
publishes names the copies, and the signed manifest carries what a device needs to recognise its
own and to write the adapter for it without the model's configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rankcast.codec.header import is_fingerprint, same_base
from rankcast.errors import DeliveryError

CopyKind = Literal["gguf", "safetensors"]
MOST_COPIES = 32
_LONGEST_NAME = 200
_MOST_FIELDS = 32
"""Of an architecture."""


@dataclass(frozen=True, slots=True)
class BaseCopy:
    """A copy of the base model.

    Attributes:
        fingerprint: of its weights, in hexadecimal.
        kind: of its files.
        name: of its file or folder, for people.
        quantisation: such as `Q4_K_M` or `BF16`.
        n_bytes: of its weights.
        error: median relative error of its weights against the base model's, as it was measured
            when the release was published; None if it was not.
        architecture: of `GgufArchitecture.to_plain`; None where an adapter cannot be written for
            llama.cpp.
    """

    fingerprint: str
    kind: CopyKind
    name: str
    quantisation: str
    n_bytes: int
    error: float | None = None
    architecture: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check everything that could lead a reader astray.

        Raises:
            DeliveryError: a fingerprint, word or number outside its range.
        """
        if not is_fingerprint(self.fingerprint) or self.kind not in get_args(CopyKind):
            raise DeliveryError(
                f"A copy of a base model has a fingerprint and a kind of "
                f"{' or '.join(get_args(CopyKind))}, got {self.fingerprint!r} and {self.kind!r}."
            )
        for word in (self.name, self.quantisation):
            if not isinstance(word, str) or not word or len(word) > _LONGEST_NAME:
                raise DeliveryError(f"A copy's name and quantisation are texts, got {word!r}.")
        if type(self.n_bytes) is not int or self.n_bytes < 1:
            raise DeliveryError(f"A copy has a positive number of bytes, got {self.n_bytes!r}.")
        if self.error is not None and (type(self.error) is not float or not 0 <= self.error < 2):
            raise DeliveryError(f"A copy's error is a share from 0 to 2, got {self.error!r}.")
        if self.architecture is not None and not _is_flat(self.architecture):
            raise DeliveryError(f"No description of an architecture: {self.architecture!r}.")

    def words(self, base: str | None) -> str:
        """Return what it is, for people, such as `a Q4_K_M copy of gemma`."""
        article = "an" if self.quantisation[:1] in ("F", "I") else "a"  # as they are said
        return f"{article} {self.quantisation} copy of {base or 'the base model'} ({self.name})"

    def to_plain(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> BaseCopy:
        """Rebuild one; fields that are not known are passed over.

        Raises:
            DeliveryError, KeyError, TypeError: something is missing or wrong.
        """
        return cls(
            raw["fingerprint"], raw["kind"], raw["name"], raw["quantisation"], raw["n_bytes"],
            raw.get("error"), raw.get("architecture"),
        )  # fmt: skip


def copy_with(copies: Iterable[BaseCopy], fingerprints: Iterable[str]) -> BaseCopy | None:
    """Return the copy that has one of some fingerprints; None if there is none."""
    own = tuple(fingerprints)
    return next(
        (copy for copy in copies if any(same_base(copy.fingerprint, mine) for mine in own)), None
    )


def _is_flat(value: object) -> bool:
    """Whether something is a small object of names, numbers and truth values."""
    return (
        isinstance(value, Mapping)
        and len(value) <= _MOST_FIELDS
        and all(
            isinstance(x, str | int | bool | float) and len(str(x)) <= _LONGEST_NAME
            for pair in value.items()
            for x in pair
        )
    )
