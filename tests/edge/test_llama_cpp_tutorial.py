"""The tutorial of llama.cpp, as a reader follows it: every block in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.llama_cpp import needs_llama_cpp
from helpers.programs import free_port, lacks
from helpers.waiting import DEADLOCK_S

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "llama-cpp.md"
STEPS = re.compile(r"^## \d+\. (.+?)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[Ss]ave this as `(\w+\.py)`")
PORTS = "STORE_PORT=8080 LLAMA_PORT=8081"
MARK = "--- block {} ---"
NUMBER = r"\d[\d,.]*"
SENTENCE = re.compile(r"[A-Z][A-Za-z, ]+[.!]")
"""What the model says, and no command."""


@dataclass(frozen=True)
class Commands:
    """A shell block of the page.

    Attributes:
        text: what a reader types.
        shown: lines that the page shows below it; none for nothing.
    """

    text: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """A shell block and the lines that it printed."""

    commands: Commands
    printed: tuple[str, ...]


def blocks_of(page: str) -> Iterator[Commands | tuple[str, str]]:
    """Yield what the numbered steps have: commands, and files by their name and text."""
    for _, step in STEPS.findall(page):
        found = list(BLOCK.finditer(step))
        for i, block in enumerate(found):
            kind, text = block.groups()
            if kind == "python":
                yield FILE.findall(step[: block.start()])[-1], text
            elif kind == "sh":
                after = found[i + 1].groups() if i + 1 < len(found) else ("", "")
                yield Commands(text, tuple(after[1].splitlines()) if after[0] == "text" else ())
            else:
                assert kind == "text", kind
                assert found[i - 1][1] == "sh", text


def script_of(blocks: list[Commands | tuple[str, str]]) -> str:
    """Return all of it as a script that ends at the first command that fails."""
    lines = ["set -eu"]
    for number, block in enumerate(blocks):
        if isinstance(block, Commands):
            lines += [f'echo "{MARK.format(number)}"', block.text]
        else:
            name, text = block
            lines.append(f"cat > {name} <<'END OF FILE'\n{text}END OF FILE")
    return "\n".join(lines)


def matches(shown: str, printed: str) -> bool:
    """Say whether a line is as the page shows it: `…` is anything, and a number any number."""
    words = re.split(rf"(…|{NUMBER})", shown.rstrip())
    patterns = [".*" if w == "…" else NUMBER if re.fullmatch(NUMBER, w) else re.escape(w)
                for w in words]  # fmt: skip
    return re.fullmatch("".join(patterns), printed.rstrip()) is not None


def follow(blocks: list[Commands | tuple[str, str]], bash: str, folder: Path) -> list[Ran]:
    """Do what the page says in an empty folder, and return its shell blocks and what they said.

    Args:
        blocks: of the page.
        bash: the program.
        folder: for the script, what it printed, and the empty folder.
    """
    script, out, err = (folder / name for name in ("script.sh", "stdout", "stderr"))
    script.write_text(script_of(blocks), "utf-8")
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (folder / "empty").mkdir()
    with out.open("wb") as printed, err.open("wb") as complained:
        process = subprocess.Popen(  # noqa: S603 our own words
            [bash, str(script)], cwd=folder / "empty", stdin=subprocess.DEVNULL, stdout=printed,
            stderr=complained, env={**os.environ, "PATH": programs}, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(2 * DEADLOCK_S)  # many programs, one after another
        finally:
            _end_all(process.pid)
            process.wait()
    text = out.read_text("utf-8")
    assert status == 0, f"{text}\n{err.read_text('utf-8')}"
    parts = re.split("^" + MARK.format(r"\d+") + "\n", text, flags=re.MULTILINE)[1:]
    commands = [block for block in blocks if isinstance(block, Commands)]
    return [Ran(c, tuple(p.splitlines())) for c, p in zip(commands, parts, strict=True)]


def _end_all(group: int) -> None:
    """End what a failure left behind."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


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
    bash = shutil.which("bash")
    if bash is None:
        lacks("bash is not installed (Debian: apt-get install bash)")
    assert bash is not None
    page, ports = PAGE.read_text("utf-8"), (free_port(), free_port())
    assert page.count(PORTS) == 1
    page = page.replace(PORTS, "STORE_PORT={} LLAMA_PORT={}".format(*ports))
    ran = follow(list(blocks_of(page)), bash, tmp_path)
    check_output(ran)
    check_answers(ran)
    check_process(ran)
    assert list((tmp_path / "empty").iterdir()) == []
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


def check_output(ran: list[Ran]) -> None:
    """Every block printed what the page shows, in this order."""
    assert sum(bool(block.commands.shown) for block in ran) >= 8
    for block in ran:
        printed = iter(block.printed)
        for line in block.commands.shown:
            assert any(matches(line, other) for other in printed), (line, block.printed)


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
