"""Texts with labels, and the default data set: the docstrings of the standard library."""

from __future__ import annotations

import ast
import math
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rankcast.errors import DataError
from rankcast.learner.conversations import Answered

SHOWN_ROWS = 5
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TextDataset:
    """Texts with one class each, or without labels for a causal language model.

    Attributes:
        texts: the texts, none of them blank; prompts and answers together where there are any.
        labels: index into `label_names` for each text, or None.
        label_names: what the classes are called; empty without labels.
        answered: the prompt and the answers of each text; None where texts are learned whole.

    Raises:
        DataError: no texts, blank texts, as many labels as not, a label out of range.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    label_names: tuple[str, ...] = ()
    answered: tuple[Answered, ...] | None = None

    @classmethod
    def of_answers(cls, rows: Sequence[Answered]) -> TextDataset:
        """Return prompts with answers as a data set."""
        return cls(tuple(row.text for row in rows), answered=tuple(rows))

    def __post_init__(self) -> None:
        """Refuse what cannot be learned from."""
        if not self.texts:
            raise DataError("The data set has no texts. Check the file, and the split's name.")
        blank = [i for i, text in enumerate(self.texts) if not text.strip()]
        if blank:
            raise DataError(
                f"{len(blank)} of {len(self.texts)} texts are empty: rows {shown(blank)} (counting "
                f"from 0, without header and empty lines). Remove them, or name another column."
            )
        if self.answered is not None and len(self.answered) != len(self.texts):
            raise DataError(f"{len(self.texts)} texts but {len(self.answered)} with answers.")
        if self.labels is None:
            return
        if len(self.labels) != len(self.texts):
            raise DataError(f"{len(self.texts)} texts but {len(self.labels)} labels.")
        wrong = [i for i, y in enumerate(self.labels) if not 0 <= y < len(self.label_names)]
        if wrong:
            raise DataError(
                f"Label {self.labels[wrong[0]]} is out of range in rows {shown(wrong)}: there are "
                f"{len(self.label_names)} classes, 0 to {len(self.label_names) - 1}."
            )

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.texts)

    @property
    def n_labels(self) -> int:
        """The number of classes; 0 without labels."""
        return len(self.label_names) if self.labels is not None else 0

    def subset(self, indices: Sequence[int]) -> TextDataset:
        """Return the texts at `indices`, in that order."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in indices)
        answered = None if self.answered is None else tuple(self.answered[i] for i in indices)
        texts = tuple(self.texts[i] for i in indices)
        return TextDataset(texts, labels, self.label_names, answered)

    def sample(self, size: int | None, seed: int) -> TextDataset:
        """Return `size` texts drawn without replacement, in their order; all of them for None."""
        if size is None or size >= len(self):
            return self
        if size < 1:
            raise DataError(f"Cannot take {size} texts from a data set: the size must be positive.")
        chosen = np.random.default_rng(seed).choice(len(self), size=size, replace=False)
        return self.subset(sorted(chosen.tolist()))

    def split(self, fractions: Sequence[float], seed: int) -> tuple[TextDataset, ...]:
        """Shuffle and cut into parts of the given shares, which sum to at most 1.

        Raises:
            DataError: a share that is not positive, a sum above 1, or a part without texts.
        """
        if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
            raise DataError(f"Shares must be positive and sum to at most 1, got {fractions}.")
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        cuts = np.rint(np.cumsum([0.0, *fractions]) * len(self)).astype(int).tolist()
        parts = [order[a:b] for a, b in pairwise(cuts)]
        if any(not part for part in parts):
            raise DataError(f"{len(self)} texts are too few to split by {tuple(fractions)}.")
        return tuple(self.subset(part) for part in parts)

    def require_classes(self, where: str) -> TextDataset:
        """Return the data set unchanged if at least two of its classes occur.

        Raises:
            DataError: every text has the same label.
        """
        if self.labels is not None and len(set(self.labels)) < 2:
            only = self.label_names[self.labels[0]]
            raise DataError(
                f"{where}: all {len(self)} texts have the label {only!r}; a classifier needs at "
                f"least two classes. Check the label column, or set it to none for a causal model."
            )
        return self


