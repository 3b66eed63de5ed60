"""Adapters of peers that are trained for rounding or rank by others' means, in their best code.

For each link the code is taken that has the least loss on the texts for tuning, of all that arrive
in time. Peers are counted in their favour: no header, an ideal entropy coder
(`studies.byte_frontier.codes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from studies.baselines.compression import step_strips
from studies.byte_frontier.adapters import Trained
from studies.byte_frontier.codes import (
    STEPS,
    Coded,
    Training,
    code_at_step,
    compeft_codes,
    lora_codes,
    nnc_codes,
    reference,
    simple_codes,
)
from studies.byte_frontier.judging import Weights
from studies.shared.strips import rms

STEPS_RMS = (1.5, 2.5, 3.5, 4.5, 5.0, 6.0, 7.0)
"""Steps beside those of `simple_codes`, as multiples of the root mean square."""
NNC_RMS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the numbers that ComPEFT keeps."""


def every_code(
    adapter: Trained, base: Weights, size: str, compeft: Callable[[], Training] | None
) -> Iterator[Coded]:
    """Yield an adapter in every code, float32 first.

    Args:
        adapter: a LoRA, or what AdaLoRA has left.
        base: weights of the base model.
        size: its rank.
        compeft: makes what ComPEFT has to know; None for adapters that it is not for.
    """
    yield reference(adapter)
    yield from simple_codes(adapter)
    for relative in STEPS_RMS:
        symbols = step_strips(adapter.strips, relative * rms(adapter.strips))
        yield code_at_step(adapter, f"{relative:g} rms + entropy", STEPS, symbols)
    yield from lora_codes(adapter, base, above_one=size != "1")
    if compeft is not None:
        yield from compeft_codes(adapter, base, replace(compeft(), densities=DENSITIES))
    yield from nnc_codes(adapter, NNC_RMS)
