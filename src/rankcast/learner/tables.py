"""Cells of a table in a file: TSV, CSV, JSON, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankcast.errors import DataError
from rankcast.learner.texts import shown
from rankcast.plain_text import column_place, read_text

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json", ".parquet")


def read_columns(path: Path, names: Sequence[str]) -> list[list[Any]]:
    """Return the cells of every named column.

    Rows without a single character in them are left out.

    Raises:
        DataError: an unknown suffix; a file that cannot be read or is empty; a column that is not
            there, or twice; a row with another number of cells than the header.
    """
    suffix = path.suffix.lower()
    if suffix in (".tsv", ".csv"):
        rows = _delimited_rows(path, names, tabs=suffix == ".tsv")
    elif suffix in (".jsonl", ".json"):
        rows = _json_rows(path, names)
    elif suffix == ".parquet":
        rows = _parquet_rows(path, names)
    else:
        raise DataError(
            f"Cannot tell the format of {path} from its suffix: use one of {', '.join(SUFFIXES)}."
        )
    if not rows:
        raise DataError(f"{path} is empty: it needs a header or keys, and at least one row.")
    return [list(column) for column in zip(*rows, strict=True)]


def _delimited_rows(path: Path, names: Sequence[str], *, tabs: bool) -> list[list[str]]:
    """Return rows of TSV, where a quote is an ordinary character, or of CSV, where it is not."""
    text = read_text(path, DataError)
    lines = io.StringIO(text, newline="")
    reader = (
        csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        if tabs
        else csv.reader(lines, strict=True)
    )
    rows: list[list[str]] = []
    limit = csv.field_size_limit(len(text) + 1)  # a setting of the module: put back below
    try:
        header = [name.strip() for name in next(filter(any, reader), [])]
        at = [column_place(path, header, name, DataError) for name in names] if header else []
        for row in reader:
            if len(row) != len(header) and any(row):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under {len(header)} "
                    f"columns. Check its separators and quotes."
                )
            if any(row):
                rows.append([row[place] for place in at])
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num} is not part of a readable table: {error}."
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _json_rows(path: Path, names: Sequence[str]) -> list[list[Any]]:
    """Return the rows of JSON Lines or of a JSON array, whose objects may name different keys."""
    rows = list(_objects(path))
    for name in names:
        without = [i for i, row in enumerate(rows) if name not in row]
        if without and len(without) == len(rows):
            column_place(path, list(rows[0]), name, DataError)
        if without:
            raise DataError(f"{path}: {name!r} is missing in rows {shown(without)}.")
    return [[row[name] for name in names] for row in rows]


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    text = read_text(path, DataError)
    whole = path.suffix.lower() == ".json" and text.lstrip().startswith("[")
    for number, line in enumerate([text] if whole else io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.rstrip(), object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            where = f"{path}, line {number + getattr(error, 'lineno', 1) - 1}"
            raise DataError(f"{where} is not JSON: {getattr(error, 'msg', error)}.") from error
        for row in value if whole else [value]:
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}: {str(row)[:40]} is not a JSON object with columns. "
                    f"Write an object a line, or in a .json file an array of objects."
                )
            yield row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)!r} stands in it twice")
    return row


def _parquet_rows(path: Path, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the rows of a Parquet file."""
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 an extra
    except ImportError as error:
        raise DataError(
            "Reading Parquet needs pyarrow: pip install 'rankcast[data]', or convert to TSV."
        ) from error
    try:
        table = parquet.ParquetFile(path).read()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}.") from error
    at = [column_place(path, table.column_names, name, DataError) for name in names]
    return list(zip(*(table.column(place).to_pylist() for place in at), strict=True))
