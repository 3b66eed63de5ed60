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


def contrast(one: str, other: str) -> float:
    """Return the contrast of two CSS colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
