"""Texts and labels: the records that every source of data is brought to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rankcast.errors import DataError

SHOWN_ROWS = 5


@dataclass(frozen=True)
class TextDataset:
    """Texts with one class each, or without labels for a causal language model.

    Attributes:
        texts: the texts, none of them blank.
        labels: index into `label_names` for each text, or None.
        label_names: what the classes are called; empty without labels.

    Raises:
        DataError: no texts, blank texts, as many labels as not, a label out of range.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be learned from."""
        if not self.texts:
            raise DataError("The data set has no texts. Check the file, and the split's name.")
        blank = [i for i, text in enumerate(self.texts) if not text.strip()]
        if blank:
            raise DataError(
                f"{len(blank)} of {len(self.texts)} texts are empty: rows {shown(blank)} (counting "
                f"from 0, without the header). Remove them, or name another text column."
            )
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
        return TextDataset(tuple(self.texts[i] for i in indices), labels, self.label_names)

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
    """What is learned from, watched while learning, and judged at the end.

    Attributes:
        train: the texts trained on.
        validation: held out; early stopping and rewards look at it.
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
