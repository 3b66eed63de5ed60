"""An update gives the new file byte for byte, or says why not; the old file decides."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import adapters_and_ladders, header_of, mixtures, packed, random_adapter
from helpers.lean import as_varint, varint
from rankcast.codec.changes import ChangeReader, ChangeWriter, change_weights
from rankcast.codec.chunks import encode
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.codec.packing import Source
from rankcast.codec.quantiser import at_exponent
from rankcast.codec.tensors import AdapterTensors
from rankcast.codec.update import apply_update, make_update
from rankcast.errors import CodecError


def sha256s(file: Container) -> list[str]:
    blobs = (header_bytes(file.header), *file.chunks)
    return [hashlib.sha256(data).hexdigest() for data in blobs]


def changed(tensors: AdapterTensors, seed: int, size: float) -> AdapterTensors:
    """Return an adapter whose every weight has moved a little."""
    rng = np.random.default_rng(seed)
    factors = tuple(
        replace(
            f,
            left=(f.left + size * rng.normal(size=f.left.shape)).astype(np.float32),
            right=(f.right + size * rng.normal(size=f.right.shape)).astype(np.float32),
        )
        for f in tensors.factors
    )
    modules = {
        name: (values + size * rng.normal(size=values.shape)).astype(np.float32)
        if values.dtype == np.float32
        else values
        for name, values in tensors.modules.items()
    }
    return replace(tensors, factors=factors, modules=modules)


def check(old: Container, new: Container) -> int:
    """Check that an update makes every prefix, and return its bytes."""
    update = make_update(old.to_bytes(), new.to_bytes())
    made = apply_update(old.to_bytes(), update, sha256s(new))
    assert b"".join(made) == new.to_bytes()
    for n in range(1, len(old.chunks)):
        made = apply_update(old.prefix(n).to_bytes(), update, sha256s(new))
        assert b"".join(made) == new.prefix(min(n, len(new.chunks))).to_bytes()
    return len(update)


@given(adapters_and_ladders(), st.integers(0, 99), st.sampled_from([0.0, 1e-3, 0.1, 10.0]))
@settings(max_examples=60)
def test_any_two_versions_of_an_adapter(drawn: tuple, seed: int, size: float) -> None:
    tensors, plans = drawn
    files = []
    for each in (tensors, changed(tensors, seed, size)):
        chunks = encode(each, plans)
        files.append(Container(header_of(each, chunks), tuple(chunks)))
    check(*files)


@given(mixtures(), mixtures(), st.integers(-30, -6), st.integers(-30, -6))
@settings(max_examples=60)
def test_files_that_share_little_or_nothing(
    one: AdapterTensors, two: AdapterTensors, first: int, second: int
) -> None:
    """Other projections, ranks, tensors, kinds of numbers, steps."""
    source = BaseModel("tiny", "0" * 64), {}
    try:
        files = [pack_at_exponent(Source(t, *source), e) for t, e in ((one, first), (two, second))]
    except CodecError:  # steps too fine for the numbers
        return
    check(*files)


@pytest.mark.parametrize("segment", [40, 4096])
def test_an_adapter_in_segments(segment: int) -> None:
    tensors = random_adapter(3, modules={"a.weight": (6, 30), "b.bias": (4,)})
    old, new = (packed(t, segment=segment) for t in (tensors, changed(tensors, 1, 1e-3)))
    assert check(old, new) < len(new.to_bytes())
    other = packed(random_adapter(3, ranks=(4, 2)), segment=segment)
    if segment == 40:
        with pytest.raises(CodecError, match="other ways"):
            make_update(old.to_bytes(), other.to_bytes())
    else:
        check(old, other)


def test_what_did_not_change_costs_next_to_nothing() -> None:
    tensors = random_adapter(0, ((256, 256), (256, 512)), modules={"classifier.weight": (2, 256)})
    old = packed(tensors)
    assert check(old, old) < 0.02 * len(old.to_bytes())
    few = [f.left.copy() for f in tensors.factors]
    few[0][5, 0] += 0.5  # one weight of thousands
    factors = (replace(tensors.factors[0], left=few[0]), *tensors.factors[1:])
    new = packed(replace(tensors, factors=factors))
    assert check(old, new) < check(old, old) + 40


def test_the_weights_of_a_change() -> None:
    # Drawn anew, weighted by 0.3 for each unit away from the middle symbol: shares 2^16 · 0.3
    # rounded down, times 1, 2, 1. The rate of number 2 is 1/2, of 2^22.
    share = 65536 * 3 // 10
    total = share + 2 * 65536 + share
    half = 2**21
    weights = [half * share // total, half * 2 * 65536 // total + half, half * share // total]
    assert change_weights((1, 2, 1), 1, 2) == weights
    assert sum(weights) == pytest.approx(2**22, abs=3)
    # Of rate 0 the old symbol has no more than its share.
    total = 65536 + 3 * 5898
    assert change_weights((1, 0, 3), 0, 0) == [2**38 // total, 1, 2**22 * 3 * 5898 // total]


def test_cells_at_another_step() -> None:
    indices = np.array([-5, -2, -1, 0, 1, 2, 4, 5], dtype=np.int32)
    assert at_exponent(indices, 0, 6).tolist() == [-2, -1, 0, 0, 0, 1, 1, 2]  # a digit less
    assert at_exponent(indices, 0, 0).tolist() == indices.tolist()
    assert at_exponent(indices, 0, -6).tolist() == (3 * indices).tolist()
    assert at_exponent(indices, 3, 0).tolist() == [-9, -3, -2, 0, 2, 3, 7, 9]  # times √3


@pytest.fixture(scope="module")
def versions() -> tuple[Container, Container, Container]:
    tensors = random_adapter(0, ((64, 64), (64, 128)), modules={"classifier.bias": (4,)})
    return tuple(packed(changed(tensors, i, 2e-3 * i)) for i in range(3))


def test_another_old_file_is_refused(versions: tuple[Container, ...]) -> None:
    old, new, other = versions
    update = make_update(old.to_bytes(), new.to_bytes())
    for wrong in (other.to_bytes(), new.to_bytes()):
        with pytest.raises(CodecError):
            apply_update(wrong, update, sha256s(new))
    with pytest.raises(CodecError, match="damaged"):
        apply_update(old.to_bytes()[:-1] + b"!", update, sha256s(new))
    for held, wanted in ((0, sha256s(new)), (1, sha256s(new)[:1])):
        with pytest.raises(CodecError, match="at least a chunk"):
            apply_update(old.prefix(held).to_bytes(), update, wanted)
    with pytest.raises(CodecError):
        apply_update(old.to_bytes(), update, sha256s(new)[:-1])


@given(st.data())
@settings(max_examples=60)
def test_damage_is_refused_by_name(versions: tuple[Container, ...], data: st.DataObject) -> None:
    old, new, _ = versions
    update = make_update(old.to_bytes(), new.to_bytes())
    at = data.draw(st.integers(0, len(update) - 1))
    if data.draw(st.booleans()):
        flipped = bytes([update[at] ^ data.draw(st.integers(1, 255))])
        damaged = update[:at] + flipped + update[at + 1 :]
    elif data.draw(st.booleans()):
        damaged = update[:at]
    else:  # a byte less in one of the pieces, with lengths that fit
        lengths, start = [], 0
        for _ in new.chunks[1:]:
            length, start = varint(update, start)
            lengths.append(length)
        which = data.draw(st.integers(0, len(lengths) - 1))
        end = start + sum(lengths[: which + 1])
        lengths[which] -= 1
        damaged = b"".join(map(as_varint, lengths)) + update[start : end - 1] + update[end:]
    try:
        made = apply_update(old.to_bytes(), damaged, sha256s(new))
    except CodecError:
        return
    assert b"".join(made) == new.to_bytes()  # some bits decide nothing


def test_a_header_that_grows_is_stopped(versions: tuple[Container, ...]) -> None:
    old, new, _ = versions
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflater.compress(bytes(2**26)) + deflater.flush()
    piece = (len(bomb) | 2**23).to_bytes(3, "little") + bomb
    with pytest.raises(CodecError, match="another header"):
        apply_update(old.to_bytes(), piece, sha256s(new)[:2])
    for short in (b"", b"\0", bytes([4, 0, 128]) + b"\xff" * 4):
        with pytest.raises(CodecError):
            apply_update(old.to_bytes(), short, sha256s(new)[:2])


def test_another_version_of_updates_is_refused() -> None:
    data = bytearray(ChangeWriter().to_bytes())
    ChangeReader(data).close()
    data[0] ^= 3
    with pytest.raises(CodecError, match="another version"):
        ChangeReader(data)
    with pytest.raises(CodecError, match="cut short"):
        ChangeReader(data[:1])
