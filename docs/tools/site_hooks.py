"""Bring documents outside `docs/` into the site, and lead links to where they are there.

The same pages are read in the repository. There README.md is in the root, each study has a README
in its folder, and links lead to files that are no pages, such as results. On the site README.md is
the first page, studies have pages, and a link to anything else is its text alone. Some tutorials
are notebooks as well.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).parent))  # where MkDocs does not look for modules

from notebooks import NOTEBOOKS, notebook_of  # noqa: E402

ELSEWHERE = {
    "README.md": "index.md",
    "docs/scoreboard/report.html": "scoreboard/interactive.html",  # report.md becomes report.html
}
"""Files that have another place on the site than in the repository."""
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
HTML = re.compile(r'( src(?:set)?=")([^"]+)(")')
FENCE = re.compile(r"^```")
RUNNABLE = re.compile(r"^```python runnable$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere in the repository."""
    pictures = (file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("studies/*/*.png")))
    for path in (*ELSEWHERE, *outside(), *pictures):
        uri = site_uri(path) or path
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for page in NOTEBOOKS:
        notebook = notebook_of((ROOT / "docs" / page).read_text("utf-8"))
        files.append(File.generated(config, _notebook(page), content=notebook))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from places in the repository to places on the site."""
    del config, files
    uri = page.file.src_uri
    moved_here = (path for path in (*ELSEWHERE, *outside()) if site_uri(path) == uri)
    here = next(moved_here, f"docs/{uri}")
    if uri in NOTEBOOKS:
        name = _notebook(uri)
        markdown = markdown.replace(f"`{name}`", f"[`{name}`]({posixpath.basename(name)})")
    return "\n".join(_rewritten(markdown, here))


def _notebook(page: str) -> str:
    """Return where the notebook of a page is on the site."""
    return page.removesuffix(".md") + ".ipynb"


@cache
def outside() -> list[str]:
    """Return the pages that do not lie in `docs/`, but have the same path on the site."""
    studies = sorted(ROOT.glob("studies/*/README.md"))
    named = ["CONTRIBUTING.md", "CHANGELOG.md"]
    return named + [study.relative_to(ROOT).as_posix() for study in studies]


def site_uri(path: str) -> str | None:
    """Return where a file of the repository is on the site; None if it is not there."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path in outside() else None


def moved(target: str, here: str) -> str | None:
    """Return a relative link as the site needs it; None if it leads to nothing there.

    Args:
        target: of the link, on the page as it is in the repository.
        here: path of the page in the repository.
    """
    if "://" in target or target.startswith(("#", "mailto:")):
        return target
    path, _, anchor = target.partition("#")
    uri = site_uri(posixpath.normpath(posixpath.join(posixpath.dirname(here), path)))
    if uri is None:
        return None
    start = posixpath.dirname(site_uri(here) or "") or "."
    return posixpath.relpath(uri, start) + (f"#{anchor}" if anchor else "")


def _rewritten(markdown: str, here: str) -> Iterator[str]:
    """Yield the lines of a page; lines of code stay as they are."""

    def link(match: re.Match[str]) -> str:
        target = moved(match[2], here)
        return match[1] if target is None else f"[{match[1]}]({target})"

    def attribute(match: re.Match[str]) -> str:
        return f"{match[1]}{moved(match[2], here) or match[2]}{match[3]}"

    in_code = False
    for line in markdown.split("\n"):
        if FENCE.match(line):
            in_code = not in_code
            yield RUNNABLE.sub("```python", line)
        else:
            yield line if in_code else HTML.sub(attribute, LINK.sub(link, line))
