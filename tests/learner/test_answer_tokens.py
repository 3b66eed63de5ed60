from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.language_models import TEMPLATE, word_tokenizer
from rankcast.errors import ConfigError, DataError, ModelError
from rankcast.learner.answer_tokens import AnswerTokens, fitted, tokenise_answers
from rankcast.learner.batching import IGNORED, tokenise
from rankcast.learner.conversations import Answered, Chat, Completion, Message
from rankcast.learner.texts import TextDataset

TOKENIZER = word_tokenizer()


def words(tokens: AnswerTokens) -> tuple[list[str], list[str]]:
    """Return the tokens that are given, and those that are to be said."""
    all_words = TOKENIZER.convert_ids_to_tokens(tokens.ids.tolist())
    pairs = list(zip(all_words, tokens.is_answer, strict=True))
    return [w for w, own in pairs if not own], [w for w, own in pairs if own]


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return Chat(tuple(Message(roles[i % 2], text) for i, text in enumerate(contents)))


def of(row: Answered, most: int = 64, tokenizer: Any = TOKENIZER) -> AnswerTokens:
    return tokenise_answers([row], tokenizer, most)[0]


def test_a_completion_ends_with_the_end_of_sequence() -> None:
    given_words, said = words(of(Completion("which animal barks", " a dog")))
    assert given_words == ["<bos>", "which", "animal", "barks"]
    assert said == ["a", "dog", "<eos>"]


def test_a_chat_is_what_the_template_makes_of_it() -> None:
    given_words, said = words(of(chat("which animal barks", "a dog", "is it a cat", "no")))
    assert given_words == [
        "<bos>", "<user>", "which", "animal", "barks", "<end>", "<assistant>", "<user>", "is",
        "it", "a", "cat", "<end>", "<assistant>",
    ]  # fmt: skip
    assert said == ["a", "dog", "<end>", "no", "<end>"]


def test_a_template_without_an_end_gets_the_end_of_sequence() -> None:
    template = TEMPLATE.replace(" <end>\n", "\n")
    _, said = words(of(chat("what", "a dog"), tokenizer=word_tokenizer(template=template)))
    assert said == ["a", "dog", "<eos>"]


def test_a_token_across_the_border_belongs_to_the_answer() -> None:
    _, said = words(of(Completion("which animal ba", "rks")))
    assert said == ["barks", "<eos>"]


def test_what_is_too_long_loses_the_beginning_of_its_prompt() -> None:
    row = Completion("please tell me now which animal barks", " a dog")
    tokens = of(row, 6)
    assert words(tokens) == (["<bos>", "animal", "barks"], ["a", "dog", "<eos>"])
    assert (tokens.cut_prompt, tokens.cut_answer) == (True, False)


def test_an_answer_that_is_too_long_loses_its_end_and_is_counted() -> None:
    rows = [Completion("what", " it says woof woof woof now"), Completion("what", " woof")]
    tokens = of(rows[0], 4)
    assert words(tokens) == (["<bos>"], ["it", "says", "woof"])
    assert tokens.cut_answer
    data = tokenise(TextDataset.of_answers(rows), TOKENIZER, 4)
    assert data.n_cut == 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 30), st.booleans())
def test_properties_of_cutting(n_prompt: int, n_answer: int, most: int, keep: bool) -> None:
    ids = np.arange(n_prompt + n_answer)
    tokens = fitted(AnswerTokens(ids, ids >= n_prompt), most, keep_first=keep)
    assert len(tokens.ids) == min(most, len(ids))
    assert tokens.is_answer.tolist() == (tokens.ids >= n_prompt).tolist()
    assert not tokens.is_answer[0]  # something stands before the answer
    assert tokens.is_answer.sum() == min(n_answer, most - 1)
    said = tokens.ids[tokens.is_answer]
    assert said.tolist() == list(range(n_prompt, n_prompt + len(said)))  # its beginning stays
    assert tokens.cut_answer == (len(said) < n_answer)
    assert tokens.cut_prompt == ((~tokens.is_answer).sum() < n_prompt)
    assert not keep or tokens.ids[0] == 0


def test_a_batch_asks_for_answers_alone() -> None:
    rows = [Completion("which animal barks", " dog"), Completion("what", " a cat")]
    data = tokenise(TextDataset.of_answers(rows), TOKENIZER, 64)
    batch = data.collate(np.arange(2))
    dog, a, cat = TOKENIZER.convert_tokens_to_ids(["dog", "a", "cat"])
    n = IGNORED
    assert batch.wanted.tolist() == [[n, n, n, n, dog, 2], [n, n, a, cat, 2, n]]
    assert batch.attention_mask.sum(1).tolist() == [6, 5]


def test_what_a_tokenizer_cannot_do_is_said() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        of(chat("what", "no"), tokenizer=word_tokenizer(template=None))
    with pytest.raises(DataError, match=r"Row 0: .* refuses the messages: no system role"):
        of(Chat((Message("system", "x"), Message("assistant", "y"))))
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        of(Completion("what", " no"), tokenizer=word_tokenizer(eos=False))
    forgets = TEMPLATE.replace("<{{ m['role'] }}> {{ m['content'] }}", (
        "<{{ m['role'] }}> {{ m['content'] if loop.last or m['role'] == 'user' else 'it' }}"
    ))  # fmt: skip
    with pytest.raises(DataError, match="Give each answer a row of its own"):
        of(chat("what", "a dog", "is it", "no"), tokenizer=word_tokenizer(template=forgets))
    assert words(of(chat("what", "no"), tokenizer=word_tokenizer(template=forgets)))[1] == [
        "no", "<end>",
    ]  # fmt: skip
