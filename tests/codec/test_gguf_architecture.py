"""What is read of a base model's configuration or GGUF, and what is refused by name."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.gguf_bases import tiny_causal_model, write_base
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.formats.gguf_header import GgufHeader
from rankcast.errors import ConfigError, ModelError

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURE = GgufArchitecture("qwen3", 2, 4, 2, interleaved=False, tied=True)


@pytest.mark.parametrize(
    ("kind", "name", "interleaved"),
    [
        ("llama", "llama", True), ("mistral", "llama", True), ("mixtral", "llama", True),
        ("smollm3", "smollm3", True), ("granite", "granite", True), ("olmo", "olmo", True),
        ("arcee", "arcee", True), ("gemma3", "gemma3", False), ("gemma3_text", "gemma3", False),
        ("cohere", "command-r", False), ("gpt_neox", "gptneox", False), ("phi", "phi2", False),
        ("gpt_bigcode", "starcoder", False), ("olmo3", "olmo2", False),
        ("llama4_text", "llama4", False), ("seed_oss", "seed_oss", False),
    ],
)  # fmt: skip
def test_words_for_model_types(kind: str, name: str, interleaved: bool) -> None:
    found = GgufArchitecture.of_config({"model_type": kind, **SIZES})
    assert (found.name, found.interleaved) == (name, interleaved)
    assert (found.n_layers, found.n_heads, found.n_kv_heads) == (2, 4, 2)


def test_every_name_of_the_tables_is_one_of_llama_cpp() -> None:
    from rankcast.codec.formats import gguf_architecture as module

    known = set(gguf.MODEL_ARCH_NAMES.values())
    assert module._INTERLEAVED | module._OTHERWISE_KEPT | set(module._WORDS.values()) <= known
    assert not module._INTERLEAVED & module._OTHERWISE_KEPT


@pytest.mark.parametrize(
    "kind",
    [
        "bloom", "cohere", "cohere2", "ernie4_5", "falcon", "gemma", "gemma2", "gemma3_text",
        "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "lfm2", "llama", "mistral", "mpt",
        "olmo2", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2",
    ],
)  # fmt: skip
def test_output_layers_are_tied_by_default_as_the_class_says(kind: str) -> None:
    """`transformers` may leave the default out of config.json."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found = GgufArchitecture.of_config({"model_type": kind, **SIZES})
    assert found.tied is CONFIG_MAPPING[kind].tie_word_embeddings


def test_the_text_model_inside_one_that_sees_is_followed() -> None:
    text = {"model_type": "gemma3_text", **SIZES, "tie_word_embeddings": False}
    outer = {"model_type": "gemma3", "num_hidden_layers": 99, "tie_word_embeddings": True}
    found = GgufArchitecture.of_config({**outer, "text_config": text})
    assert found == GgufArchitecture("gemma3", 2, 4, 2, interleaved=False, tied=False)


@pytest.mark.parametrize(
    ("more", "n_kv_heads"),
    [
        ({}, 1), ({"multi_query": False}, 4),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"new_decoder_architecture": False, "num_kv_heads": 4}, 1),
    ],
)  # fmt: skip
def test_falcons_share_keys_as_their_class_does(more: dict[str, Any], n_kv_heads: int) -> None:
    config = {"model_type": "falcon", "num_hidden_layers": 2, "num_attention_heads": 4, **more}
    assert GgufArchitecture.of_config(config).n_kv_heads == n_kv_heads


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "opt", **SIZES}, "no architecture for 'opt'"),
        ({}, "no architecture for 'None'"),
        ({"model_type": "qwen4", **SIZES}, "did you mean"),
        ({"model_type": "stablelm", **SIZES}, r"order.*stablelm.*--base-gguf.*measured"),
        ({"model_type": "llama", "num_hidden_layers": 2}, "has none of num_attention_heads"),
        ({"model_type": "llama", **SIZES, "num_hidden_layers": "2"}, "num_hidden_layers"),
    ],
)
def test_what_is_not_known_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GgufArchitecture.of_config(config)


