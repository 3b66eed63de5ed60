"""Files of tensors: alike with the safetensors library, both ways."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rankcast.codec.formats.tensor_file import TensorFile, write_tensor_file
from rankcast.errors import CodecError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind_are_read_as_the_library_stores_them(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    values = (torch.arange(-6, 6).reshape(3, 4) * 0.37).to(dtype)
    save_file({"b": values, "a": values[:0].contiguous()}, tmp_path / "x", {"format": "pt"})
    file = TensorFile.open(tmp_path / "x")
    assert list(file.entries) == ["a", "b"]
    assert file.metadata == {"format": "pt"}
    assert file.array("a").shape == (0, 4)
    found = file.array("b")
    expected = values.float() if values.is_floating_point() else values
    assert found.dtype == expected.numpy().dtype
    assert np.array_equal(found, expected.numpy())


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5),
    kind=st.sampled_from(["f4", "f8", "i8", "i4", "u1", "?"]),
)
def test_the_library_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], kind: str
) -> None:
    path = tmp_path_factory.mktemp("w") / "x.safetensors"
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": (9 * rng.random(s)).astype(kind) for i, s in enumerate(shapes)}
    write_tensor_file(path, {n: (a.shape, a.dtype) for n, a in arrays.items()}, arrays.values())
    found = safetensors.numpy.load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_other_tensors_than_named_are_refused(tmp_path: Path) -> None:
    shapes = {"a": ((2,), np.dtype("f4")), "b": ((3,), np.dtype("f4"))}
    two, three = np.zeros(2, np.float32), np.zeros(3, np.float32)
    for wrong in ([three, two], [two], [two, three, two], [two.astype("f8"), three]):
        with pytest.raises(CodecError):
            write_tensor_file(tmp_path / "x", shapes, wrong)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(CodecError, match="missing"):
        TensorFile.open(path)
    save_file({"a": torch.arange(8.0)}, path)
    whole = path.read_bytes()
    json_end = 8 + struct.unpack("<Q", whole[:8])[0]
    damaged = (
        b"", whole[:5], whole[:20], whole[:-1], b"\xff" * 8 + whole[8:],
        whole[:8] + b"x" * (json_end - 8) + whole[json_end:], whole.replace(b"F32", b"F99"),
        whole.replace(b"[8]", b"[9]"), whole.replace(b"[0,32]", b'[0,""]'),
    )  # fmt: skip
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CodecError):
            TensorFile.open(path)
    path.write_bytes(whole)
    with pytest.raises(CodecError, match="no tensor b"):
        TensorFile.open(path).array("b")
