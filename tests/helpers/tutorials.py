"""Follow a tutorial of the documents as its reader does: every block, in an empty folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from helpers.programs import lacks
from helpers.waiting import DEADLOCK_S

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
STEPS = re.compile(r"^## \d+\. (.+?)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[Ss]ave\s+(?:this|it)\s+as\s+`([\w/]+\.py)`")
MARK = "--- block {} ---"
NUMBER = r"\d[\d,.]*"


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


def follow(page: str, folder: Path) -> list[Ran]:
    """Do what the page says in an empty folder, and return its shell blocks and what they said.

    Args:
        page: its text.
        folder: for the script, what it printed, and the empty folder.
    """
    bash = _bash()
    blocks = list(blocks_of(page))
    script, out, err = (folder / name for name in ("script.sh", "stdout", "stderr"))
    script.write_text(script_of(blocks), "utf-8")
    (folder / "empty").mkdir()
    with out.open("wb") as printed, err.open("wb") as complained:
        process = subprocess.Popen(  # noqa: S603 our own words
            [bash, str(script)], cwd=folder / "empty", stdin=subprocess.DEVNULL, stdout=printed,
            stderr=complained, env=_environment(), start_new_session=True,
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


def run_notebook(notebook: str, module: ModuleType) -> list[Ran]:
    """Run the cells of code in order, in this folder and in one namespace, as Jupyter does.

    Args:
        notebook: its JSON.
        module: holds the names.

    Returns:
        Cells that the text behind them says to print something, and what they printed.
    """
    cells = [(c["cell_type"], "".join(c["source"])) for c in json.loads(notebook)["cells"]]
    ran = []
    for (kind, source), (_, after) in zip(cells, [*cells[1:], ("", "")], strict=True):
        if kind == "code":
            printed = tuple(_run_cell(source, module).splitlines())
            shown = re.match(r"```text\n(.*?)^```", after, re.MULTILINE | re.DOTALL)
            ran.append(
                Ran(Commands(source, tuple(shown[1].splitlines()) if shown else ()), printed)
            )
    return ran


def _run_cell(source: str, module: ModuleType) -> str:
    """Run a cell of code, of which two magics are known, and return what it printed."""
    magic, _, rest = source.partition("\n")
    if magic.startswith("%%writefile "):
        Path(magic.split()[1]).write_text(rest, "utf-8")
        return ""
    if magic == "%%bash":
        return subprocess.run(  # noqa: S603 our own words
            [_bash(), "-eu"], input=rest, env=_environment(), stdout=subprocess.PIPE, text=True,
            check=True,
        ).stdout  # fmt: skip
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "cell", "exec"), vars(module))  # noqa: S102 our own words
    return printed.getvalue()


def _bash() -> str:
    bash = shutil.which("bash")
    if bash is None:
        lacks("bash is not installed (Debian: apt-get install bash)")
    assert bash is not None
    return bash


def _environment() -> dict[str, str]:
    """Return the variables of a shell in which the project's programs are found first."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs}


def _end_all(group: int) -> None:
    """End what a failure left behind."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def check_output(ran: list[Ran], least: int) -> None:
    """Check that every block printed what the page shows, in this order.

    Args:
        ran: the blocks.
        least: of them that show what they print.
    """
    assert sum(bool(block.commands.shown) for block in ran) >= least
    for block in ran:
        printed = iter(block.printed)
        for line in block.commands.shown:
            assert any(matches(line, other) for other in printed), (line, block.printed)
