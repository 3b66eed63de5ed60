"""Read text as people have it: other encodings and separators are named, never guessed at."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path

from rankcast.errors import RankcastError, nearest

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins as UTF-16 does
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_PACKED = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file or a workbook",
    b"PAR1\x15": "Parquet",
}


def read_text(path: Path, error: type[RankcastError]) -> str:
    """Return what a UTF-8 file holds, its line ends as they are, without its byte order mark.

    Raises:
        error: no such file; a packed one; another encoding, with how to change it; a NUL byte.
    """
    try:
        raw = path.read_bytes()
    except OSError as failed:
        raise error(f"{path} cannot be read: {failed.strerror}.") from failed
    packed = next((name for mark, name in _PACKED.items() if raw.startswith(mark)), "")
    if packed:
        raise error(f"{path} is {packed}, not text. Unpack it, or save the table as CSV.")
    wide = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "")
    head = raw[:400]
    nuls = abs(head[::2].count(0) - head[1::2].count(0))  # of letters, every other byte
    if wide or (len(head) > 3 and nuls > len(head) / 4):
        raise error(f"{path} is {wide or 'UTF-16'}, not UTF-8. {_remedy(wide or 'UTF-16')}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as failed:
        raise error(
            f"{path}, line {_line(raw, failed.start)}: the byte 0x{raw[failed.start]:02x} is not "
            f"UTF-8. Western text is most often in Windows-1252 or Latin-1. "
            f"{_remedy('WINDOWS-1252')}"
        ) from failed
    if "\0" in text:
        raise error(
            f"{path}, line {_line(raw, raw.index(0))}: there is a NUL byte. The file is damaged, "
            f"or it is no text; write it again, or remove what is broken."
        )
    return text


def _remedy(encoding: str) -> str:
    return (
        f"Save it as UTF-8 (in Excel: CSV UTF-8), or convert it: "
        f"iconv -f {encoding} -t UTF-8 OLD > NEW."
    )


def _line(raw: bytes, place: int) -> int:
    return len((raw[:place] + b".").splitlines())


def column_place(
    where: object, header: Sequence[str], name: str, error: type[RankcastError]
) -> int:
    """Return which cell of a row stands under a name.

    Raises:
        error: no column of that name, or more than one.
    """
    if header.count(name) > 1:
        raise error(
            f"{where}: {header.count(name)} columns are called {name!r}. Rename all but one."
        )
    if name in header:
        return header.index(name)
    hint = nearest(name, header) or "."
    separator = next((s for s in ",;\t|" if len(header) == 1 and s in header[0]), "")
    if separator:
        hint = (
            f": the columns seem to be separated by {separator!r}. Save it as CSV with commas "
            f"between columns, and points in decimals."
        )
    raise error(
        f"{where} has no column {name!r}{hint} It has: {', '.join(header)[:200] or 'nothing'}."
    )
