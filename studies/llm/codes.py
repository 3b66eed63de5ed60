"""Every code that an adapter is sent in: its bytes, and the factors that a decoder has.

Bytes of peers are those of their numbers, scales and indices, without any header. Those of ours are
of whole files. A code belongs to a family, whose members make up a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.feedback import Curvature, CurvedAdapter, best_within
from rankcast.codec.formats.peft import WEIGHTS
from rankcast.codec.formats.peft_names import PREFIX
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source, exponent_of_quality
from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import InfeasibleSizeError
from rankcast.packaging.gain import GainSearch
from studies.baselines.compression import (
    COMPEFT_GAINS,
    Symbols,
    compeft,
    loraquant,
    round_strips,
    step_strips,
)
from studies.shared.nnc import code_with_nnc, nnc_python, qp_near
from studies.shared.strips import rms, strips_of, with_strips

REFERENCE, NOTHING = "fp32", "no adapter"
ROUNDED, GROUPED = "rounded", "rounded in groups of 64"
ENTROPY, STEPS = "rounded, entropy coded", "one step, entropy coded"
COMPEFT, LORAQUANT, NNC = "ComPEFT", "LoRAQuant", "MPEG NNC"
PACK, CURVED = "rankcast pack", "rankcast pack --texts"
QAT, SIZED = "rankcast qat", "rankcast train, two teachers"
PEERS = (ROUNDED, GROUPED, ENTROPY, STEPS, COMPEFT, LORAQUANT, NNC)
OURS = (PACK, CURVED, QAT, SIZED)

WIDTHS = (8, 4, 3, 2)
GROUP, GROUP_WIDTHS = 64, (3, 2)
ENTROPY_WIDTHS = (4, 3, 2)
STEP_SIZES = (1.0, 2.0, 3.0)
"""Steps as multiples of the root mean square of all numbers."""
SHARES, DENSITIES = (0.0, 0.5, 0.9), (0.05, 0.2, 0.5)
NNC_STEPS = (0.5, 1.0, 2.0)
QUALITIES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Steps of our files as multiples of what `good` takes."""
CURVED_SIZES = (520_000, 400_000, 256_000, 112_000, 46_000, 22_000)
"""Bytes for which an adapter is rounded by the curvature of the loss."""


@dataclass(frozen=True)
class Coded:
    """An adapter in a code.

    Attributes:
        code: name of the code.
        family: the curve that it belongs to.
        n_bytes: that are sent.
        tensors: what a decoder has.
        more: what else a row keeps, as JSON values.
    """

    code: str
    family: str
    n_bytes: float
    tensors: AdapterTensors
    more: Mapping[str, Any] = field(default_factory=dict)


Loss = Callable[[AdapterTensors], float]
"""Loss [nats] on texts for tuning."""


def reference(adapter: AdapterTensors) -> Coded:
    """Return the adapter in float32."""
    return Coded(REFERENCE, ROUNDED, 4.0 * adapter.n_params, adapter)


def rounded_codes(adapter: AdapterTensors) -> Iterator[Coded]:
    """Yield the adapter in bfloat16, in few bits, in few bits entropy coded, and in steps."""
    strips = strips_of(adapter)
    half = with_strips(adapter, [as_bfloat16(strip) for strip in strips])
    yield Coded("bf16", ROUNDED, 2.0 * adapter.n_params, half)
    for width in WIDTHS:
        symbols = round_strips(strips, width)
        bits = symbols.plain_bits(width)
        yield _coded(f"int{width}", ROUNDED, adapter, symbols, bits)
        if width in ENTROPY_WIDTHS:
            yield _coded(f"int{width} + entropy", ENTROPY, adapter, symbols, symbols.coded_bits)
    for width in GROUP_WIDTHS:
        symbols = round_strips(strips, width, GROUP)
        bits = symbols.plain_bits(width)
        yield _coded(f"int{width}, groups of {GROUP}", GROUPED, adapter, symbols, bits)
    for relative in STEP_SIZES:
        symbols = step_strips(strips, relative * rms(strips))
        name = f"{relative:g} rms + entropy"
        yield _coded(name, STEPS, adapter, symbols, symbols.coded_bits)


def _coded(name: str, family: str, adapter: AdapterTensors, symbols: Symbols, bits: float) -> Coded:
    return Coded(name, family, bits / 8, with_strips(adapter, symbols.decoded))


