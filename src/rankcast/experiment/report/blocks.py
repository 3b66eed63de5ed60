"""Tables of results inside documents, kept as the results say.

A block stands between `<!-- results:NAME -->` and `<!-- /results -->`. NAME is an experiment, for
its first table, or an experiment with what is wanted of it: `EXPERIMENT:2` for its second table,
`EXPERIMENT:claims` for its claims, `EXPERIMENT:text` for its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rankcast.errors import ConfigError, nearest
from rankcast.experiment.report.markdown import claims_table, plain_table, prose
from rankcast.experiment.report.page import paragraphs
from rankcast.experiment.scoreboard import Presented
from rankcast.experiment.spec import Presentation

_BLOCK = re.compile(r"(<!-- results:(\S+) -->\n)(.*?)(<!-- /results -->)", re.DOTALL)
_OPENING = re.compile(r"<!-- results:(\S+) -->")


def block(name: str, presentation: Presentation) -> str:
    """Return the Markdown of a block.

    Args:
        name: `EXPERIMENT`, `EXPERIMENT:2`, `EXPERIMENT:claims` or `EXPERIMENT:text`.
        presentation: of that experiment.

    Raises:
        ConfigError: the experiment has no such table.
    """
    wanted = name.partition(":")[2] or "1"
    found = _parts(presentation)
    if wanted not in found:
        raise ConfigError(
            f"There is no block {name!r}{nearest(wanted, found)}. Known after the colon: "
            f"{', '.join(found)}."
        )
    return found[wanted]


def blocks_of(presented: Sequence[Presented]) -> dict[str, str]:
    """Return every block that documents may hold, by its name."""
    found: dict[str, str] = {}
    for one in presented:
        name, parts = one.experiment.name, _parts(one.presentation)
        found |= {f"{name}:{part}": text for part, text in parts.items()}
        if "1" in parts:
            found[name] = parts["1"]
    return found


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
        partial = path.with_name(f".{path.name}.tmp")
        partial.write_text(renewed, "utf-8", newline="\n")
        partial.replace(path)
    return stale


def _parts(presentation: Presentation) -> dict[str, str]:
    """Return what can be shown of an experiment, by what stands after the colon."""
    tables = enumerate(presentation.tables, start=1)
    parts = {str(number): plain_table(table) for number, table in tables}
    if presentation.claims:
        parts["claims"] = claims_table(presentation.claims)
    if presentation.text:
        parts["text"] = "\n\n".join(prose(text) for text in paragraphs(presentation.text))
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
