"""The report: one self-contained page, and the same as Markdown with pictures beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rankcast.experiment.report.html import render_html
from rankcast.experiment.report.markdown import render_markdown
from rankcast.experiment.report.page import Page, make_page
from rankcast.experiment.scoreboard import Presented

__all__ = ["Page", "make_page", "write_report"]


def write_report(folder: Path, presented: Sequence[Presented]) -> Path:
    """Write `report.html`, `report.md` and `images/*.svg`; return the page.

    The files depend on the results alone: the same results give the same bytes.

    Args:
        folder: where to; made if absent. Other files in it stay.
        presented: the experiments, in the order of their sections.
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
    """Write a file whole: under a temporary name, then renamed."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(text, "utf-8", newline="\n")
        os.replace(partial, path)  # noqa: PTH105 - atomic on Windows too
    finally:
        partial.unlink(missing_ok=True)
    return path
