"""What is checked of every page that people look at, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from helpers.programs import needs
from helpers.waiting import DEADLOCK_S


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser; skip where there is none."""
    import pytest

    playwright = pytest.importorskip("playwright.sync_api")
    path = needs("chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=1000.0 * DEADLOCK_S
        )
        yield browser
        browser.close()


TEXTS = """(quiet) => {
  const paper = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0(\\.[0-4]\\d*)?\\)$/.test(colour)) return colour;  // mostly opaque
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.checkVisibility() || e.closest(quiet)) continue;
    const style = getComputedStyle(e);
    const ink = e.closest('svg') ? style.fill : style.color;
    texts.push([node.data.trim().slice(0, 30), ink, paper(e)]);
  }
  return texts;
}"""


def pale_texts(page: Any, quiet: str, least: int = 100) -> dict[str, float]:
    """Return the texts whose contrast is below the 4.5 that WCAG 2 asks for, and theirs.

    Args:
        page: in the browser.
        quiet: a CSS selector of what need not be read.
        least: number of texts that the page has.
    """
    texts = page.evaluate(TEXTS, quiet)
    assert len(texts) >= least
    seen = {text: round(contrast(ink, paper), 1) for text, ink, paper in texts}
    return {text: ratio for text, ratio in seen.items() if ratio < 4.5}


def contrast(one: str, other: str) -> float:
    """Return the contrast of two CSS colours as WCAG 2 defines it.

    Args:
        one: may let the other shine through.
        other: opaque.
    """
    behind = [float(c) for c in re.findall(r"[\d.]+", other)[:3]]
    *front, alpha = [*map(float, re.findall(r"[\d.]+", one)), 1.0][:4]
    mixed = [alpha * f + (1.0 - alpha) * b for f, b in zip(front, behind, strict=True)]

    def luminance(colour: list[float]) -> float:
        channels = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(mixed), luminance(behind)))
    return (high + 0.05) / (low + 0.05)
