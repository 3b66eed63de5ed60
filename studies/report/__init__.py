"""The report: one self-contained page, and the same as Markdown with pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankcast.files import replace_file
from studies.report.html import render_html
from studies.report.markdown import render_markdown
from studies.report.page import Page, make_page
from studies.report.scoreboard import Presented

__all__ = ["Page", "make_page", "write_report"]


def write_report(folder: Path, presented: Sequence[Presented]) -> Path:
    """Write `report.html`, `report.md` and `images/*.svg`; return the page.

    The files depend on the results alone: the same results give the same bytes.

    Args:
        folder: where to; made if absent. Other files in it stay.
        presented: the studies, in the order of their sections.
    """
    page = make_page(presented)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for section in page.sections:
        for figure in section.figures:
            _write(folder / figure.file, figure.document)
    _write(folder / "report.md", render_markdown(page))
    return _write(folder / "report.html", render_html(page))


def _write(path: Path, text: str) -> Path:
    replace_file(path, lambda partial: partial.write_text(text, "utf-8", newline="\n"))
    return path
