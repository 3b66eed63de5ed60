"""The documents as a site: it builds strictly, asks no other host, and fits phones and screens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import contrast, pale_texts
from helpers.servers import files_over_http

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r'<(?:script|link|img|source|iframe)\b[^>]*?\b(?:src|srcset|href)="([^"]+)"')
PAGES = (
    "index.html", "adapters.html", "commands.html", "results.html", "reference/packing.html",
    "scoreboard/report.html", "studies/codec/index.html", "tutorials/peft-adapter.html",
)  # fmt: skip
ARTICLE = '<article class="md-content'
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
QUIET = ".headerlink, .md-search, .md-skip, .md-top, .md-drawer, [hidden], noscript, script, style"
"""What shows only under the pointer or on request."""


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
    others = *PAGES, "tutorials/allocator.ipynb", "tutorials/ladder.ipynb"
    missing += [p for p in map(Path, others) if not (site / p).exists()]
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


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_pages_fit(browser: Any, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    too_wide = {}
    for path in PAGES:
        page.goto(f"{address}/{path}")
        wide = page.evaluate(TOO_WIDE)
        if wide > 0:
            too_wide[path] = wide
    page.close()
    assert too_wide == {}
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


IN_ONE_FRAME = """async ([address, paths]) => {
  const base = document.head.querySelector('base') ?? document.createElement('base');
  document.head.prepend(base);
  const article = document.querySelector('article'), tooWide = {};
  const kept = window.kept ??= new Map();
  for (const path of paths) {
    if (!kept.has(path)) {
      const text = await (await fetch(`${address}/${path}`)).text();
      const there = new DOMParser().parseFromString(text, 'text/html').querySelector('article');
      for (const table of there.querySelectorAll('table:not([class])')) {
        const box = document.createElement('div');
        box.className = 'md-typeset__scrollwrap';
        box.innerHTML = '<div class="md-typeset__table"></div>';
        table.replaceWith(box);
        box.firstChild.append(table);
      }
      kept.set(path, there.innerHTML);
    }
    base.href = `${address}/${path}`;  // pictures lie beside the page
    article.innerHTML = kept.get(path);
    await Promise.allSettled([...article.querySelectorAll('img')].map((i) => i.decode()));
    const wide = document.documentElement.scrollWidth - innerWidth;
    if (wide > 0) tooWide[path] = wide;
  }
  return tooWide;
}"""
"""Show the text of each page in the frame of this one, with the boxes that the theme's script puts
around tables, and return which are too wide. Opening every page would take minutes."""


def test_the_text_of_every_page_fits(browser: Any, site: Path, address: str) -> None:
    # What is alone on its page, such as the report, has its own tests.
    framed = [p for p in site.rglob("*.html") if ARTICLE in p.read_text("utf-8")]
    paths = sorted(p.relative_to(site).as_posix() for p in framed)
    assert len(paths) > 90
    (site / "wide.html").write_text(f'{ARTICLE}"><hr style="width: 2000px"></article>', "utf-8")
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{address}/index.html")
    page.add_style_tag(content="* { transition: none !important }")  # between widths
    for width in (390, 800, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(IN_ONE_FRAME, [address, paths]) == {}
        assert page.evaluate(IN_ONE_FRAME, [address, ["wide.html"]]).keys() == {"wide.html"}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Any, address: str, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    pale = {}
    for path in ("index.html", "tutorials/peft-adapter.html", "reference/packing.html"):
        page.goto(f"{address}/{path}")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (contrast("rgb(0, 0, 0)", background) > 10) is (scheme == "light")
        pale |= pale_texts(page, QUIET)
    page.close()
    assert pale == {}
