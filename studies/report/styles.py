"""The one table of how lines look: a colour, a marker and a dash for each method.

A method looks the same in every chart that it is in. No two lines of a chart share a style, and
ours is always the thick blue line with filled circles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankcast.training.palette import COLOURS


@dataclass(frozen=True, slots=True)
class Style:
    """How a line looks.

    Attributes:
        colour: of line, markers and band.
        marker: SVG path of the marker, around (0, 0).
        dash: SVG dash pattern; empty for a solid line.
        width: of the line [px].
    """

    colour: str
    marker: str
    dash: str
    width: float = 1.6


STYLES = (
    Style(COLOURS[0], "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", "", 3.0),
    Style(COLOURS[1], "M-3.5-3.5h7v7h-7Z", "7 3"),
    Style(COLOURS[2], "M0-4.5L4.5 3.5h-9Z", "2 2"),
    Style(COLOURS[3], "M0-5L5 0 0 5-5 0Z", "9 3 2 3"),
    Style(COLOURS[4], "M-3.5-3.5l7 7M-3.5 3.5l7-7", "12 3"),
    Style(COLOURS[5], "M0 4.5L4.5-3.5h-9Z", "3 1.5"),
    Style(COLOURS[6], "M-4.5 0h9M0-4.5v9", "6 5"),
    Style(COLOURS[7], "M-2-5h4v10h-4Z", "6 2 1 2 1 2"),
)
"""Eight styles, ours first; no two share a colour, a marker or a dash."""

OURS = STYLES[0]
_OTHERS = STYLES[1:]

MORE_STYLES = tuple(
    Style(
        style.colour,
        _OTHERS[(place + 2) % len(_OTHERS)].marker,
        _OTHERS[(place + 4) % len(_OTHERS)].dash,
    )
    for place, style in enumerate(_OTHERS)
)
"""Seven more: the colours again, each with another marker and another dash."""

_FIXED: Mapping[int, tuple[str, ...]] = {
    0: (
        "AirLLM", "AirLLM, λ = 0.1", "AirLLM, tuned", "AirLLM, both learned",
        "AirLLM (PPO + DDIM)", "PPO + DDIM, MLP", "λ = 0.1", "v", "scaled-linear",
        "1000 training, 50 inference steps", "everything shown", "QAT by distillation",
        "ours with two teachers, five times the steps", "simulated", "AirLLM, teacher acts in 90 %",
    ),
    1: (
        "AdaLoRA", "AdaLoRA, one training a link", "PPO", "PPO, tuned", "PPO alone, Table II",
        "λ = 1", "ε", "cosine", "rounded", "Shannon", "nothing shown",
        "LoRA r 1 with two teachers in float32, three times the steps",
        "myopic solver: gains known, one step counted", "myopic solver",
    ),
    2: (
        "teacher (Thompson sampling, exact solver)", "PPO + DDPM", "EVA ranks", "one step",
        "LoRA r 1, one step, entropy coded", "λ = 0.01", "x0", "linear", "table",
        "optimal stopping", "optimal stopping, gains and process known",
    ),
    3: (
        "random", "random ranks", "ComPEFT", "LoRA r 1, rounded",
        "no waiting", "no waiting: gains known, all steps to come counted",
    ),
    4: (
        "SVD truncation", "DDIM", "DDIM alone", "DDIM alone, teacher acts in 90 %",
        "fp32, after as many ordinary steps", "LoRA r 1, rounded, entropy coded",
    ),
    5: ("PPO + DDIM, U-Net", "LoRAQuant", "LoRA r 1, LoRAQuant", "gradient sensitivity"),
    6: (
        "AirLLM, λ = 0: fills the deadline", "λ = 0: fills the deadline", "steps by sensitivity",
        "AirLLM taught one step's worth", "LoRA r 1, rankcast pack", "Eq. 19 differentiated",
        "AirLLM, actor without the teacher",
    ),
    7: (
        "QAT", "Eq. 19 literal", "LoRA r 1, ComPEFT", "PPO + DDIM, reward-weighted",
        "knapsack on the learned utility, λ = 0.1",
    ),
}  # fmt: skip
"""The place in `STYLES` of each method, of the paper's default setting, and of what they are
compared with."""

PLACES: Mapping[str, int] = {label: place for place, labels in _FIXED.items() for label in labels}


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each label of a chart: its own where it has one, else one that is free.

    Beyond `STYLES` they are of `MORE_STYLES`, whose colours repeat: draw such lines in panels of
    their own.
    """
    places: dict[str, int] = {}
    for label in labels:
        place = PLACES.get(label)
        if place is not None and place not in places.values():
            places[label] = place
    styles = (*STYLES, *MORE_STYLES)
    free = [place for place in range(1, len(styles)) if place not in places.values()]
    others = [label for label in labels if label not in places]
    places |= {label: free[number % len(free)] for number, label in enumerate(others)}
    return {label: styles[places[label]] for label in labels}