@dataclass(frozen=True)
class DatasetSplits:
    """The texts to learn from, to watch while learning, and to judge by at the end.

    Attributes:
        train: the texts trained on.
        validation: held out; early stopping looks at it.
        test: held out; looked at once. The validation split where a source has none.
    """

    train: TextDataset
    validation: TextDataset
    test: TextDataset

    def __getitem__(self, name: str) -> TextDataset:
        """Return a split by name.

        Raises:
            DataError: the name is not `train`, `validation` or `test`.
        """
        if name not in ("train", "validation", "test"):
            raise DataError(f"There is no split {name!r}: use train, validation or test.")
        return getattr(self, name)


def shown(rows: Sequence[int]) -> str:
    """List the first few row numbers."""
    return ", ".join(map(str, rows[:SHOWN_ROWS])) + (", …" if len(rows) > SHOWN_ROWS else "")


def cells_as_texts(where: object, cells: Sequence[Any], what: str) -> tuple[str, ...]:
    """Return cells as texts, what is null as blank.

    Args:
        where: the file, for errors.
        cells: of a table.
        what: where they stand in it, for errors.

    Raises:
        DataError: a cell that holds something else, or half a character.
    """
    wrong = [i for i, cell in enumerate(cells) if not isinstance(cell, str | int | float | None)]
    if wrong:
        raise DataError(
            f"{where}: what stands in rows {shown(wrong)} of the {what} is of the type "
            f"{type(cells[wrong[0]]).__name__}, not a text. Make one text of it, or name another "
            f"{what}."
        )
    is_null = [cell is None or (isinstance(cell, float) and math.isnan(cell)) for cell in cells]
    texts = tuple("" if null else str(cell) for null, cell in zip(is_null, cells, strict=True))
    halves = [i for i, text in enumerate(texts) if _HALF_CHARACTER.search(text)]
    if halves:
        raise DataError(
            f"{where}: the texts in rows {shown(halves)} hold half a character (a lone surrogate, "
            f"such as \\ud83d). Write them again as UTF-8."
        )
    return texts


PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
"""The classes; packages that every supported version of Python has."""

MIN_WORDS = 5
SHARES = (0.8, 0.1, 0.1)


def load_docstrings(seed: int = 0) -> DatasetSplits:
    """Return paragraphs of the standard library's docstrings, labelled by package.

    About 3,100 texts in 8 classes; the exact number depends on the version of Python. The sources
    are parsed, not imported. No text occurs twice, so none is in two splits.

    Raises:
        DataError: the sources of the standard library are not installed.
    """
    train, validation, test = _paragraphs().split(SHARES, seed)
    return DatasetSplits(train, validation, test)


@lru_cache(maxsize=1)
def _paragraphs() -> TextDataset:
    """Read every paragraph once, in the order of packages, files and lines."""
    root = Path(sysconfig.get_path("stdlib"))
    owner: dict[str, tuple[str, int | None]] = {}
    for label, package in enumerate(PACKAGES):
        for text in _package_paragraphs(root, package):
            key = text.casefold()
            known = owner.setdefault(key, (text, label))
            if known[1] != label:  # in two packages: it belongs to neither
                owner[key] = (text, None)
    kept = [(text, label) for text, label in owner.values() if label is not None]
    missing = [name for i, name in enumerate(PACKAGES) if not any(label == i for _, label in kept)]
    if missing:
        raise DataError(
            f"No docstrings of {', '.join(missing)} under {root}: this Python was installed "
            f"without the sources of its standard library. Give a data set of your own."
        )
    return TextDataset(tuple(t for t, _ in kept), tuple(label for _, label in kept), PACKAGES)


def _package_paragraphs(root: Path, package: str) -> Iterator[str]:
    """Yield the paragraphs of one package with their white space collapsed."""
    files = ((file.relative_to(root).as_posix(), file) for file in (root / package).rglob("*.py"))
    for name, file in sorted(files):
        if {"test", "tests"}.isdisjoint(name.split("/")):
            for docstring in _docstrings(file):
                for paragraph in re.split(r"\n\s*\n", docstring):
                    if len(re.findall(r"[^\W\d_]+", paragraph)) >= MIN_WORDS:
                        yield " ".join(paragraph.split())


def _docstrings(file: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and functions, in the order of the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    for node in sorted(nodes, key=lambda n: getattr(n, "lineno", 0)):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
