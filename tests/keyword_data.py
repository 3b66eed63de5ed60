"""A task that a random tiny model learns in a few steps: which of two words a text is full of."""

from __future__ import annotations

import numpy as np

from rankcast.finetune.texts import DatasetSplits, TextDataset

KEYWORDS = ("river", "engine")
FILLER = ("the", "a", "of", "and", "under", "quickly", "seven", "grey", "window", "it")


def keyword_splits(seed: int = 0, n_train: int = 96, n_held_out: int = 24) -> DatasetSplits:
    rng = np.random.default_rng(seed)

    def texts(n: int) -> TextDataset:
        labels = rng.integers(0, 2, n)
        words = [
            [KEYWORDS[y]] * 6 + rng.choice(FILLER, rng.integers(1, 9)).tolist() for y in labels
        ]
        return TextDataset(
            tuple(" ".join(rng.permutation(w)) for w in words), tuple(labels.tolist()), KEYWORDS
        )

    return DatasetSplits(texts(n_train), texts(n_held_out), texts(n_held_out))
