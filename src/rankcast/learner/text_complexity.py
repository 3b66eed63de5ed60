"""How hard a text is: the H_t and ρ_t of the state (Sec. IV-A)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rankcast.records import TextStats

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores; white space and punctuation separate."""
    return _WORD.findall(text)


def lexical_entropy(words: Sequence[str]) -> float:
    """Return H = −Σ p̂(w) log p̂(w) over the distinct words of a text, ignoring case [nats].

    A text without words has entropy 0.
    """
    n = len(words)
    if n == 0:
        return 0.0
    counts = Counter(word.lower() for word in words).values()
    return math.log(n) - sum(c * math.log(c) for c in counts if c > 1) / n


class TextComplexity:
    """Lexical entropy and OOV rate of texts, as one tokenizer sees them.

    Differs from the paper: V is read as the tokenizer's vocabulary of whole words. A word is out
    of vocabulary if no single token stands for it; with a byte-level tokenizer no *token* is ever
    unknown and ρ would always be 0. Entropy ignores case; the OOV test takes a word as written,
    because that is what the tokenizer meets.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._in_vocabulary: dict[str, bool] = {}

    def per_sample(self, texts: Sequence[str]) -> TextStats:
        """Return (n,) entropies and OOV rates, one for each text; each word is looked up once."""
        words = [words_of(text) for text in texts]
        self._look_up({word for text in words for word in text})
        known = self._in_vocabulary
        entropy = np.array([lexical_entropy(text) for text in words], dtype=np.float64)
        oov = np.array(
            [sum(not known[w] for w in text) / max(len(text), 1) for text in words],
            dtype=np.float64,
        )
        return TextStats(lexical_entropy=entropy, oov_rate=oov)

    def batch(self, texts: Sequence[str]) -> TextStats:
        """Return the means over a batch, of shape (1,)."""
        return mean_stats(self.per_sample(texts))

    def _look_up(self, words: set[str]) -> None:
        """Learn which new words are single tokens, at the start of a text or after a space."""
        new = sorted(words - self._in_vocabulary.keys())
        single = self._single_tokens(new)
        rest = [word for word in new if word not in single]
        after_space = self._single_tokens([f" {word}" for word in rest])
        single |= {word for word in rest if f" {word}" in after_space}
        self._in_vocabulary.update((word, word in single) for word in new)

    def _single_tokens(self, forms: Iterable[str]) -> set[str]:
        """Return the forms that the tokenizer writes as exactly one known token."""
        forms = list(forms)
        if not forms:
            return set()
        unknown = self._tokenizer.unk_token_id
        encoded = self._tokenizer(
            forms, add_special_tokens=False, return_attention_mask=False, truncation=False
        )["input_ids"]
        return {
            form
            for form, ids in zip(forms, encoded, strict=True)
            if len(ids) == 1 and ids[0] != unknown
        }


def mean_stats(stats: TextStats) -> TextStats:
    """Return the means of per-sample statistics, of shape (1,)."""
    return TextStats(
        lexical_entropy=stats.lexical_entropy.mean(keepdims=True),
        oov_rate=stats.oov_rate.mean(keepdims=True),
    )
