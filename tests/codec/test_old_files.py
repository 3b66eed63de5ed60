"""Files of format 1, coded by rankcast 0.1.0, decode to the same weights, bit for bit.

`tests/data/format_1` holds a file that was packed for a budget, one whose prefixes were measured,
and the SHA-256 of what the decoder of that version made of every prefix.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankcast.codec.chunks import Decoder, encode
from rankcast.codec.container import load
from rankcast.codec.tensors import AdapterTensors, Factors

FOLDER = Path(__file__).parents[1] / "data" / "format_1"


def digest(tensors: AdapterTensors) -> str:
    """Return the SHA-256 of names, shapes and bytes of every tensor."""
    sha = hashlib.sha256()
    for p, f in zip(tensors.projections, tensors.factors, strict=True):
        for values in (f.left, f.right):
            sha.update(f"{p.name}{values.shape}".encode())
            sha.update(np.ascontiguousarray(values).tobytes())
    for name, values in sorted(tensors.modules.items()):
        sha.update(f"{name}{values.shape}{tensors.carriage[name]}".encode())
        sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("name", ["plain.rcast", "measured.rcast"])
def test_every_prefix_of_an_old_file_decodes_to_the_same_bits(name: str) -> None:
    expected = json.loads((FOLDER / "decoded.json").read_text("utf-8"))[name]
    container = load(FOLDER / name)
    assert container.to_bytes() == (FOLDER / name).read_bytes()
    assert len(container.chunks) == len(expected) - 1
    for n, sha in enumerate(expected):
        assert digest(container.prefix(n).tensors()) == sha, n


def test_what_was_measured_of_an_old_file_is_read() -> None:
    container = load(FOLDER / "measured.rcast")
    header, ladder = container.header, container.ladder
    assert [(p.loss, p.accuracy) for p in ladder[:2]] == [(2.09114, 0.14062), (2.06062, 0.14062)]
    assert ladder[-1].n_bytes == (FOLDER / "measured.rcast").stat().st_size
    assert header.base.fingerprint is not None
    assert header.base.fingerprint.startswith("2c8549f984c4315d")
    assert header.fingerprint is not None
    assert sorted(header.fingerprint) == ["input_ids", "logits"]


@pytest.mark.parametrize("name", ["plain.rcast", "measured.rcast"])
def test_what_was_decoded_is_coded_again_in_the_same_bytes(name: str) -> None:
    """An encoder of today writes what version 0.1.0 wrote, as files of format 1."""
    container = load(FOLDER / name)
    decoder = Decoder(container.header)
    plans = [decoder.add(chunk) for chunk in container.chunks]
    groups = decoder._states[0].groups
    offsets = [np.array([block.offset for block in blocks]) for blocks in groups]
    tensors = decoder.tensors()
    ranks = container.header.ranks
    padded = tuple(
        Factors(
            np.pad(f.left, ((0, 0), (0, rank - f.rank))),
            np.pad(f.right, ((0, rank - f.rank), (0, 0))),
        )
        for f, rank in zip(tensors.factors, ranks, strict=True)
    )
    again = replace(tensors, factors=padded)
    assert encode(again, plans, offsets, lean=False) == list(container.chunks)
    assert container.to_bytes()[8:10] == b"\1\0"
