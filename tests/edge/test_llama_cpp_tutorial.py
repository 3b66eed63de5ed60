"""The tutorial of llama.cpp, as a reader follows it: every block in order, in an empty folder."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from helpers.llama_cpp import needs_llama_cpp
from helpers.programs import free_port
from helpers.tutorials import TUTORIALS, Ran, check_output, follow, matches

PAGE = TUTORIALS / "llama-cpp.md"
PORTS = "STORE_PORT=8080 LLAMA_PORT=8081"
SENTENCE = re.compile(r"[A-Z][A-Za-z, ]+[.!]")
"""What the model says, and no command."""


def answers(ran: list[Ran], question: str) -> list[str]:
    """Return what the server said to a question, from the first time to the last."""
    found = []
    for block in ran:
        asked = [line for line in block.commands.text.splitlines() if "ask.py" in line]
        said = [line for line in block.printed if SENTENCE.fullmatch(line)]
        assert len(said) == len(asked), block
        found += [s for a, s in zip(asked, said, strict=True) if question in a]
    return found


def test_the_tutorial_does_what_it_shows(tmp_path: Path) -> None:
    """One test, so that no two processes of the suite follow the page."""
    needs_llama_cpp()
    page, ports = PAGE.read_text("utf-8"), (free_port(), free_port())
    assert page.count(PORTS) == 1
    page = page.replace(PORTS, "STORE_PORT={} LLAMA_PORT={}".format(*ports))
    ran = follow(page, tmp_path)
    check_output(ran, least=8)
    check_answers(ran)
    check_process(ran)
    assert list((tmp_path / "empty").iterdir()) == []
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


def check_answers(ran: list[Ran]) -> None:
    """Each release changed the answer, and the first one's came back."""
    alone, first, second, again = answers(ran, "What does the dog say?")
    assert len({alone, first, second}) == 3
    assert again == first


def check_process(ran: list[Ran]) -> None:
    """One process answered from the first release to the last."""
    text = "\n".join(line for block in ran for line in block.printed)
    found = re.findall(r"^llama\.cpp is process (\d+)", text, re.MULTILINE)
    assert (len(found), len(set(found))) == (3, 1)
    assert re.findall(r"^animals version (\d+) is active", text, re.MULTILINE) == ["1", "2", "3"]
    assert re.findall(r"^activated: animals-v(\d+)-", text, re.MULTILINE) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("4,093 bytes in 0.01 s.", "12 bytes in 3 s.", True),
        ("a-v1-… is active.", "a-v2-l0-n6-aa0c is active.", True),
        ("Woof.", "Woof, Woof!", False),
        ("4,093 bytes", "no bytes", False),
    ],
)
def test_lines_are_compared_but_for_numbers_and_gaps(
    shown: str, printed: str, *, expected: bool
) -> None:
    assert matches(shown, printed) is expected
