"""Eight colours that everyone can tell apart, for pictures of runs and charts of studies."""

from __future__ import annotations

COLOURS = (
    "#0072b2", "#d55e00", "#005652", "#a986a1", "#000000", "#a06442", "#597efd", "#431fb8",
)  # fmt: skip
"""Ours first: Okabe and Ito's blue and vermilion, and six more.

Each has a contrast of at least 3 on a light card, and any two are at least 25 apart in CIELAB, also
as people see them who lack red or green cones. A test says so."""
