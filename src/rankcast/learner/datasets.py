"""Where texts come from: the embedded default, a file, a folder, or the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankcast.config.learner import DatasetConfig
from rankcast.errors import DataError, nearest
from rankcast.learner.answer_columns import answered_rows
from rankcast.learner.labels import label_indices, sorted_labels
from rankcast.learner.tables import SUFFIXES, read_columns
from rankcast.learner.texts import (
    SHARES,
    DatasetSplits,
    TextDataset,
    cells_as_texts,
    load_docstrings,
)

ALIASES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

_LOG = logging.getLogger(__name__)


def load_dataset(spec: DatasetConfig) -> DatasetSplits:
    """Load the three splits that a configuration names.

    Raises:
        DataError: there is no such source, or it cannot be learned from.
    """
    path = Path(spec.source)
    if spec.source == "docstrings":
        if spec.answer_columns:
            raise DataError("The docstrings have no prompts and answers: name a source that has.")
        splits = load_docstrings(spec.seed)
        if spec.label_column is None:
            parts = (splits.train, splits.validation, splits.test)
            splits = DatasetSplits(*(TextDataset(part.texts) for part in parts))
    elif path.is_dir():
        splits = _load_folder(path, spec)
    elif path.is_file() or path.suffix in SUFFIXES:
        whole = _table(path, spec)
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


def with_held_out(splits: DatasetSplits, spec: DatasetConfig, file: str) -> DatasetSplits:
    """Return splits that are judged by the texts in a file; a whole file then trains.

    Args:
        splits: from `load_dataset`.
        spec: where they came from, and the columns of both.
        file: the texts to judge by.

    Raises:
        DataError: see `load_table`.
    """
    names = splits.train.label_names
    judged, source = _table(Path(file), spec, names or None), Path(spec.source)
    train = splits.train
    if source.is_file():
        train = _table(source, spec, names or None).sample(spec.max_train, spec.seed)
    return DatasetSplits(train, judged, judged)


def _load_folder(folder: Path, spec: DatasetConfig) -> DatasetSplits:
    """Load one file a split, with the classes of the training file."""
    train_file = _split_file(folder, "train", spec.train)
    if train_file is None:
        there = sorted(p.name for p in folder.iterdir())
        raise DataError(
            f"{folder} has no training file: name it train with one of the suffixes "
            f"{', '.join(SUFFIXES)}, or set `train`. It has: {', '.join(there) or 'nothing'}."
        )
    train = _table(train_file, spec)
    names = train.label_names

    def held_out(split: str, name: str | None) -> TextDataset | None:
        file = _split_file(folder, split, name)
        return file and _table(file, spec, names)

    return _with_held_out(
        train, held_out("validation", spec.validation), held_out("test", spec.test), spec.seed
    )


def _table(file: Path, spec: DatasetConfig, names: Sequence[str] | None = None) -> TextDataset:
    """Read a table as a configuration names its columns."""
    return load_table(
        file, spec.text_column, spec.label_column, names, answer_columns=spec.answer_columns
    )


def _split_file(folder: Path, split: str, name: str | None) -> Path | None:
    """Return the file of a split: the one named, or the first whose stem is the split's name."""
    if name is not None:
        return folder / name
    candidates = (folder / f"{stem}{suffix}" for stem in ALIASES[split] for suffix in SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def _load_hub_splits(spec: DatasetConfig) -> DatasetSplits:
    """Load the splits of a hub data set; only the training split has to exist."""
    _LOG.warning(
        "%s is no file or folder here: looking for it on the Hugging Face hub.", spec.source
    )

    def load(split: str, names: tuple[str, ...] | None = None) -> TextDataset:
        return load_hub(
            spec.source,
            split,
            text_column=spec.text_column,
            label_column=spec.label_column,
            config=spec.hub_config,
            label_names=names,
            answer_columns=spec.answer_columns,
        )

    def held_out(split: str, name: str | None) -> TextDataset | None:
        try:
            texts = load(name or split, train.label_names or None)
        except DataError:
            if name is not None:
                raise
            return None
        labelled = spec.label_column is not None and not spec.answer_columns
        usable = not labelled or texts.labels is not None
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
    answer_columns: Sequence[str] = (),
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
    for column in answer_columns or (text_column, label_column):
        if column is not None and column not in table.column_names:
            raise DataError(
                f"{where} has no column {column!r}{nearest(column, table.column_names)}. It has: "
                f"{', '.join(table.column_names)}."
            )
    if answer_columns:
        rows = answered_rows(where, [list(table[column]) for column in answer_columns])
        return TextDataset.of_answers(rows)
    texts = cells_as_texts(where, table[text_column], "text column")
    values = None if label_column is None else list(table[label_column])
    if values is None or all(value == -1 for value in values):
        return TextDataset(texts)
    declared = getattr(table.features[label_column], "names", None)
    names = label_names or (tuple(declared) if declared else sorted_labels(where, values))
    return TextDataset(texts, label_indices(where, values, names), names)


def load_table(
    path: str | Path,
    text_column: str,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    *,
    answer_columns: Sequence[str] = (),
) -> TextDataset:
    """Read a table whose format its suffix names.

    Args:
        path: a file with named columns and one of the `SUFFIXES`; in UTF-8, unless it is Parquet.
        text_column: the column of texts.
        label_column: the column of classes, whole numbers or words; None for no labels.
        label_names: the classes in order; None for the distinct labels of the file, sorted.
        answer_columns: the columns of prompts and of completions, or the one of messages; the
            other columns are not read then.

    Raises:
        DataError: no such file, an unknown suffix or encoding, an empty file, a missing or doubled
            column, a broken row, blank texts, or a label that is no class or none of `label_names`.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file {path}{nearest(path.name, siblings)}.")
    wanted = answer_columns or [name for name in (text_column, label_column) if name is not None]
    columns = read_columns(path, wanted)
    if answer_columns:
        return TextDataset.of_answers(answered_rows(path, columns))
    texts, labels, names = cells_as_texts(path, columns[0], "text column"), None, ()
    if label_column is not None:
        given = label_names is not None
        names = tuple(label_names) if given else sorted_labels(path, columns[1])
        labels = label_indices(path, columns[1], names)
    try:
        return TextDataset(texts, labels, names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
