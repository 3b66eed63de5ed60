"""Make notebooks of tutorials, so that their text exists once: the Markdown page.

A notebook has the cells of format 4.5 (https://nbformat.readthedocs.io). Python becomes a cell of
code; a file that a reader is told to save, `%%writefile`; commands of numbered steps, `%%bash`.
Everything else, such as what a command prints, stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

NOTEBOOKS = ("tutorials/allocator.md", "tutorials/ladder.md")
"""Pages of `docs/` that the site has as notebooks, too."""
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"Save\s+this\s+as\s+`([^`]+)`")
STEP = re.compile(r"^## \d+\. ", re.MULTILINE)
SECTION = re.compile(r"^## ", re.MULTILINE)
LINK = re.compile(r"\[([^\[\]]+)\]\((?!https?:)[^)\s]+\)")


def notebook_of(page: str) -> str:
    """Return a tutorial as the JSON of a notebook that nobody has run."""
    cells = [
        {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(True)}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for number, (kind, text) in enumerate(_cells(page))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cells(page: str) -> Iterator[tuple[str, str]]:
    """Yield kind and text of each cell."""
    text, place = "", 0
    for block in BLOCK.finditer(page):
        text += page[place : block.start()]
        place = block.end()
        code = _code(block[1], block[2], before=page[: block.start()])
        if code is None:
            text += block[0]
            continue
        yield from _markdown(text)
        text = ""
        yield "code", code
    yield from _markdown(text + page[place:])


def _code(language: str, source: str, before: str) -> str | None:
    """Return a cell of code, or None if the block is only to be read."""
    start = max((section.start() for section in SECTION.finditer(before)), default=0)
    source = source.rstrip("\n")
    if not STEP.match(before, start):
        return None
    if language == "sh":
        return f"%%bash\n{source}"
    since = before[max(before.rfind("```", start), start) :]
    return "\n".join([*(f"%%writefile {name}" for name in FILE.findall(since)[-1:]), source])


def _markdown(text: str) -> Iterator[tuple[str, str]]:
    """Yield the text between two cells of code; links to other pages lead nowhere from here."""
    if text.strip():
        yield "markdown", LINK.sub(r"\1", text).strip("\n")
