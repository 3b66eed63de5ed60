"""Where texts come from: the embedded default, a file, a folder, or the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankcast.errors import DataError, nearest
from rankcast.finetune.docstrings import SHARES, load_docstrings
from rankcast.finetune.tables import SUFFIXES, label_indices, load_table, sorted_labels
from rankcast.finetune.texts import DatasetSplits, TextDataset

__all__ = [
    "DatasetConfig",
    "DatasetSplits",
    "TextDataset",
    "load_dataset",
    "load_docstrings",
    "load_hub",
    "load_table",
]

ALIASES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class DatasetConfig:
    """Which texts to learn from.

    Attributes:
        source: `docstrings` (needs nothing), a file, a folder with one file a split, or the name
            of a data set on the Hugging Face hub.
        hub_config: the configuration of a hub data set, such as `sst2` of `nyu-mll/glue`.
        text_column: the column of texts.
        label_column: the column of classes; None for a causal language model.
        train: name of the training file (or hub split); None finds `train.*`.
        validation: likewise; without one, a tenth of the training texts is held out.
        test: likewise; without one, the validation split serves.
        max_train: at most so many training texts, drawn at random; None takes all.
        max_validation: likewise.
        max_test: likewise.
        seed: for the draws and splits.
    """

    source: str = "docstrings"
    hub_config: str | None = None
    text_column: str = "text"
    label_column: str | None = "label"
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None
    seed: int = 0


def load_dataset(spec: DatasetConfig) -> DatasetSplits:
    """Load the three splits that a configuration names.

    Raises:
        DataError: the source cannot be found, or cannot be learned from.
    """
    path = Path(spec.source)
    if spec.source == "docstrings":
        splits = load_docstrings(spec.seed)
        if spec.label_column is None:
            splits = DatasetSplits(*(TextDataset(s.texts) for s in _parts(splits)))
    elif path.is_dir():
        splits = _load_folder(path, spec)
    elif path.is_file() or path.suffix in SUFFIXES:
        splits = _cut(load_table(path, spec.text_column, spec.label_column), spec.seed)
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
    names = label_names or (tuple(declared) if declared else sorted_labels(where, values))
    return TextDataset(texts, label_indices(where, values, names), names)


def _parts(splits: DatasetSplits) -> tuple[TextDataset, TextDataset, TextDataset]:
    """Return the three splits in order."""
    return splits.train, splits.validation, splits.test


def _cut(whole: TextDataset, seed: int) -> DatasetSplits:
    """Cut one table into three splits."""
    train, validation, test = whole.split(SHARES, seed)
    return DatasetSplits(train, validation, test)


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
    """Find the file of a split: the one named, or the first whose stem is the split's name."""
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
            found = load(name or split, train.label_names or None)
        except DataError:
            if name is not None:
                raise
            return None
        usable = spec.label_column is None or found.labels is not None
        return found if usable else None

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
