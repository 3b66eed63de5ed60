"""The report in a real browser; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.browser import contrast
from helpers.waiting import DEADLOCK_S
from report_data import everything
from studies.report import write_report

COLOURS = """() => [...document.querySelectorAll(
    'p, li, th, td, dt, dd, a, code, b, label, input, select, .note')]
  .filter(e => e.innerText && e.innerText.trim())
  .map(e => {
    let behind = e;
    const clear = b => getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)';
    while (behind.parentElement && clear(behind)) behind = behind.parentElement;
    return [e.className || e.tagName, getComputedStyle(e).color,
            getComputedStyle(behind).backgroundColor];
  })"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tmp_path_factory.mktemp("browser"), everything()).as_uri()


def opened(browser: Any, url: str, width: int, scheme: str) -> tuple[Any, list[str]]:
    """Open the page; return it with what went wrong and what was fetched from elsewhere."""
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(1000.0 * DEADLOCK_S)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.append("dialog"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            seen.append(f"request: {request.url}")
            if request.url != url and not request.url.startswith("data:")
            else None
        ),
    )
    page.goto(url)
    return page, seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Any, url: str, scheme: str) -> None:
    page, seen = opened(browser, url, 1200, scheme)
    assert seen == []
    colours = page.evaluate(COLOURS)
    assert len(colours) > 100
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (contrast(background, "rgb(0, 0, 0)") > 10) is (scheme == "light")
    pale = {(name, round(contrast(ink, paper), 1)) for name, ink, paper in colours}
    assert {(name, ratio) for name, ratio in pale if ratio < 4.5} == set()
    page.close()


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_the_page_does_not_scroll_sideways(browser: Any, url: str, width: int) -> None:
    page, seen = opened(browser, url, width, "light")
    assert seen == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Wide tables and charts scroll inside their box instead.
    boxes = "[...document.querySelectorAll('.scroll, .card')]"
    assert page.evaluate(f"{boxes}.every(b => b.getBoundingClientRect().right <= {width})")
    if width == 390:
        assert page.evaluate(f"{boxes}.some(b => b.scrollWidth > b.clientWidth)")
    page.close()


def test_claims_are_filtered_and_sorted(browser: Any, url: str) -> None:
    page, seen = opened(browser, url, 1200, "light")
    rows, n_claims = (
        page.locator("#every tbody tr"),
        sum(len(one.presentation.claims) for one in everything()),
    )
    assert rows.count() == n_claims
    page.locator("#side").select_option("ours")
    assert rows.count() == 1
    page.locator("#side").select_option("paper")
    page.locator("#verdict").select_option("opposite sign")
    assert rows.count() == 1
    assert page.get_by_role("status").inner_text() == f"1 of {n_claims} claims"
    page.locator("#verdict").select_option("")
    page.locator("#words").fill("opposite wrap")
    assert rows.count() == 1
    page.locator("#words").fill("")
    verdict = page.locator("#every").get_by_role("columnheader", name="Verdict")
    verdict.get_by_role("button").click()
    assert verdict.get_attribute("aria-sort") == "ascending"
    assert "measured" in rows.first.inner_text()
    verdict.get_by_role("button").click()
    assert "smaller than claimed" in rows.first.inner_text()
    assert seen == []
    page.close()


def test_links_in_the_page_lead_somewhere(browser: Any, url: str) -> None:
    page, _ = opened(browser, url, 1200, "light")
    links = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.hash.slice(1))")
    assert len(links) > 5
    assert all(page.evaluate("id => !!document.getElementById(id)", link) for link in links)
    page.close()


def test_charts_are_drawn_and_described(browser: Any, url: str) -> None:
    page, _ = opened(browser, url, 1200, "dark")
    sizes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => "
        "[s.getBoundingClientRect().width, s.getBoundingClientRect().height, "
        "s.getAttribute('aria-label')])"
    )
    assert len(sizes) == 4
    assert all(width > 400 and height > 150 and len(words) > 40 for width, height, words in sizes)
    page.close()


def test_it_prints(browser: Any, url: str, tmp_path: Path) -> None:
    page, _ = opened(browser, url, 1200, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes()[:4] == b"%PDF"
    page.close()
