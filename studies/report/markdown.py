"""The page as Markdown: every claim, with the charts as files beside it.

The tables of numbers are in the HTML page and in the README of each study.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studies.harness.spec import Claim, Table
from studies.report.page import (
    CLAIM_COLUMNS,
    Page,
    Section,
    ours_with_interval,
    slug,
    words_of_missing,
    words_of_seeds,
    words_of_verdicts,
)

_LEAD = (
    "Every claim of the paper that can be tested here, then every question of ours, with the "
    "paper's number, ours, its 95 % interval and a verdict. [report.html](report.html) has "
    "the same claims in one table to sort and filter, and all tables of numbers."
)


def render_markdown(page: Page) -> str:
    """Return the document."""
    parts = [
        f"# {page.title}",
        _LEAD,
        "## Contents",
    ]
    for heading, sections in page.groups:
        lines = [f"- {_link(s)}: {_counts(s) or prose(s.question)}" for s in sections]
        parts += [f"**{heading}**", "\n".join(lines)]
    parts += ["## Verdicts", plain_table(page.tally), page.effort]
    for section in page.sections:
        parts += _section(section)
    return "\n\n".join(part for part in parts if part) + "\n"


def claims_table(claims: Sequence[Claim]) -> str:
    """Return the claims of a study as a table."""
    return table(CLAIM_COLUMNS, [(c.claim, *_numbers(c), c.note) for c in claims])


def plain_table(shown: Table) -> str:
    """Return a table without its title and note."""
    return table(shown.columns, shown.rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; what would end a cell is escaped."""
    lines = [_row(columns), "|" + "---|" * len(columns), *(_row(row) for row in rows)]
    return "\n".join(lines)


def prose(text: str) -> str:
    """Return text in which nothing is taken for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _section(section: Section) -> list[str]:
    parts = [
        f'<a id="{slug(section.name)}"></a>\n\n## {prose(section.title)}',
        f"**{prose(section.question)}** ({prose(section.source)})",
        *(prose(text) for text in section.text),
        plain_table(section.summary) if section.summary else "",
        *_claims(section),
    ]
    for figure in section.figures:
        alt = prose(figure.title).replace("[", "(").replace("]", ")")
        caption = f"*{prose(figure.title)}.* {prose(figure.note)}".strip()
        parts.append(f"![{alt}]({figure.file})\n\n{caption}")
    return [*parts, _facts(section)]


def _claims(section: Section) -> list[str]:
    """Return the claims, and below them each note once."""
    if not section.claims:
        return []
    rows = [(c.claim, *_numbers(c), section.note_number(c)) for c in section.claims]
    notes = [f"{number}. {prose(note)}" for number, note in enumerate(section.notes, start=1)]
    return [table(CLAIM_COLUMNS, rows), "\n".join(notes)]


def _facts(section: Section) -> str:
    """Return how to get it again, and what is still missing."""
    facts = dict(section.facts)
    words = f"{facts['Command']}, {facts['Jobs']}, seeds {facts['Seeds']}."
    if section.missing:
        words += f" Missing: {prose(words_of_missing(section.missing))}."
    return f"{words} [More about it](../../studies/{section.name}/README.md)"


def _counts(section: Section) -> str:
    return words_of_verdicts(section.verdicts)


def _numbers(claim: Claim) -> tuple[str, str, str, str]:
    return claim.paper or "–", ours_with_interval(claim), claim.verdict, words_of_seeds(claim.seeds)


def _link(section: Section) -> str:
    return f"[{prose(section.title)}](#{slug(section.name)})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return prose(" ".join(text.split())).replace("|", "\\|")
