"""Small adapters and ladders for the tests of the codec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from rankcast.codec.chunks import ChunkPlan, encode
from rankcast.codec.container import Container
from rankcast.codec.header import SEGMENT, BaseModel, Header
from rankcast.codec.packing import block_offsets, chunk_plans
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.records import Projection


def random_adapter(
    seed: int,
    widths: tuple[tuple[int, int], ...] = ((24, 16), (16, 48)),
    ranks: tuple[int, ...] = (4, 3),
    modules: dict[str, tuple[int, ...]] | None = None,
    size: float = 0.05,
) -> AdapterTensors:
    """Return balanced components of falling size, and modules."""
    rng = np.random.default_rng(seed)
    projections, factors = [], []
    for i, ((d_in, d_out), r) in enumerate(zip(widths, ranks, strict=True)):
        projections.append(Projection(f"layers.{i}.self_attn.q_proj", i, "q", d_in, d_out))
        fall = size * 0.6 ** np.arange(r)
        left = rng.normal(size=(d_out, r)) * fall
        right = rng.normal(size=(r, d_in)) * fall[:, None]
        factors.append(Factors(left.astype(np.float32), right.astype(np.float32)).balanced())
    tensors = {
        name: (0.1 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in (modules or {}).items()
    }
    return AdapterTensors(
        tuple(projections), tuple(factors), tensors, dict.fromkeys(tensors, "full")
    )


def header_of(
    tensors: AdapterTensors, chunks: list[bytes], segment: int = SEGMENT, *, lean: bool = True
) -> Header:
    base = BaseModel("tiny", "0" * (16 if lean else 64))
    return Header.of(tensors, chunks, base, {"task_type": "SEQ_CLS"}, segment, lean=lean)


def packed(
    tensors: AdapterTensors,
    finest: int = -24,
    n_steps: int = 2,
    segment: int = SEGMENT,
    *,
    lean: bool = True,
) -> Container:
    plans = chunk_plans(tensors, finest, n_steps=n_steps)
    chunks = encode(tensors, plans, block_offsets(tensors, finest=finest), segment, lean=lean)
    return Container(header_of(tensors, chunks, segment, lean=lean), tuple(chunks))


@st.composite
def adapters_and_ladders(draw: st.DrawFn) -> tuple[AdapterTensors, list[ChunkPlan]]:
    """Draw an adapter, ranks of 0 included, and a ladder that refines."""
    n = draw(st.integers(1, 3))
    widths = tuple((draw(st.integers(1, 40)), draw(st.integers(1, 40))) for _ in range(n))
    ranks = tuple(draw(st.integers(0, min(4, *w))) for w in widths)
    shapes = draw(
        st.dictionaries(
            st.sampled_from(["classifier.weight", "classifier.bias", "pooler.weight"]),
            st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
            max_size=2,
        )
    )
    size = 10.0 ** draw(st.floats(-4, 2))
    tensors = random_adapter(draw(st.integers(0, 2**31)), widths, ranks, shapes, size)
    exponent = draw(st.integers(-40, 20))
    ladder = []
    sizes = [*ranks, *(1 for _ in shapes)]
    for _ in range(draw(st.integers(1, 4))):
        counts = tuple(draw(st.integers(0, most)) for most in sizes)
        ladder.append(ChunkPlan(exponent, counts))
        exponent -= 6 * draw(st.integers(0, 2))
    return tensors, ladder


@st.composite
def mixtures(draw: st.DrawFn) -> AdapterTensors:
    """Draw projections and tensors of every carriage, shape and kind of number."""
    n = draw(st.integers(0, 3))
    widths = tuple((draw(st.integers(1, 40)), draw(st.integers(1, 40))) for _ in range(n))
    ranks = tuple(draw(st.integers(0, min(4, *w))) for w in widths)
    tensors = random_adapter(draw(st.integers(0, 2**31)), widths, ranks)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    modules, carriage = {}, {}
    shapes = st.one_of(
        st.lists(st.integers(0, 5), max_size=5).map(tuple),
        st.sampled_from([(300,), (300, 1), (2, 70), (1, 1, 90)]),
    )
    for i in range(draw(st.integers(0 if any(ranks) else 1, 4))):
        name, shape = f"m{i}.weight", draw(shapes)
        carriage[name] = draw(st.sampled_from(["own", "full", "difference"]))
        kind = draw(st.sampled_from(["normal", "constant", "zero", "int64", "int8", "bool"]))
        size = 10.0 ** draw(st.floats(-4, 2))
        if kind in ("int64", "int8"):
            ends = np.iinfo(kind)
            values = rng.integers(ends.min, ends.max, size=shape, dtype=kind, endpoint=True)
        elif kind == "bool":
            values = rng.integers(0, 2, size=shape).astype(bool)
        else:
            drawn = {"normal": rng.normal(size=shape), "constant": np.ones(shape)}
            values = size * drawn.get(kind, np.zeros(shape))
            values = np.asarray(values + draw(st.sampled_from([0, 0, 1])), dtype=np.float32)
        modules[name] = np.asarray(values)
    return replace(tensors, modules=modules, carriage=carriage, config={"use_dora": True})
