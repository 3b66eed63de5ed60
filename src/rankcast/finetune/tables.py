"""Read labelled texts from TSV, CSV, JSON Lines and Parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankcast.errors import DataError, nearest
from rankcast.finetune.texts import TextDataset, shown

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")


def load_table(
    path: str | Path,
    text_column: str,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
) -> TextDataset:
    """Read a table whose format its suffix names.

    Args:
        path: a `.tsv`, `.csv`, `.jsonl` or `.parquet` file with named columns.
        text_column: the column of texts.
        label_column: the column of classes, whole numbers or words; None for no labels.
        label_names: the classes in order. Without them, the distinct labels found, sorted.

    Raises:
        DataError: no such file, an unknown suffix, an empty file, a missing column, a broken row,
            blank texts, or a label that is not one of `label_names`.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file {path}{nearest(path.name, siblings)}.")
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path} is empty: it needs a header or keys, and at least one row.")
    texts = tuple(_text(value) for value in _column(path, rows, text_column))
    if label_column is None:
        return _in_file(path, texts, None, ())
    values = _column(path, rows, label_column)
    names = tuple(label_names) if label_names is not None else sorted_labels(path, values)
    return _in_file(path, texts, label_indices(path, values, names), names)


def _in_file(
    path: Path, texts: tuple[str, ...], labels: tuple[int, ...] | None, names: tuple[str, ...]
) -> TextDataset:
    """Build the data set and name the file in whatever is wrong with it."""
    try:
        return TextDataset(texts, labels, names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as dictionaries."""
    suffix = path.suffix.lower()
    if suffix in (".tsv", ".csv"):
        yield from _delimited_rows(path, tabs=suffix == ".tsv")
    elif suffix == ".jsonl":
        yield from _json_rows(path)
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise DataError(
            f"Cannot tell the format of {path} from its suffix: use one of {', '.join(SUFFIXES)}."
        )


def _delimited_rows(path: Path, *, tabs: bool) -> Iterator[dict[str, Any]]:
    """Yield rows of TSV, where a quote is an ordinary character, or of CSV, where it is not."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = (
            csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
            if tabs
            else csv.DictReader(file, strict=True)
        )
        try:
            for number, row in enumerate(reader):
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}: row {number} does not have the {len(reader.fieldnames or ())} "
                        f"columns of the header. Check its separators and quotes."
                    )
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not a readable table: {error}.") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is not a JSON object with named columns.")
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file."""
    try:
        from pyarrow import ArrowInvalid, parquet  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            "Reading Parquet needs pyarrow: pip install 'rankcast[data]', or convert to TSV."
        ) from error
    try:
        yield from parquet.read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}.") from error


def _column(path: Path, rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """Return one column of every row."""
    without = [i for i, row in enumerate(rows) if name not in row]
    if len(without) == len(rows):
        columns = list(rows[0])
        raise DataError(
            f"{path} has no column {name!r}{nearest(name, columns)}. It has: {', '.join(columns)}."
        )
    if without:
        raise DataError(f"{path}: {name!r} is missing in rows {shown(without)}.")
    return [row[name] for row in rows]


def _text(value: Any) -> str:
    """Return a cell as text; a null is blank and therefore refused later, with its row."""
    return "" if value is None else str(value)


def sorted_labels(where: object, values: Sequence[Any]) -> tuple[str, ...]:
    """Return the distinct labels: in numeric order if they are whole numbers, else by name.

    Raises:
        DataError: a label is missing, or fractional.
    """
    missing = [i for i, v in enumerate(values) if v is None or not str(v).strip()]
    if missing:
        raise DataError(f"{where}: the label is missing in rows {shown(missing)}.")
    fractional = [i for i, v in enumerate(values) if isinstance(v, float) and not v.is_integer()]
    if fractional:
        raise DataError(
            f"{where}: label {values[fractional[0]]} in rows {shown(fractional)} is neither a "
            f"whole number nor a word. Regression is not supported."
        )
    names = {label_word(v) for v in values}
    return tuple(sorted(names, key=int if all(map(_is_whole, names)) else str))


def label_indices(where: object, values: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
    """Map labels to classes, by name or else by index.

    An index counts only if the names are words: where they are numbers, `1` is the class
    called `1` and nothing else.

    Raises:
        DataError: a label that is neither.
    """
    index = {name: i for i, name in enumerate(names)}
    if not all(map(_is_whole, names)):
        index = {str(i): i for i in range(len(names))} | index
    words = [label_word(v) for v in values]
    wrong = [i for i, word in enumerate(words) if word not in index]
    if wrong:
        raise DataError(
            f"{where}: label {words[wrong[0]]!r} in rows {shown(wrong)} is neither one of the "
            f"classes {', '.join(names)} nor an index from 0 to {len(names) - 1}"
            f"{nearest(words[wrong[0]], names)}."
        )
    return tuple(index[word] for word in words)


def label_word(value: Any) -> str:
    """Return a label as a word: 1, 1.0, True and "1" are the same class."""
    if isinstance(value, bool | float) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def _is_whole(word: str) -> bool:
    """Whether a label is a whole number."""
    return word.lstrip("+-").isdecimal()
