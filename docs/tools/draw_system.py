"""Draw how an adapter travels, as two SVG files for light and for dark pages.

python docs/tools/draw_system.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "images"
WIDTH, HEIGHT = 960, 300
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
TITLE = "An adapter on its way from the cloud to a device"
DESCRIPTION = (
    "A cloud trains an adapter. A policy plans what to send over the link before the deadline. "
    "The adapter is coded as a signed file of chunks. Chunks go over a radio link until the "
    "deadline. The device verifies them, activates the prefix that has arrived, and rolls back "
    "if it does not work."
)


@dataclass(frozen=True)
class Colours:
    """Colours of a page: ink, quiet ink, box, line, and what is on its way."""

    ink: str
    quiet: str
    box: str
    line: str
    sent: str
    waiting: str


LIGHT = Colours("#1b2433", "#4c5769", "#f4f6fa", "#8894a8", "#1f6feb", "#c3d5f2")
DARK = Colours("#e8ecf3", "#aab4c4", "#1c2430", "#6b788c", "#58a6ff", "#2b4468")

BOXES: Sequence[tuple[int, int, str, Sequence[str]]] = (
    (20, 150, "Cloud", ("trains an adapter", "of a frozen model")),
    (205, 150, "Policy", ("plans what to send", "over this link")),
    (390, 180, "File (.rcast)", ()),
    (790, 150, "Device", ("verifies, activates,", "rolls back by itself")),
)
"""Left edge, width, name, and what each does."""
TOP, BOTTOM = 70, 210
MIDDLE = (TOP + BOTTOM) / 2
CHUNKS = (26, 20, 20, 28, 36)
"""Widths of the chunks of the file."""
N_SENT = 3
LINK = (570, 790)
BARS = (30, 52, 22, 40, 60, 34, 16, 44)
"""What the link carries, second by second."""


def text(x: float, y: float, words: str, colour: str, size: int = 14, *, bold: bool = False) -> str:
    """Return a centred line of text."""
    style = f'font-size="{size}" font-weight="{600 if bold else 400}" fill="{colour}"'
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" {style}>{words}</text>'


def rectangle(
    corner: tuple[float, float], width: float, height: float, fill: str, stroke: str = "none"
) -> str:
    """Return a box with rounded corners."""
    x, y = corner
    radius = 10 if height > 100 else 3
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )


def arrow(start: float, end: float, colour: str) -> str:
    """Return an arrow to the right, at half the height of the boxes."""
    tip = f"M{end - 8:g} {MIDDLE - 5:g} L{end:g} {MIDDLE:g} L{end - 8:g} {MIDDLE + 5:g}"
    return (
        f'<path d="M{start:g} {MIDDLE:g} H{end:g} {tip}" fill="none" stroke="{colour}" '
        f'stroke-width="2" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def boxes(c: Colours) -> Iterator[str]:
    """Yield the four boxes and what stands in them."""
    for x, width, name, words in BOXES:
        yield rectangle((x, TOP), width, BOTTOM - TOP, c.box, c.line)
        yield text(x + width / 2, TOP + 34, name, c.ink, 18, bold=True)
        for i, line in enumerate(words):
            yield text(x + width / 2, TOP + 68 + 22 * i, line, c.quiet)
    yield arrow(173, 202, c.line)
    yield arrow(358, 387, c.line)


def chunks(c: Colours) -> Iterator[str]:
    """Yield the chunks of the file, and the prefix that arrives."""
    x, (left, width, _, _) = 405.0, BOXES[2]
    first = x
    for i, chunk in enumerate(CHUNKS):
        yield rectangle((x, TOP + 54), chunk, 30, c.sent if i < N_SENT else c.waiting)
        if i == N_SENT - 1:
            sent = x + chunk
        x += chunk + 5
    yield (
        f'<path d="M{first:g} {TOP + 91:g} v5 H{sent:g} v-5" fill="none" stroke="{c.sent}" '
        f'stroke-width="1.5"/>'
    )
    yield text((first + sent) / 2, TOP + 114, "prefix", c.sent, bold=True)
    yield text(left + width / 2 + 45, TOP + 114, "later", c.quiet)
    yield text(left + width / 2, BOTTOM + 24, "chunks, coded and signed", c.quiet)


def link(c: Colours) -> Iterator[str]:
    """Yield the radio link: what it carries changes until the deadline."""
    start, end = LINK
    step = (end - start - 60) / len(BARS)
    for i, height in enumerate(BARS):
        x = start + 22 + i * step
        yield rectangle((x, MIDDLE - 14 - height), step - 5, height, c.waiting)
    yield arrow(start + 4, end - 4, c.sent)
    for i, chunk in enumerate(CHUNKS[:N_SENT]):
        yield rectangle((start + 50 + 45 * i, MIDDLE - 8), chunk, 16, c.sent)
    deadline = end - 28
    yield (
        f'<path d="M{deadline:g} {TOP - 12:g} V{BOTTOM:g}" stroke="{c.ink}" stroke-width="1.5" '
        f'stroke-dasharray="5 4"/>'
    )
    yield text(deadline, TOP - 22, "deadline", c.ink, bold=True)
    yield text((start + end) / 2 - 14, MIDDLE + 36, "radio link", c.ink, 16, bold=True)
    yield text((start + end) / 2 - 14, MIDDLE + 58, "narrow, changing", c.quiet)


def feedback(c: Colours) -> Iterator[str]:
    """Yield what the device says of its link, back to the policy."""
    from_x, to_x, y = 865, 280, 262
    yield (
        f'<path d="M{from_x} {BOTTOM + 2} V{y - 10} q0 10 -10 10 H{to_x + 10} q-10 0 -10 -10 '
        f'V{BOTTOM + 6} m-5 8 l5 -8 l5 8" fill="none" stroke="{c.line}" stroke-width="1.5"/>'
    )
    yield text((from_x + to_x) / 2, y + 22, "what the link carries, what is active", c.quiet)


def draw(c: Colours) -> str:
    """Return the picture."""
    parts = [*boxes(c), *chunks(c), *link(c), *feedback(c)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="{FONT}">'
    )
    about = [f"<title>{TITLE}</title>", f"<desc>{DESCRIPTION}</desc>"]
    return "\n".join([head, *about, *parts, "</svg>\n"])


PICTURES = {"system-light.svg": LIGHT, "system-dark.svg": DARK}


def main() -> None:
    """Write both files."""
    for name, colours in PICTURES.items():
        (IMAGES / name).write_text(draw(colours), "utf-8", newline="\n")


if __name__ == "__main__":
    main()
