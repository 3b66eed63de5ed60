"""Parts of files, and files that have not changed: RFC 9110, sections 13 and 14."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*")
_TAG = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `start` to `stop`, which is not included, as in a slice."""

    start: int
    stop: int


class UnsatisfiableRangeError(ValueError):
    """A range that begins after the last byte."""


def requested_part(
    n_bytes: int, tag: str, range_header: str | None, if_range: str | None = None
) -> Part | None:
    """Return which part of a file is wanted; None for all of it.

    As RFC 9110 has it, a header that is no range of bytes is ignored, and so is a valid one if
    `If-Range` names other bytes. Several ranges at once are ignored too, which it allows.

    Args:
        n_bytes: of the file.
        tag: of the file, quotes included.
        range_header: the header `Range`.
        if_range: the header `If-Range`; a date never matches, for files here have tags.

    Raises:
        UnsatisfiableRangeError: no byte of the file is in the range.
    """
    if range_header is None or (if_range is not None and if_range.strip() != tag):
        return None
    match = _RANGE.fullmatch(range_header.strip())
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, stop = max(0, n_bytes - int(suffix)), n_bytes
    else:
        start, stop = int(first), min(n_bytes, int(last) + 1 if last else n_bytes)
        if last and int(last) < int(first):
            return None
    if start >= n_bytes or stop <= start:
        raise UnsatisfiableRangeError(f"The file has {n_bytes} bytes.")
    return Part(start, stop)


def is_unchanged(tag: str, if_none_match: str | None) -> bool:
    """Return whether the client has the file with this tag (`If-None-Match`, weak comparison)."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or tag in _TAG.findall(if_none_match)
