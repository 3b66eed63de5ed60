"""What a device does with a large adapter takes memory for its largest parts, not for all of it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from rankcast.codec.container import Container, read_container
from rankcast.codec.formats.peft import read_peft
from rankcast.codec.layout import Layout
from rankcast.codec.spool import Collector, QuantisedFactors
from rankcast.codec.tensors import AdapterTensors, LazyFactors
from rankcast.edge.activate import Candidate
from rankcast.edge.engines.folder import WriteAdapter
from rankcast.edge.fetch import BlobCache
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import CodecError
from rankcast.records import Projection
from rankcast.release.manifest import blob_of

D_IN, D_OUT, RANK = 400, 600, 20
PROJECTION_BYTES = 4 * RANK * (D_IN + D_OUT)
"""Of the largest projection in float32."""
IN_SEGMENT = 2
FEW, MANY = 10, 26


@cache
def file_of(n: int) -> bytes:
    """Return a file of `n` projections, two in a segment."""
    made = random_adapter(0, ((D_IN, D_OUT),), (RANK,))
    names = (f"model.layers.{i}.self_attn.q_proj" for i in range(n))
    projections = tuple(Projection(name, i, "q", D_IN, D_OUT) for i, name in enumerate(names))
    factors = LazyFactors((RANK,) * n, lambda _: made.factors[0])
    container = packed(
        AdapterTensors(projections, factors, {}, {}), segment=IN_SEGMENT * RANK * (D_IN + D_OUT)
    )
    assert len(Layout.of(container.header).segments) == n // IN_SEGMENT
    return container.to_bytes()


@dataclass
class Device:
    """Has a file, and does something with it in a folder of its own."""

    folder: Path
    n: int

    @property
    def container(self) -> Container:
        return read_container(file_of(self.n))

    def unpack(self) -> None:
        self.container.export("peft", self.folder / "peft")

    def export_for_vllm(self) -> None:
        self.container.export("vllm", self.folder / "vllm")

    def export_gguf(self) -> None:
        base = self.folder / "base"
        base.mkdir(exist_ok=True)
        # As many layers for few projections: the library's table of names is as long then.
        config = {"model_type": "llama", "num_hidden_layers": MANY, "num_attention_heads": 4,
                  "hidden_size": D_IN}  # fmt: skip
        (base / "config.json").write_text(json.dumps(config), "utf-8")
        self.container.export("gguf", self.folder / "a.gguf", base_model=base)

    def say_ranks(self) -> None:
        self.container.ranks()

    def activate(self) -> None:
        """Make the blobs of a release an adapter in the folder of an engine."""
        cache = BlobCache(self.folder / "blobs")
        cache.root.mkdir(exist_ok=True)
        chunks = self.container.chunks
        header = file_of(self.n)[: -sum(map(len, chunks))]
        names = tuple(blob_of(data).sha256 for data in (header, *chunks))
        for sha256, data in zip(names, (header, *chunks), strict=True):
            cache.path(sha256).write_bytes(data)
        candidate = Candidate.load(ReleasePrefix("demo", 1, 0, names), cache)
        WriteAdapter("peft", self.folder / "adapter").activate(candidate)


WHAT = [
    Device.unpack, Device.export_for_vllm, Device.export_gguf, Device.say_ranks, Device.activate
]  # fmt: skip


def peak(call: Callable[[], object]) -> int:
    """Return the most bytes that a call holds."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("do", WHAT, ids=lambda do: do.__name__)
def test_memory_does_not_grow_with_the_number_of_projections(
    do: Callable[[Device], None], tmp_path: Path
) -> None:
    """A segment is in memory, with what its coder needs: ten times its size at most.

    Sixteen more projections have 1,280,000 bytes in float32. They may take what the file itself has
    more, held a few times over, and a name and a place for each: less than one of them.
    """
    few, many = (Device(tmp_path / str(n), n) for n in (FEW, MANY))
    for device in (few, many):
        device.folder.mkdir()
        file_of(device.n)
    do(few)  # imports, tables of the entropy coder
    peaks = [peak(lambda device=device: do(device)) for device in (few, many)]
    file_bytes = len(file_of(MANY)) - len(file_of(FEW))
    assert peaks[0] < 10 * IN_SEGMENT * PROJECTION_BYTES
    assert peaks[1] - peaks[0] < 4 * file_bytes + PROJECTION_BYTES
    assert 4 * file_bytes + PROJECTION_BYTES < (MANY - FEW) * PROJECTION_BYTES / 3


def test_what_was_written_that_way_is_the_adapter(tmp_path: Path) -> None:
    device = Device(tmp_path, FEW)
    for do in WHAT:
        do(device)
    expected = device.container.tensors()
    (_, ranks) = device.container.ranks()
    np.testing.assert_array_equal(ranks[-1], expected.ranks)
    for folder in ("peft", "vllm", "adapter/current"):
        found = read_peft(tmp_path / folder)[0]
        for one, other in zip(found.factors, expected.factors, strict=True):
            np.testing.assert_allclose(one.delta_weight(), other.delta_weight(), atol=1e-6)
    stored = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert len(stored) == 2 * FEW
    np.testing.assert_array_equal(stored["blk.3.attn_q.weight.lora_a"], expected.factors[3].right)


@pytest.mark.parametrize("segment", [2**20, 60])
def test_ranks_of_prefixes_are_those_of_the_decoded_prefixes(segment: int) -> None:
    tensors = random_adapter(
        3, ((24, 16), (16, 48), (8, 8)), (4, 3, 2), {"classifier.weight": (2, 24)}
    )
    container = packed(tensors, n_steps=3, segment=segment)
    plans, ranks = container.ranks()
    decoded = list(container.decoded())
    assert plans == [plan for plan, _ in decoded]
    np.testing.assert_array_equal(ranks, [prefix.ranks for _, prefix in decoded])
    assert ranks[0].sum() < ranks[-1].sum()
    plans, ranks = container.prefix(0).ranks()
    assert (plans, ranks.shape) == ([], (0, 3))
    cut = Container(container.header, (container.chunks[0], container.chunks[1][:-3]))
    with pytest.raises(CodecError):
        cut.ranks()


@pytest.mark.parametrize(
    ("largest", "n_bytes"), [(127, 1), (-128, 1), (128, 2), (-(2**15), 2), (2**15, 4), (2**24, 4)]
)
@pytest.mark.parametrize("most", [None, 0])
def test_indices_lie_on_the_disk_in_as_few_bytes_as_they_need(
    largest: int, n_bytes: int, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-5, 6, size=(3, d)).astype(np.int32) for d in (7, 4))
    left[1, 2] = largest
    steps = np.array([0.1, 1e-9, 3.0], np.float32)
    kept, keep = [], Collector._keep

    def noted(self: Collector, array: np.ndarray) -> Callable[[], np.ndarray]:
        kept.append(array.dtype.itemsize)
        return keep(self, array)

    monkeypatch.setattr(Collector, "_keep", noted)
    empty = QuantisedFactors(left[:0], right[:0], steps[:0])
    factors = Collector(most).quantised([QuantisedFactors(left, right, steps), empty])
    assert kept == ([] if most is None else [n_bytes, 1, 1, 1])
    assert isinstance(factors, LazyFactors) == (most == 0)
    np.testing.assert_array_equal(factors[0].left, (left.astype(np.float32).T * steps))
    np.testing.assert_array_equal(factors[0].right, right.astype(np.float32) * steps[:, None])
    assert {factors[0].left.dtype, factors[0].right.dtype} == {np.dtype(np.float32)}
    assert (factors[1].left.shape, factors[1].right.shape) == ((7, 0), (0, 4))
