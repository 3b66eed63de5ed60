"""Every code that an adapter is sent in: its bytes, and the weights that a decoder has.

Bytes of peers are those of their numbers, scales and indices, without any header. Those of `pack`
are of whole files. A code belongs to a family, whose members make up a curve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.formats.peft import WEIGHTS
from rankcast.codec.formats.peft_names import PREFIX
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source, exponent_of_quality
from rankcast.codec.quantiser import Float32Array
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.learner.base_models import MINILM_NAME
from studies.baselines.compression import (
    COMPEFT_GAINS,
    Symbols,
    compeft,
    loraquant,
    round_strips,
    step_strips,
)
from studies.byte_frontier.adapters import HEAD, Head, Trained, merged
from studies.byte_frontier.judging import Weights
from studies.shared.nnc import code_with_nnc, qp_near
from studies.shared.strips import rms

REFERENCE = "fp32"
ROUNDED, ENTROPY, STEPS = "rounded", "rounded, entropy coded", "one step, entropy coded"
COMPEFT, LORAQUANT, NNC, PACK = "ComPEFT", "LoRAQuant", "MPEG NNC", "rankcast pack"
FAMILIES = (ROUNDED, ENTROPY, STEPS, COMPEFT, LORAQUANT, NNC, PACK)

HEAD_WIDTH = 4
"""Bits of a number of the classifier below which no code of a peer goes."""
WIDTHS = {"int4": 4, "int3": 3, "int2": 2}
GROUPED = {"int2, groups of 64": (2, 64)}
LORA_STEPS, FEW_STEPS = (1.0, 2.0, 3.0, 4.0), (0.5, 1.0, 2.0)
LORA_PACKS, FEW_PACKS = (0.5, 1.0, 2.0, 3.0, 4.0), (9.0, 27.0, 81.0)
"""Steps as multiples of what `good` takes: of the root mean square of a LoRA's weights, and of
finer ones for tensors of other adapters."""
NNC_STEPS = (0.5, 1.0, 1.5, 2.0)
"""Steps of MPEG NNC as multiples of the root mean square."""
DENSITIES = (0.05, 0.2, 0.5)
SOME = {
    REFERENCE, "int8", "int4", "int4 + entropy", "int2", "int2 + entropy", "1 rms + entropy",
    "2 rms + entropy", "3 rms + entropy", f"{LORAQUANT}, 90%", f"{COMPEFT}, 20%",
    f"{NNC}, 1 rms", f"{NNC}, 2 rms",
}  # fmt: skip
"""Codes of the ranks that are furthest from the frontier."""
SHARES = (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class Coded:
    """An adapter in a code.

    Attributes:
        code: name of the code.
        family: the curve that it belongs to.
        n_bytes: that are sent.
        weights: what replaces weights of the base model after decoding.
        more: what else a row keeps.
    """

    code: str
    family: str
    n_bytes: float
    weights: Weights
    more: dict[str, Any]


Loss = Callable[[Weights], float]
"""Loss [nats] on texts for tuning."""


def reference(adapter: Trained) -> Coded:
    """Return the adapter in float32."""
    return _floats(adapter, 32)


def half_precision(adapter: Trained) -> Coded:
    """Return the adapter in float16, in which hardly an answer changes: one seed is enough."""
    return _floats(adapter, 16)


def simple_codes(adapter: Trained) -> Iterator[Coded]:
    """Yield the codes for numbers of any adapter: rounding, with and without entropy coding."""
    yield _rounded(adapter, "int8", round_strips(adapter.strips, 8), 8)
    few = adapter.low_rank is None
    for name in ("int4", "int2") if few else ("int4", "int3", "int2"):
        width = WIDTHS[name]
        symbols = round_strips(adapter.strips, width)
        yield _rounded(adapter, name, symbols, width)
        yield code_at_step(adapter, f"{name} + entropy", ENTROPY, symbols)
    for relative in FEW_STEPS if few else LORA_STEPS:
        symbols = step_strips(adapter.strips, relative * rms(adapter.strips))
        yield code_at_step(adapter, f"{relative:g} rms + entropy", STEPS, symbols)


def lora_codes(adapter: Trained, base: Weights, *, above_one: bool) -> Iterator[Coded]:
    """Yield the codes for low-rank factors alone, but ComPEFT and MPEG NNC.

    Args:
        adapter: a LoRA.
        base: weights of the base model.
        above_one: whether its rank is, so that LoRAQuant can tell strong components from weak.
    """
    assert adapter.low_rank is not None
    for name, (width, group) in GROUPED.items():
        yield _rounded(adapter, name, round_strips(adapter.strips, width, group), width)
    head, bits = _head(adapter.head, HEAD_WIDTH)
    for share in SHARES if above_one else (0.0, 1.0):
        coded = loraquant(adapter.low_rank, share)
        weights = {**merged(coded.tensors, base), **head.weights}
        size = (coded.bits + bits) / 8
        yield Coded(f"{LORAQUANT}, {share:.0%}", LORAQUANT, size, weights, {})


def nnc_codes(adapter: Trained, steps: Sequence[float] = NNC_STEPS) -> Iterator[Coded]:
    """Yield the codes by MPEG NNC; none where it is not installed.

    Args:
        adapter: what is coded.
        steps: as multiples of the root mean square.
    """
    head, bits = _head(adapter.head, HEAD_WIDTH, entropy=True)
    size = rms(adapter.strips)
    qps = {qp_near(relative * size): f"{NNC}, {relative:g} rms" for relative in steps}
    for qp, (n_bytes, strips) in code_with_nnc(adapter.strips, list(qps)).items():
        size = n_bytes + (bits + adapter.exact_bits) / 8
        yield Coded(qps[qp], NNC, size, adapter.weights(strips, head), {"qp": qp})


@dataclass(frozen=True)
class Training:
    """What ComPEFT knows beside a LoRA, whose factors it codes as they were trained.

    Attributes:
        before: folder of PEFT's files before training.
        after: folder of PEFT's files.
        scale: alpha / r.
        densities: shares of the numbers that are kept.
        loss: chooses α.
    """

    before: Path
    after: Path
    scale: float
    densities: Sequence[float]
    loss: Loss


def compeft_codes(adapter: Trained, base: Weights, training: Training) -> Iterator[Coded]:
    """Yield ComPEFT of what training changed in A and B, each density with its best α."""
    assert adapter.low_rank is not None
    like, folders = adapter.low_rank, (training.after, training.before)
    last, first = (_as_trained(like, load_file(folder / WEIGHTS)) for folder in folders)
    head, bits = _head(adapter.head, HEAD_WIDTH)

    def weights_at(density: float, gain: float) -> tuple[float, Weights]:
        coded = compeft(last, density, gain, first)
        factors = [
            Factors(np.float32(training.scale) * f.left, f.right) for f in coded.tensors.factors
        ]
        scaled = replace(coded.tensors, factors=tuple(factors))
        return (coded.bits + bits) / 8, {**merged(scaled, base), **head.weights}

    for density in training.densities:
        losses = {gain: training.loss(weights_at(density, gain)[1]) for gain in COMPEFT_GAINS}
        best = min(losses, key=lambda gain: losses[gain])
        size, weights = weights_at(density, best)
        yield Coded(f"{COMPEFT}, {density:.0%}", COMPEFT, size, weights, {"gain": best})


def pack_codes(adapter: Trained, base: Weights) -> Iterator[Coded]:
    """Yield files of `rankcast pack`, low-rank or in general form."""
    lora = adapter.low_rank is not None
    tensors = _with_head(adapter) if lora else adapter.own
    assert tensors is not None
    name = "" if lora else "general form, "
    for step in LORA_PACKS if lora else FEW_PACKS:
        container = _packed(tensors, step)
        if lora:
            weights = _weights_of_lora(container, base)
        else:
            weights = adapter.weights(*adapter.of_own(container.tensors().modules))
        n_bytes = container.n_bits / 8
        yield Coded(f"pack, {name}{step:g}", PACK, n_bytes, weights, {})


def _floats(adapter: Trained, width: int) -> Coded:
    """Return the adapter in float32 or float16."""
    half = width == 16
    strips = [_half(x) for x in adapter.strips] if half else list(adapter.strips)
    rows = adapter.head.contrasts
    head = Head.of_contrasts(_half(rows)) if half else adapter.head
    bits = width * (adapter.n_numbers + rows.size) + adapter.exact_bits
    name = "fp16" if half else REFERENCE
    return Coded(name, ROUNDED, bits / 8, adapter.weights(strips, head), {})


def _rounded(adapter: Trained, name: str, symbols: Symbols, width: int) -> Coded:
    """Return the adapter with its symbols in so many bits each."""
    head, bits = _head(adapter.head, max(width, HEAD_WIDTH))
    bits += symbols.plain_bits(width) + adapter.exact_bits
    return Coded(name, ROUNDED, bits / 8, adapter.weights(symbols.decoded, head), {})


def code_at_step(adapter: Trained, name: str, family: str, symbols: Symbols) -> Coded:
    """Return the adapter with its symbols entropy coded."""
    head, bits = _head(adapter.head, HEAD_WIDTH, entropy=True)
    bits += symbols.coded_bits + adapter.exact_bits
    return Coded(name, family, bits / 8, adapter.weights(symbols.decoded, head), {})


def _head(head: Head, width: int, *, entropy: bool = False) -> tuple[Head, float]:
    """Return the classifier with its contrasts rounded, biases in float16, and its bits."""
    rows = head.contrasts
    symbols = round_strips(list(rows[:, :-1]), width)
    decoded = np.concatenate([np.stack(symbols.decoded), _half(rows[:, -1:])], axis=1)
    bits = symbols.coded_bits if entropy else symbols.plain_bits(width)
    return Head.of_contrasts(decoded), bits + 16 * len(rows)


def _packed(tensors: AdapterTensors, step: float) -> Container:
    """Return the file that `rankcast pack` writes at a step."""
    digest = hashlib.sha256(MINILM_NAME.encode()).hexdigest()  # as long as a fingerprint
    source = Source(tensors, BaseModel(MINILM_NAME, digest), {"task_type": "SEQ_CLS"})
    return pack_at_exponent(source, exponent_of_quality(tensors, step))


def _with_head(adapter: Trained) -> AdapterTensors:
    """Return a LoRA with its classifier beside it, in full."""
    assert adapter.low_rank is not None
    modules = dict(zip(HEAD, (adapter.head.weight, adapter.head.bias), strict=True))
    return replace(adapter.low_rank, modules=modules, carriage=dict.fromkeys(HEAD, "full"))


def _weights_of_lora(container: Container, base: Weights) -> Weights:
    tensors = container.tensors()
    head = Head(*(np.asarray(tensors.modules[name], np.float32) for name in HEAD))
    return {**merged(tensors, base), **head.weights}


def _as_trained(like: AdapterTensors, arrays: Mapping[str, Float32Array]) -> AdapterTensors:
    """Return A and B of PEFT's file without their scale, in the order of a layout."""
    pairs = []
    for p in like.projections:
        A, B = (arrays[f"{PREFIX}{p.name}.lora_{part}.weight"] for part in "AB")
        pairs.append(Factors(np.asarray(B, np.float32), np.asarray(A, np.float32)))
    return replace(like, factors=tuple(pairs))


def _half(values: Float32Array) -> Float32Array:
    return values.astype(np.float16).astype(np.float32)
