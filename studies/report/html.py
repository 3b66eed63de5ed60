"""The page as one HTML file: nothing is fetched, nothing is run."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from studies.report.page import (
    CLAIM_COLUMNS,
    SCOREBOARD_COLUMNS,
    Figure,
    Page,
    ours_with_interval,
    slug,
    words_of_seeds,
)

_CODE_OR_EMPHASIS = re.compile(r"`([^`]+)`|\*([^*\s](?:[^*]*[^*\s])?)\*")


def render_html(page: Page) -> str:
    """Return the document."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "inline": inline,
        "ours": ours_with_interval,
        "seeds": words_of_seeds,
        "slug": slug,
        "svg": inline_svg,
    }
    source = files("studies.report").joinpath("report.html.jinja").read_text("utf-8")
    return environment.from_string(source).render(
        page=page, scoreboard_columns=SCOREBOARD_COLUMNS, claim_columns=CLAIM_COLUMNS
    )


def inline(text: str) -> Markup:
    """Return escaped text in which `code` and *emphasis* are marked up."""

    def mark(match: re.Match[str]) -> str:
        tag, words = ("code", match[1]) if match[1] is not None else ("em", match[2])
        return f"<{tag}>{words}</{tag}>"

    return Markup(_CODE_OR_EMPHASIS.sub(mark, str(escape(text))))  # noqa: S704 - escaped before


def inline_svg(figure: Figure) -> Markup:
    """Return a drawing for use inside the page, with its words for who cannot see it."""
    label = f'<svg role="img" aria-label="{escape(figure.alt)}"'
    return Markup(figure.document.replace("<svg", label, 1))  # noqa: S704 - drawn by us
