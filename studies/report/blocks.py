"""Tables of results inside documents, kept as the results say.

A block stands between `<!-- results:NAME -->` and `<!-- /results -->`. NAME is a study, for
its first table, or a study with what is wanted of it: `STUDY:2` for its second table,
`STUDY:claims` for its claims, `STUDY:text` for its text with the small table that belongs to it.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankcast.errors import ConfigError, nearest
from rankcast.files import replace_file
from studies.harness.spec import Presentation
from studies.report.markdown import claims_table, plain_table, prose
from studies.report.page import paragraphs
from studies.report.scoreboard import Presented

_BLOCK = re.compile(r"(<!-- results:(\S+) -->\n)(.*?)(<!-- /results -->)", re.DOTALL)
_OPENING = re.compile(r"<!-- results:(\S+) -->")


def blocks_of(presented: Sequence[Presented]) -> dict[str, str]:
    """Return every block that documents may hold, by its name."""
    blocks: dict[str, str] = {}
    for one in presented:
        name, parts = one.study.name, _parts(one.presentation)
        blocks |= {f"{name}:{part}": text for part, text in parts.items()}
        if "1" in parts:
            blocks[name] = parts["1"]
    return blocks


def rendered_blocks(studies: Path) -> dict[str, str]:
    """Return the blocks of folders that are no studies, made by `render()` in their `render.py`."""
    return {
        file.parent.name: runpy.run_path(str(file))["render"]()
        for file in sorted(studies.glob("*/render.py"))
    }


def stale_blocks(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """Return the names of a document's blocks that differ from the results, or are unknown.

    Raises:
        ConfigError: a block that is not closed.
    """
    shown = {match[2]: match[3] for match in _BLOCK.finditer(_read(path))}
    return [name for name, text in shown.items() if text.strip() != blocks.get(name, "").strip()]


def update_document(path: Path, blocks: Mapping[str, str]) -> list[str]:
    """Rewrite the stale blocks of a document in place; return their names.

    Raises:
        ConfigError: a block of which there is no result, or that is not closed.
    """
    text, stale = _read(path), stale_blocks(path, blocks)
    unknown = [name for name in stale if name not in blocks]
    if unknown:
        raise ConfigError(
            f"{path} shows {', '.join(unknown)}, of which there is no result"
            f"{nearest(unknown[0], blocks)}."
        )
    if stale:
        renewed = _BLOCK.sub(lambda match: _renew(match, blocks), text)
        replace_file(path, lambda partial: partial.write_text(renewed, "utf-8", newline="\n"))
    return stale


def _parts(presentation: Presentation) -> dict[str, str]:
    """Return what can be shown of a study, by what stands after the colon."""
    tables = enumerate(presentation.tables, start=1)
    parts = {str(number): plain_table(table) for number, table in tables}
    if presentation.claims:
        parts["claims"] = claims_table(presentation.claims)
    words = [prose(text) for text in paragraphs(presentation.text)]
    if presentation.summary is not None:
        words.append(plain_table(presentation.summary))
    if words:
        parts["text"] = "\n\n".join(words)
    return parts


def _renew(match: re.Match[str], blocks: Mapping[str, str]) -> str:
    return f"{match[1]}\n{blocks[match[2]].strip()}\n\n{match[4]}"


def _read(path: Path) -> str:
    """Return a document whose blocks are all closed."""
    text = path.read_text("utf-8")
    closed = [match[2] for match in _BLOCK.finditer(text)]
    opened = _OPENING.findall(text)
    if opened != closed:
        broken = next(name for name in opened if name not in closed or opened.count(name) > 1)
        raise ConfigError(f"{path}: the block {broken} is not closed by <!-- /results -->.")
    return text
