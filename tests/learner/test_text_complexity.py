from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankcast.learner.text_complexity import TextComplexity, lexical_entropy, words_of


class WholeWords:
    """A tokenizer that knows a few words, each with or without a space before it."""

    unk_token_id = 0

    def __init__(self, known: Any, *, after_space: Any = ()) -> None:
        self.known = {word: [i + 1] for i, word in enumerate(known)}
        self.known |= {f" {word}": [i + 100] for i, word in enumerate(after_space)}
        self.asked = []

    def __call__(self, texts: Any, **kwargs: Any) -> Any:
        self.asked += texts
        return {"input_ids": [self.known.get(text, [7, 8]) for text in texts]}


@pytest.mark.parametrize(
    ("text", "entropy"),
    [
        ("", 0.0),
        ("...", 0.0),
        ("same same Same", 0.0),
        ("one two", math.log(2)),
        ("one two, three four!", math.log(4)),
        ("a a b", math.log(3) - 2 / 3 * math.log(2)),
    ],
)
def test_entropy_by_hand(text: Any, entropy: Any) -> None:
    assert lexical_entropy(words_of(text)) == pytest.approx(entropy, abs=1e-15)


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1))
def test_entropy_is_shannons(words: Any) -> None:
    p = np.array([words.count(w) for w in set(words)]) / len(words)
    assert lexical_entropy(words) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)
    assert -1e-12 <= lexical_entropy(words) <= math.log(len(set(words))) + 1e-12


def test_oov_rate_counts_words_without_a_token_of_their_own() -> None:
    complexity = TextComplexity(WholeWords(["river"], after_space=["bank"]))
    stats = complexity.per_sample(["river bank", "river fjord", "?!", "fjord fjord bank river"])
    assert stats.oov_rate.tolist() == [0.0, 0.5, 0.0, 0.5]
    assert stats.lexical_entropy[0] == pytest.approx(math.log(2))


def test_the_unknown_token_is_no_word_of_the_vocabulary() -> None:
    tokenizer = WholeWords([])
    tokenizer.known = {"river": [0]}
    assert TextComplexity(tokenizer).batch(["river"]).oov_rate.tolist() == [1.0]


def test_each_word_is_looked_up_once() -> None:
    tokenizer = WholeWords(["river"])
    complexity = TextComplexity(tokenizer)
    complexity.per_sample(["river fjord", "fjord river"])
    complexity.per_sample(["river"])
    assert tokenizer.asked == ["fjord", "river", " fjord"]


def test_batch_is_the_mean() -> None:
    complexity = TextComplexity(WholeWords(["a"]))
    texts = ["a b", "a", "b c d"]
    each, mean = complexity.per_sample(texts), complexity.batch(texts)
    assert mean.lexical_entropy.shape == mean.oov_rate.shape == (1,)
    assert mean.lexical_entropy[0] == pytest.approx(each.lexical_entropy.mean())
    assert mean.oov_rate[0] == pytest.approx((0.5 + 0 + 1) / 3)


@pytest.fixture(scope="module")
def corpus() -> Any:
    return ["the river and the engine"] * 30


def test_real_tokenizers(corpus: Any) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    word_piece = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    word_piece.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=100, special_tokens=["[UNK]"], show_progress=False
    )
    word_piece.train_from_iterator(corpus, trainer)
    for tokenizer, extra in ((byte_level, {}), (word_piece, {"unk_token": "[UNK]"})):
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **extra)
        stats = TextComplexity(fast).per_sample(["the river", "the glacier", "engine, river!"])
        assert stats.oov_rate.tolist() == [0.0, 0.5, 0.0]
