from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankcast.config.learner import DatasetConfig
from rankcast.errors import ConfigError, DataError
from rankcast.learner.answer_columns import answered_rows
from rankcast.learner.conversations import Chat, Completion, Message
from rankcast.learner.datasets import load_dataset, load_table, with_held_out

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def test_prompts_and_completions_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("prompt\tcompletion\tlabel\nQ: 1? A:\t one\tx\nQ: 2? A:\t two\tx\n", "utf-8")
    data = load_table(file, "text", "label", answer_columns=("prompt", "completion"))
    assert data.answered == (Completion("Q: 1? A:", " one"), Completion("Q: 2? A:", " two"))
    assert data.texts == ("Q: 1? A: one", "Q: 2? A: two")
    assert data.labels is None
    assert data.subset([1]).answered == (Completion("Q: 2? A:", " two"),)


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".csv"])
def test_messages_are_lists_or_their_json(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"t{suffix}"
    if suffix == ".jsonl":
        file.write_text(json.dumps({"chat": CHAT}) + "\n", "utf-8")
    elif suffix == ".tsv":
        file.write_text(f"chat\n{json.dumps(CHAT)}\n", "utf-8")
    else:
        quoted = json.dumps(CHAT).replace('"', '""')
        file.write_text(f'chat\n"{quoted}"\n', "utf-8")
    (chat,) = load_table(file, "text", None, answer_columns=("chat",)).answered or ()
    assert chat == Chat((Message("user", "2 + 2?"), Message("assistant", "4")))
    assert isinstance(chat, Chat)
    assert chat.answers == (1,)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("[{", "are no JSON"),
        ({"role": "user"}, "no list of messages"),
        ([{"role": "user"}], "lacks a role or a content"),
        ([{"from": "human", "value": "x"}], "lacks a role or a content"),
        (CHAT[:1], "do not end with one of the role 'assistant'"),
        ([], "do not end with"),
        ([{**CHAT[1], "tool_calls": [1]}], "tool_calls, which rankcast does not know"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "are texts, got str and list"),
        ([{"role": "assistant", "content": " "}], "an answer is empty"),
        ([{"role": "assistant", "content": "\ud83d"}], "half a character"),
    ],
)
def test_what_is_no_chat_is_refused_with_its_row(cell: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        answered_rows("file", [[CHAT, cell]])
    assert "row 1" in str(error.value)


def test_fields_of_a_message_that_say_nothing_are_no_obstacle() -> None:
    message = {**CHAT[1], "tool_calls": None, "name": ""}
    assert answered_rows("file", [[[message]]]) == (Chat((Message("assistant", "4"),)),)


def test_empty_prompts_and_completions_are_refused() -> None:
    with pytest.raises(DataError, match="completions in rows 1 are empty"):
        answered_rows("file", [["a", "b"], ["c", None]])
    with pytest.raises(DataError, match="the prompts in rows 0"):
        answered_rows("file", [[" "], ["c"]])
    with pytest.raises(DataError, match="the completion column is of the type list"):
        answered_rows("file", [["a"], [["c"]]])


def test_columns_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="go together"):
        DatasetConfig(prompt_column="p")
    with pytest.raises(ConfigError, match="not both"):
        DatasetConfig(prompt_column="p", completion_column="c", messages_column="m")
    with pytest.raises(DataError, match="docstrings have no prompts"):
        load_dataset(DatasetConfig(messages_column="m"))


def test_splits_keep_answers_and_a_held_out_file_is_never_trained_on(tmp_path: Path) -> None:
    for name, n in (("a", 20), ("b", 3)):
        rows = [{"p": f"{name}{i}", "c": "x", "label": 1} for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    spec = DatasetConfig(source=str(tmp_path / "a.jsonl"), prompt_column="p", completion_column="c")
    splits = load_dataset(spec)
    assert [len(s.answered or ()) for s in (splits.train, splits.validation, splits.test)] == [
        16, 2, 2,
    ]  # fmt: skip
    judged = with_held_out(splits, spec, str(tmp_path / "b.jsonl"))
    assert len(judged.train) == 20  # nothing of the file has to be set aside any more
    assert judged.validation.texts == ("b0x", "b1x", "b2x")
    assert not set(judged.train.texts) & set(judged.validation.texts)
