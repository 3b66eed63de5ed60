"""The page as Markdown, with the charts as files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studies.harness.spec import Claim, Table
from studies.report.page import (
    CLAIM_COLUMNS,
    SCOREBOARD_COLUMNS,
    Page,
    Section,
    ours_with_interval,
    slug,
    words_of_seeds,
)


def render_markdown(page: Page) -> str:
    """Return the document."""
    parts = [f"# {page.title}", *(prose(text) for text in page.answer)]
    parts += ["## Scoreboard", _verdicts(page), *([page.effort] if page.effort else [])]
    rows = [
        (section.source, claim.claim, *_numbers(claim), _link(section))
        for section in page.sections
        for claim in section.claims
    ]
    parts.append(table((*SCOREBOARD_COLUMNS, "Section"), rows))
    parts += ["## Contents", "\n".join(f"- {_link(s)}: {prose(s.question)}" for s in page.sections)]
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
        claims_table(section.claims) if section.claims else "",
    ]
    for shown in section.tables:
        parts += [f"### {prose(shown.title)}", plain_table(shown), prose(shown.note)]
    for figure in section.figures:
        alt = prose(figure.alt).replace("[", "(").replace("]", ")")
        caption = f"*{prose(figure.title)}.* {prose(figure.note)}".strip()
        parts += [f"![{alt}]({figure.file})", caption]
    facts = [*section.facts]
    if section.missing:
        facts.append(("Missing jobs", ", ".join(section.missing)))
    parts.append("\n".join(f"- {term}: {prose(words)}" for term, words in facts))
    return parts


def _verdicts(page: Page) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in page.verdicts)


def _numbers(claim: Claim) -> tuple[str, str, str, str]:
    return claim.paper or "–", ours_with_interval(claim), claim.verdict, words_of_seeds(claim.seeds)


def _link(section: Section) -> str:
    return f"[{prose(section.title)}](#{slug(section.name)})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return prose(" ".join(text.split())).replace("|", "\\|")
