"""Where texts come from: the embedded default, a file, a folder, or the Hugging Face hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankcast.config.learner import DatasetConfig
from rankcast.errors import DataError, nearest
from rankcast.learner.texts import SHARES, DatasetSplits, TextDataset, load_docstrings, shown

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
ALIASES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def load_dataset(spec: DatasetConfig) -> DatasetSplits:
    """Load the three splits that a configuration names.

    Raises:
        DataError: there is no such source, or it cannot be learned from.
    """
    path = Path(spec.source)
    if spec.source == "docstrings":
        splits = load_docstrings(spec.seed)
        if spec.label_column is None:
            parts = (splits.train, splits.validation, splits.test)
            splits = DatasetSplits(*(TextDataset(part.texts) for part in parts))
    elif path.is_dir():
        splits = _load_folder(path, spec)
    elif path.is_file() or path.suffix in SUFFIXES:
        whole = load_table(path, spec.text_column, spec.label_column)
        splits = DatasetSplits(*whole.split(SHARES, spec.seed))
    elif path.is_absolute() or spec.source.startswith((".", "~")):
        raise DataError(f"There is no file or folder {spec.source}.")
    else:
        splits = _load_hub_splits(spec)
    splits.train.require_classes(f"{spec.source}, training split")
    return DatasetSplits(
        splits.train.sample(spec.max_train, spec.seed),
        splits.validation.sample(spec.max_validation, spec.seed),
        splits.test.sample(spec.max_test, spec.seed),
    )


def _load_folder(folder: Path, spec: DatasetConfig) -> DatasetSplits:
    """Load one file a split, with the classes of the training file."""
    train_file = _split_file(folder, "train", spec.train)
    if train_file is None:
        there = sorted(p.name for p in folder.iterdir())
        raise DataError(
            f"{folder} has no training file: name it train.tsv, train.csv, train.jsonl or "
            f"train.parquet, or set `train`. It has: {', '.join(there) or 'nothing'}."
        )
    train = load_table(train_file, spec.text_column, spec.label_column)
    names = train.label_names

    def held_out(split: str, name: str | None) -> TextDataset | None:
        file = _split_file(folder, split, name)
        return file and load_table(file, spec.text_column, spec.label_column, names)

    return _with_held_out(
        train, held_out("validation", spec.validation), held_out("test", spec.test), spec.seed
    )


def _split_file(folder: Path, split: str, name: str | None) -> Path | None:
    """Return the file of a split: the one named, or the first whose stem is the split's name."""
    if name is not None:
        return folder / name
    candidates = (folder / f"{stem}{suffix}" for stem in ALIASES[split] for suffix in SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def _load_hub_splits(spec: DatasetConfig) -> DatasetSplits:
    """Load the splits of a hub data set; only the training split has to exist."""

    def load(split: str, names: tuple[str, ...] | None = None) -> TextDataset:
        return load_hub(
            spec.source,
            split,
            text_column=spec.text_column,
            label_column=spec.label_column,
            config=spec.hub_config,
            label_names=names,
        )

    def held_out(split: str, name: str | None) -> TextDataset | None:
        try:
            texts = load(name or split, train.label_names or None)
        except DataError:
            if name is not None:
                raise
            return None
        usable = spec.label_column is None or texts.labels is not None
        return texts if usable else None

    train = load(spec.train or "train")
    return _with_held_out(
        train, held_out("validation", spec.validation), held_out("test", spec.test), spec.seed
    )


def _with_held_out(
    train: TextDataset, validation: TextDataset | None, test: TextDataset | None, seed: int
) -> DatasetSplits:
    """Fill in the held-out splits that a source does not have."""
    if validation is None:
        train, validation = train.split((0.9, 0.1), seed)
    validation = replace(validation, label_names=train.label_names)
    return DatasetSplits(train, validation, test or validation)


def load_hub(
    name: str,
    split: str,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    config: str | None = None,
    label_names: tuple[str, ...] | None = None,
) -> TextDataset:
    """Load one split of a data set from the Hugging Face hub or its local cache.

    A split whose labels are all -1, as in GLUE's test splits, is returned without labels.

    Raises:
        DataError: `datasets` is not installed, no such data set or split, or a missing column.
    """
    try:
        import datasets  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            f"{name!r} is no file or folder here, and loading it from the Hugging Face hub needs "
            f"the datasets library: check the path, or pip install 'rankcast[data]'."
        ) from error
    try:
        table: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's client has no common base for its errors
        raise DataError(
            f"Cannot load split {split!r} of {name!r}: it is no file or folder here, and the "
            f"Hugging Face hub answers {type(error).__name__}: {error}"
        ) from error
    where = f"{name}, split {split}"
    for column in (text_column, label_column):
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{where} has no column {column!r}{nearest(column, table.column_names)}. It has: "
                f"{', '.join(table.column_names)}."
            )
    texts = tuple(str(text or "") for text in table[text_column])
    values = None if label_column is None else list(table[label_column])
    if values is None or set(values) == {-1}:
        return TextDataset(texts)
    declared = getattr(table.features[label_column], "names", None)
    names = label_names or (tuple(declared) if declared else _sorted_labels(where, values))
    return TextDataset(texts, _label_indices(where, values, names), names)


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
        label_names: the classes in order; None for the distinct labels of the file, sorted.

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
    # A null is blank and therefore refused, with its row.
    cells = _column(path, rows, text_column)
    texts = tuple("" if cell is None else str(cell) for cell in cells)
    if label_column is None:
        return _in_file(path, texts, None, ())
    values = _column(path, rows, label_column)
    names = tuple(label_names) if label_names is not None else _sorted_labels(path, values)
    return _in_file(path, texts, _label_indices(path, values, names), names)


def _in_file(
    path: Path, texts: tuple[str, ...], labels: tuple[int, ...] | None, names: tuple[str, ...]
) -> TextDataset:
    """Build the data set; errors name the file."""
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


def _sorted_labels(where: object, values: Sequence[Any]) -> tuple[str, ...]:
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
    names = {_label_word(v) for v in values}
    return tuple(sorted(names, key=int if all(map(_is_whole, names)) else str))


def _label_indices(where: object, values: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
    """Map labels to classes, by name or else by index.

    An index counts only if the names are words: where they are numbers, `1` is the class
    called `1` and nothing else.

    Raises:
        DataError: a label that is neither.
    """
    index = {name: i for i, name in enumerate(names)}
    if not all(map(_is_whole, names)):
        index = {str(i): i for i in range(len(names))} | index
    words = [_label_word(v) for v in values]
    wrong = [i for i, word in enumerate(words) if word not in index]
    if wrong:
        raise DataError(
            f"{where}: label {words[wrong[0]]!r} in rows {shown(wrong)} is neither one of the "
            f"classes {', '.join(names)} nor an index from 0 to {len(names) - 1}"
            f"{nearest(words[wrong[0]], names)}."
        )
    return tuple(index[word] for word in words)


def _label_word(value: Any) -> str:
    """Return a label as a word: 1, 1.0, True and "1" are the same class."""
    if isinstance(value, bool | float) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def _is_whole(word: str) -> bool:
    """Whether a label is a whole number."""
    return word.lstrip("+-").isdecimal()
