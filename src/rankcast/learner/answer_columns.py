"""Cells of a table as prompts with answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rankcast.errors import DataError
from rankcast.learner.conversations import ASSISTANT, Answered, Chat, Completion, Message
from rankcast.learner.texts import cells_as_texts, shown

_KEYS = ("role", "content")


def answered_rows(where: object, columns: Sequence[Sequence[Any]]) -> tuple[Answered, ...]:
    """Return the rows of two columns, prompts and completions, or of one column of messages.

    Args:
        where: the file, for errors.
        columns: cells of each column.

    Raises:
        DataError: a cell that is no text or no list of messages, or a row without an answer.
    """
    if len(columns) == 1:
        return tuple(_chat(where, row, cell) for row, cell in enumerate(columns[0]))
    prompts = cells_as_texts(where, columns[0], "prompt column")
    completions = cells_as_texts(where, columns[1], "completion column")
    for what, cells in (("prompts", prompts), ("completions", completions)):
        blank = [i for i, cell in enumerate(cells) if not cell.strip()]
        if blank:
            raise DataError(
                f"{where}: the {what} in rows {shown(blank)} are empty. Fill them in, or remove "
                f"these rows."
            )
    return tuple(map(Completion, prompts, completions))


def _chat(where: object, row: int, cell: Any) -> Chat:
    """Return the chat in a cell.

    Raises:
        DataError: see `answered_rows`.
    """
    messages = _list(where, row, cell)
    chat = Chat(tuple(_message(where, row, message) for message in messages))
    if not chat.messages or chat.messages[-1].role != ASSISTANT:
        raise DataError(
            f"{where}, row {row}: the messages do not end with one of the role {ASSISTANT!r}, so "
            f"there is no answer to learn last. Cut the chat after its last answer."
        )
    return chat


def _list(where: object, row: int, cell: Any) -> Sequence[Any]:
    """Return the messages in a cell, which may be JSON as text."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}, row {row}: the messages are no JSON ({error}). Write a list of objects "
                f"with a role and a content, or name other columns."
            ) from error
    if not isinstance(cell, list | tuple):
        raise DataError(
            f"{where}, row {row}: {str(cell)[:40]!r} is no list of messages. Write a list of "
            f"objects with a role and a content, or name another messages column."
        )
    return cell


def _message(where: object, row: int, message: Any) -> Message:
    """Return one message; what would be lost is refused.

    Raises:
        DataError: it has no role or content, more than that, or a content that is no text.
    """
    if not isinstance(message, Mapping) or not all(key in message for key in _KEYS):
        raise DataError(
            f"{where}, row {row}: the message {str(message)[:60]} lacks a role or a content. "
            f"Each message is an object of these two."
        )
    more = sorted(str(k) for k, v in message.items() if k not in _KEYS and v not in (None, [], ""))
    if more:
        raise DataError(
            f"{where}, row {row}: a message has {', '.join(more)}, which rankcast does not know. "
            f"Remove it, or render the chat yourself and use prompt and completion columns."
        )
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(
            f"{where}, row {row}: role and content of a message are texts, got "
            f"{type(role).__name__} and {type(content).__name__}. Parts that are no text, such as "
            f"images, are not supported."
        )
    role, content = cells_as_texts(f"{where}, row {row}", (role, content), "messages")
    if role == ASSISTANT and not content.strip():
        raise DataError(f"{where}, row {row}: an answer is empty. Fill it in, or remove the row.")
    return Message(role, content)
