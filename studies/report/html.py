"""The page as one HTML file: nothing is fetched, and a script of its own sorts and filters."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from studies.report.page import (
    CLAIM_COLUMNS,
    Figure,
    Page,
    ours_with_interval,
    slug,
    words_of_missing,
    words_of_seeds,
    words_of_verdicts,
)

_NEEDLESS = re.compile(r"</(?:td|th|tr|li|dt|dd|tbody|thead)>(?=\s*<)| scope=\"\w+\"(?=>)")
"""What every browser adds by itself; a tenth of the page."""

_QUOTED = re.compile(r"""="([^\s"'=<>`/]+)"(?=[ >]|(/>))""")
"""Values of attributes that HTML, other than SVG in a file of its own, takes without quotes."""

_TAG = re.compile(r"<[a-z][^<>]*>")
_CODE_OR_EMPHASIS = re.compile(r"`([^`]+)`|\*([^*\s](?:[^*]*[^*\s])?)\*")


def render_html(page: Page) -> str:
    """Return the document."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "counts": words_of_verdicts,
        "inline": inline,
        "missing": words_of_missing,
        "ours": ours_with_interval,
        "seeds": words_of_seeds,
        "slug": slug,
        "svg": inline_svg,
    }
    text = {
        name: files("studies.report").joinpath(name).read_text("utf-8")
        for name in ("report.html.jinja", "report.css", "scoreboard.js")
    }
    whole = environment.from_string(text["report.html.jinja"]).render(
        page=page,
        claim_columns=CLAIM_COLUMNS,
        style=Markup(text["report.css"]),  # noqa: S704 - ours
        script=Markup(text["scoreboard.js"]),  # noqa: S704 - ours
    )
    page_itself, begin, script = _NEEDLESS.sub("", whole).partition("<script")
    shorter = _TAG.sub(lambda tag: _without_quotes(tag[0]), page_itself)
    return re.sub(r"\n\s*\n+", "\n", shorter + begin + script)


def _without_quotes(text: str) -> str:
    """Leave out quotes around values of attributes that do not need them."""
    return _QUOTED.sub(lambda match: f"={match[1]}{' ' if match[2] else ''}", text)


def inline(text: str) -> Markup:
    """Return escaped text in which `code` and *emphasis* are marked up."""

    def mark(match: re.Match[str]) -> str:
        tag, words = ("code", match[1]) if match[1] is not None else ("em", match[2])
        return f"<{tag}>{words}</{tag}>"

    return Markup(_CODE_OR_EMPHASIS.sub(mark, str(escape(text))))  # noqa: S704 - escaped before


def inline_svg(figure: Figure) -> Markup:
    """Return a drawing for use inside the page, with its words for who cannot see it."""
    view = re.search(r'viewBox="[^"]*"', figure.document)
    start = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(figure.alt)}">'
    inner = figure.document[figure.document.index(">") + 1 :]
    return Markup(start + _without_quotes(inner))  # noqa: S704 - drawn by us
