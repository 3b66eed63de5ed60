"""The documents as a site: it builds strictly, asks no other host, and fits phones and screens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.servers import files_over_http

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r'<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|srcset|href)="([^"]+)"')
PAGES = (
    "index.html", "adapters.html", "commands.html", "results.html", "reference/packing.html",
    "scoreboard/report.html", "studies/codec/index.html", "tutorials/peft-adapter.html",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; links and code names that lead nowhere are errors (`strict`)."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    built = subprocess.run(  # noqa: S603 our own words
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with files_over_http(site) as url:
        yield url


def test_every_document_is_a_page(site: Path) -> None:
    documents = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")]
    missing = [p for p in documents if not (site / p.with_suffix(".html")).exists()]
    missing += [p for p in map(Path, PAGES) if not (site / p).exists()]
    assert missing == []


def test_the_reference_has_the_public_names(site: Path) -> None:
    import rankcast

    pages = "".join(p.read_text("utf-8") for p in (site / "reference").glob("*.html"))
    headings = re.findall(r'<h2 [^>]*class="doc doc-heading">\s*(?:<[^>]+>\s*)*([\w.]+)', pages)
    names = {f"rankcast.{name}" for name in rankcast.__all__ if name != "__version__"}
    assert names - set(headings) == set()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loaded = {
        target
        for page in site.rglob("*.html")
        for target in LOADED.findall(page.read_text("utf-8"))
        if "://" in target
    }
    assert loaded == set()


@pytest.mark.parametrize("width", [390, 1440])
def test_pages_fit(browser: Any, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    too_wide = {}
    for path in PAGES:
        page.goto(f"{address}/{path}")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if wide > 0:
            too_wide[path] = wide
    page.close()
    assert too_wide == {}
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