def test_plain_form_and_back() -> None:
    plain = ARCHITECTURE.to_plain()
    assert GgufArchitecture.from_plain(plain) == ARCHITECTURE
    bad: list[Any] = [
        None, [], {}, {**plain, "more": 1}, {k: v for k, v in plain.items() if k != "tied"},
        {**plain, "n_layers": 0}, {**plain, "n_heads": "4"}, {**plain, "tied": 1},
        {**plain, "n_layers": True}, {**plain, "name": ""}, {**plain, "name": 3},
    ]  # fmt: skip
    for other in bad:
        with pytest.raises(ConfigError, match="architecture for GGUF"):
            GgufArchitecture.from_plain(other)


def test_a_header_says_where_every_tensor_lies(tmp_path: Path) -> None:
    """Compared with the package's own reader, which maps the whole file."""
    path = write_base(tiny_causal_model("qwen3"), tmp_path / "base.gguf", dtype=np.float16)
    header, reader = GgufHeader.open(path), gguf.GGUFReader(path)
    assert header.tensors.keys() == {t.name for t in reader.tensors}
    for t in reader.tensors:
        found = header.tensors[t.name]
        assert found.shape == tuple(reversed(t.shape.tolist()))
        assert (found.type, found.start) == (int(t.tensor_type), t.data_offset)
        data = path.read_bytes()[found.start : found.start + t.n_bytes]
        assert data == np.ascontiguousarray(t.data).tobytes()
    assert header.metadata["qwen3.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] is None  # passed over


def test_every_cut_of_a_header_is_refused(tmp_path: Path) -> None:
    path = write_base(tiny_causal_model("llama"), tmp_path / "base.gguf")
    header = GgufHeader.open(path)
    end = min(t.start for t in header.tensors.values())
    data, cut = path.read_bytes()[:end], tmp_path / "cut.gguf"
    for n in range(0, end - 32, 97):
        cut.write_bytes(data[:n])
        with pytest.raises(ModelError, match="GGUF"):
            GgufHeader.open(cut)
    cut.write_bytes(data)  # the weights are not looked at
    assert GgufArchitecture.of_gguf(cut) == GgufArchitecture.of_gguf(path)


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        for start in (b"", b"GGUF", struct.pack("<4sIQQ", b"GGUF", 3, 2, 2)):
            path.write_bytes(start + data)
            with pytest.raises((ModelError, ConfigError)):
                GgufArchitecture.of_gguf(path)


def written(path: Path, keys: dict[str, Any], *, kind: str | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if kind is not None:
        writer.add_type(kind)
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tensor("output.weight", np.zeros((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_a_gguf_may_lack(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"llama.block_count": 3, "llama.attention.head_count": 8}
    path = written(tmp_path / "a.gguf", keys)
    untied = GgufArchitecture("llama", 3, 8, 8, interleaved=True, tied=False)
    assert GgufArchitecture.of_gguf(path) == untied
    by_layer = {**keys, "llama.attention.head_count_kv": [0, 2, 2]}
    found = GgufArchitecture.of_gguf(written(tmp_path / "b.gguf", by_layer))
    assert found == dataclasses.replace(untied, n_kv_heads=2)
    with pytest.raises(ModelError, match="block_count"):
        GgufArchitecture.of_gguf(written(tmp_path / "c.gguf", {"llama.attention.head_count": 8}))
    with pytest.raises(ModelError, match="of type 'adapter'"):
        GgufArchitecture.of_gguf(written(tmp_path / "d.gguf", keys, kind="adapter"))
    with pytest.raises(ModelError, match="cannot be read"):
        GgufArchitecture.of_gguf(tmp_path)


def test_a_model_in_several_files(tmp_path: Path) -> None:
    """The output layer lies in the last, as llama-gguf-split puts it."""
    path = write_base(tiny_causal_model("llama"), tmp_path / "base.gguf")
    reader = gguf.GGUFReader(path)
    for number in (1, 2):
        part = tmp_path / f"part-{number:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint32("split.count", 2)
        if number == 1:
            writer.add_block_count(2)
            writer.add_head_count(4)
            writer.add_head_count_kv(2)
        for t in reader.tensors:
            if (t.name == "output.weight") == (number == 2):
                writer.add_tensor(t.name, t.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    first = tmp_path / "part-00001-of-00002.gguf"
    assert GgufArchitecture.of_gguf(first) == GgufArchitecture.of_gguf(path)
    assert GgufHeader.open(first).tensors["output.weight"].path == part
    with pytest.raises(ModelError, match="name the first"):
        GgufHeader.open(part)
    part.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        GgufHeader.open(first)
