"""The help of every command: complete, quick, and in one form."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache

import pytest

from rankcast.cli.main import GROUPS, command_class, command_names, main, parse

WIDTH = 80


def every_command() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and sub-command."""
    for name in command_names():
        yield (name,)
        for action in getattr(command_class(name), "COMMANDS", {}):
            yield name, action


EVERY_COMMAND = list(every_command())
each_command = pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)


@contextlib.contextmanager
def _narrow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(WIDTH))
        yield


@cache
def shown(*args: str) -> str:
    """Return a help text as a terminal of 80 columns shows it."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _narrow(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main([*args, "--help"])
    assert (stopped.value.code, err.getvalue()) == (0, "")
    return out.getvalue()


def descriptions(text: str) -> dict[str, str]:
    """Return what is said of each option and positional argument of a help text."""
    entries: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        option = re.match(r"  ((?:--?[a-z]|\[?[A-Z][A-Z-]+(?=\]?$|  ))\S*)", line)
        if option:
            name = option[1]
            rest = re.split(r"  +", line.strip(), maxsplit=1)[1:]
            entries[name] = " ".join(rest)
        elif line.startswith("   ") and name:
            entries[name] = f"{entries[name]} {line.strip()}".strip()
        elif not line.startswith("  "):  # the choices of an option may go on after two spaces
            name = ""
    return entries


def test_the_root_fits_on_one_screen() -> None:
    lines = shown().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= WIDTH
    for title in GROUPS:
        assert f"{title}:" in lines
    for name in command_names():
        assert [line for line in lines if line.startswith(f"  {name} ")], name


@each_command
def test_help_fits_80_columns_and_shows_no_inner_words(words: tuple[str, ...]) -> None:
    text = shown(*words)
    assert text.startswith(f"usage: rankcast {' '.join(words)}")
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    for inner in ("None", "{True,False}", "STR|", "MISSING"):
        assert inner not in text


@each_command
def test_help_has_an_example_and_a_first_sentence(words: tuple[str, ...]) -> None:
    first, *examples = shown(*words).split("\n\n")[1:3]
    assert first.endswith(".")
    assert f"  rankcast {' '.join(words)}" in "\n".join(examples)


@each_command
def test_every_description_is_a_sentence(words: tuple[str, ...]) -> None:
    odd = {}
    for name, told in descriptions(shown(*words)).items():
        sentence = re.sub(r" ?\((required|default: .*?|optional)\)$", "", told)
        if not (sentence[:1].isupper() or sentence[:1].isdigit()) or not sentence.endswith("."):
            odd[name] = told
    assert odd == {}


@each_command
def test_whatever_is_written_is_named_with_o(words: tuple[str, ...]) -> None:
    text = shown(*words)
    if "--output PATH" in text:
        assert "-o PATH, --output PATH" in text


def test_choices_stand_in_the_order_of_their_declaration() -> None:
    assert "{peft,vllm,gguf,merged}" in shown("export")
    assert "{fine,good,small}" in shown("pack")


def test_parse_returns_what_was_typed_without_running_it() -> None:
    command = parse(["allocate", "--run", "runs/demo", "--snr-db", "-5"])
    assert (str(command.run_folder), command.snr_db, command.deadline_s) == (
        "runs/demo",
        -5.0,
        None,
    )
