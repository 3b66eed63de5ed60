"""Files of format 1, coded by rankcast 0.1.0, decode to the same weights, bit for bit.

`tests/data/format_1` holds a file that was packed for a budget, one whose prefixes were measured,
and the SHA-256 of what the decoder of that version made of every prefix.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from rankcast.codec.container import load
from rankcast.codec.tensors import AdapterTensors

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
