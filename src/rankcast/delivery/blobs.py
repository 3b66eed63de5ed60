"""Bytes that never change, and the names of things: what a device may make a path of."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from rankcast.errors import DeliveryError

LARGEST_BLOB = 2**30
"""Bytes."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


def is_sha256(text: object) -> bool:
    """Whether something is a SHA-256 in hexadecimal."""
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
