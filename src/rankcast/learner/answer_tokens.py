"""Prompts with answers as tokens, and which of them are the answers.

A prompt and its completion are joined as they are, and the end-of-sequence token closes the answer.
Chats are rendered with the model's own template, whose mark of the end of a turn is the answer's
last token. Each text is tokenised as a whole. A token that stands across the border of a prompt and
its answer belongs to the answer.

What is too long loses the beginning of its prompt, as with TRL's `truncation_mode="keep_end"`, but
keeps a special token that stands first, without which some models fail. An answer that is too long
by itself loses its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankcast.errors import ConfigError, DataError, ModelError
from rankcast.learner.conversations import Answered, Chat, Completion
from rankcast.records import IntArray

Marks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """A text as tokens.

    Attributes:
        ids: (S,) tokens.
        is_answer: (S,) which of them the model is to say.
        cut_prompt: whether the prompt lost its beginning.
        cut_answer: whether the answer lost its end.
    """

    ids: IntArray
    is_answer: Marks
    cut_prompt: bool = False
    cut_answer: bool = False


def tokenise_answers(
    rows: Sequence[Answered], tokenizer: Any, max_length: int
) -> list[AnswerTokens]:
    """Return prompts with answers as tokens, at most `max_length` each.

    Raises:
        ConfigError: a tokenizer without an end-of-sequence token.
        DataError: an answer without tokens, or a chat that the template refuses or rewrites.
        ModelError: a tokenizer without a chat template, for chats, or without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} does not say which characters its tokens stand for, so "
            f"answers cannot be told from prompts. Use the model's fast tokenizer."
        )
    if any(isinstance(row, Chat) for row in rows) and not tokenizer.chat_template:
        raise ModelError(
            "The model's tokenizer has no chat template. Use an instruction-tuned model, or name a "
            "prompt column and a completion column instead of messages."
        )
    first = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    texts = (_tokens(row, i, tokenizer) for i, row in enumerate(rows))
    return [fitted(text, max_length, keep_first=int(text.ids[0]) in first) for text in texts]


def fitted(tokens: AnswerTokens, max_length: int, *, keep_first: bool) -> AnswerTokens:
    """Return at most `max_length` tokens: see above.

    Args:
        tokens: of a text that ends with an answer.
        max_length: at least 2.
        keep_first: whether the first token stays, if it is not of an answer.
    """
    ids, answer = tokens.ids, tokens.is_answer
    if len(ids) <= max_length:
        return tokens
    given = np.flatnonzero(~answer)
    first = int(given[-1]) + 1 if len(given) else 0  # of the last answer
    front = min(int(keep_first), first)
    size = min(len(ids) - first, max_length - max(front, min(first, 1)))
    n_prompt = max_length - size - front
    kept = np.r_[:front, first - n_prompt : first + size] if first else np.arange(max_length)
    cut_answer = first + size < len(ids)
    return AnswerTokens(ids[kept], answer[kept], first > front + n_prompt, cut_answer)


def _tokens(row: Answered, place: int, tokenizer: Any) -> AnswerTokens:
    """Return a text as tokens, however many.

    Raises:
        DataError: an answer without tokens.
    """
    if isinstance(row, Completion):
        text, spans, closed = row.text, [(len(row.prompt), len(row.text))], False
    else:
        text, spans, closed = _rendered(row, place, tokenizer)
    found = tokenizer(
        text,
        add_special_tokens=isinstance(row, Completion),
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    ids = np.asarray(found["input_ids"], dtype=np.int64)
    starts, ends = np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    answer = np.zeros(len(ids), dtype=bool)
    for start, end in spans:
        own = (ends > start) & (starts < end)
        if not own.any():
            raise DataError(f"Row {place}: the answer {text[start:end]!r:.40} has no tokens.")
        answer |= own
    last = int(np.flatnonzero(answer)[-1]) + 1
    ids, answer = ids[:last], answer[:last]  # what comes after the last answer is never asked for
    if not closed:
        ids, answer = np.append(ids, _end(tokenizer)), np.append(answer, True)
    return AnswerTokens(ids, answer)


def _end(tokenizer: Any) -> int:
    """Return the token that ends an answer."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return int(token)
    raise ConfigError("The tokenizer has no end-of-sequence token: set tokenizer.eos_token.")


def _rendered(chat: Chat, place: int, tokenizer: Any) -> tuple[str, list[tuple[int, int]], bool]:
    """Return a chat as text, where its answers stand, and whether the template closes the last.

    An answer begins where the template asks for one and ends with the template's mark.

    Raises:
        DataError: the template refuses the chat, or writes its turns differently later on.
    """
    whole, spans, closed = _render(chat, len(chat.messages), place, tokenizer), [], False
    for i in chat.answers:
        asked = _render(chat, i, place, tokenizer, ask=True)
        told = _render(chat, i + 1, place, tokenizer).rstrip()
        if not whole.startswith(asked) or not whole.startswith(told):
            raise DataError(
                f"Row {place}: the model's chat template writes answer {i} otherwise when the chat "
                f"goes on, or asks for it in words that are not in the chat. Give each answer a "
                f"row of its own that ends with it, or prompt and completion columns."
            )
        spans.append((len(asked), len(told)))
        closed = not told.endswith(chat.messages[i].content.rstrip())
    return whole, spans, closed


def _render(chat: Chat, n: int, place: int, tokenizer: Any, *, ask: bool = False) -> str:
    """Return the first messages as the template writes them, or with the beginning of an answer."""
    messages = [{"role": m.role, "content": m.content} for m in chat.messages[:n]]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # templates are programs, and raise what they like
        raise DataError(
            f"Row {place}: the model's chat template refuses the messages: {error}. Change their "
            f"roles and order to what it takes."
        ) from error