def as_bfloat16(values: Float32Array) -> Float32Array:
    """Return numbers rounded to bfloat16, halves to even; they have to be finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


@dataclass(frozen=True)
class Training:
    """What ComPEFT knows beside a LoRA, whose factors it codes as they were trained.

    Attributes:
        before: folder of PEFT's files before training.
        after: folder of PEFT's files.
        scale: alpha / r.
        loss: chooses α.
    """

    before: Path
    after: Path
    scale: float
    loss: Loss


def published_codes(adapter: AdapterTensors, training: Training) -> Iterator[Coded]:
    """Yield the adapter in codes that others have published: LoRAQuant, ComPEFT, MPEG NNC."""
    for share in SHARES if adapter.ranks.max() > 1 else (0.0, 1.0):
        coded = loraquant(adapter, share)
        yield Coded(f"{LORAQUANT}, {share:.0%}", LORAQUANT, coded.bits / 8, coded.tensors)
    yield from _compeft_codes(adapter, training)
    strips = strips_of(adapter)
    size = rms(strips)
    qps = {qp_near(relative * size): f"{NNC}, {relative:g} rms" for relative in NNC_STEPS}
    for qp, (n_bytes, decoded) in code_with_nnc(strips, list(qps)).items():
        yield Coded(qps[qp], NNC, n_bytes, with_strips(adapter, decoded), {"qp": qp})


def missing_codes() -> list[str]:
    """Return the families that nobody has installed here."""
    return [NNC] if nnc_python() is None else []


def _compeft_codes(adapter: AdapterTensors, training: Training) -> Iterator[Coded]:
    """Yield ComPEFT of what training changed in A and B, each density with its best α."""
    folders = training.after, training.before
    last, first = (_as_trained(adapter, load_file(folder / WEIGHTS)) for folder in folders)

    def at(density: float, gain: float) -> tuple[float, AdapterTensors]:
        coded = compeft(last, density, gain, first)
        factors = [Factors(np.float32(training.scale) * f.left, f.right)
                   for f in coded.tensors.factors]  # fmt: skip
        return coded.bits / 8, replace(coded.tensors, factors=tuple(factors))

    for density in DENSITIES:
        losses = {gain: training.loss(at(density, gain)[1]) for gain in COMPEFT_GAINS}
        best = min(losses, key=lambda gain: losses[gain])
        size, tensors = at(density, best)
        yield Coded(f"{COMPEFT}, {density:.0%}", COMPEFT, size, tensors, {"gain": best})


def _as_trained(like: AdapterTensors, arrays: Mapping[str, Float32Array]) -> AdapterTensors:
    """Return A and B of PEFT's file without their scale, in the order of a layout."""
    pairs = []
    for p in like.projections:
        A, B = (arrays[f"{PREFIX}{p.name}.lora_{part}.weight"] for part in "AB")
        pairs.append(Factors(np.asarray(B, np.float32), np.asarray(A, np.float32)))
    return replace(like, factors=tuple(pairs))


def pack_codes(
    adapter: AdapterTensors, base: BaseModel, qualities: Sequence[float] = QUALITIES
) -> Iterator[Coded]:
    """Yield files of `rankcast pack` at several qualities."""
    source = Source(adapter, base, {"task_type": "CAUSAL_LM"})
    for quality in qualities:
        file = pack_at_exponent(source, exponent_of_quality(adapter, quality))
        yield of_file(f"pack, {quality:g}", PACK, file)


def curved_codes(
    source: Source,
    curvatures: Iterable[Curvature],
    search: GainSearch | None = None,
    sizes: Sequence[int] = CURVED_SIZES,
) -> Iterator[Coded]:
    """Yield files of at most so many bytes, rounded by the curvature of the loss.

    Args:
        source: the adapter.
        curvatures: of its projections.
        search: for the gain that suits a size; None leaves the adapter as large as it is.
        sizes: of the files.
    """
    with closing(CurvedAdapter(source, curvatures)) as curved:

        def at(gain: float, bits: float) -> Container:
            return best_within(curved, bits, gain)

        for size in sizes:
            try:
                gain = 1.0 if search is None else search.suits(at, 8.0 * size)
                file = at(gain, 8.0 * size)
            except InfeasibleSizeError:
                continue
            name = "curvature" if search is None else "curvature and gain"
            coded = of_file(f"{name}, {size:,} bytes", CURVED, file)
            yield coded if search is None else replace(coded, more={"gain": gain})


def of_file(name: str, family: str, file: Container) -> Coded:
    """Return a whole file of ours, header included, as it decodes."""
    return Coded(name, family, file.n_bits / 8, file.tensors())
