"""A base model in a GGUF is known by its weights, however its file is laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from rankcast.codec.formats.gguf_base import _TYPES, GgufBase
from rankcast.errors import ModelError

Q8 = gguf.GGMLQuantizationType.Q8_0
RNG = np.random.default_rng(0)
MAPS = {
    "blk.0.attn_q.weight": RNG.normal(size=(6, 64)).astype(np.float32),
    "blk.0.ffn_up.weight": RNG.normal(size=(8, 64)).astype(np.float16),
    "blk.0.attn_norm.weight": RNG.normal(size=64).astype(np.float32),
}


def write(
    path: Path, tensors: Mapping[str, NDArray[Any]], *, quantised: bool = False, **metadata: str
) -> GgufBase:
    writer = gguf.GGUFWriter(path, "llama")
    for key, text in metadata.items():
        writer.add_string(key, text)
    for name, array in tensors.items():
        if quantised and array.ndim == 2:
            data = gguf.quants.quantize(array.astype(np.float32), Q8)
            writer.add_tensor(name, data, raw_dtype=Q8)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufBase.open(path)


def test_sizes_of_blocks_are_those_of_the_package() -> None:
    assert {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}.items() <= (
        _TYPES.items()
    )


def test_metadata_and_order_do_not_count(tmp_path: Path) -> None:
    one = write(tmp_path / "1.gguf", MAPS)
    backwards = dict(reversed(MAPS.items()))
    other = write(tmp_path / "2.gguf", backwards, **{"tokenizer.chat_template": "new"})
    assert one.fingerprint() == other.fingerprint()
    assert len(one.fingerprint()) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda maps: maps | {"blk.0.attn_q.weight": maps["blk.0.attn_q.weight"] + 1e-3},
        lambda maps: maps | {"blk.0.attn_q.weight": maps["blk.0.attn_q.weight"].reshape(3, 128)},
        lambda maps: {name.replace("attn_q", "attn_k"): x for name, x in maps.items()},
        lambda maps: {name: x.astype(np.float32) for name, x in maps.items()},
        lambda maps: dict(list(maps.items())[1:]),
    ],
)
def test_values_shapes_names_and_precision_do(change: Callable[[Any], Any], tmp_path: Path) -> None:
    one, other = write(tmp_path / "1.gguf", MAPS), write(tmp_path / "2.gguf", change(MAPS))
    assert one.fingerprint() != other.fingerprint()


def test_rows_are_dequantised_as_by_the_package(tmp_path: Path) -> None:
    for quantised in (False, True):
        base = write(tmp_path / "base.gguf", MAPS, quantised=quantised)
        for tensor in gguf.GGUFReader(tmp_path / "base.gguf").tensors:
            whole = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            numbers = [0] if whole.ndim == 1 else [4, 1]
            rows = base.rows(tensor.name, numbers)
            np.testing.assert_array_equal(rows, np.atleast_2d(whole)[numbers])


def test_what_is_cut_short_or_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    write(path, MAPS)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelError, match="cut short"):
        GgufBase.open(path)
    with pytest.raises(ModelError, match="of type 'adapter'"):
        write(path, MAPS, **{"general.type": "adapter"})
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(ModelError, match="no GGUF"):
        GgufBase.open(path)


def test_quantisation_is_named(tmp_path: Path) -> None:
    assert write(tmp_path / "1.gguf", MAPS, quantised=True).quantisation == "Q8_0"
