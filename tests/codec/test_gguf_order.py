"""The order of a GGUF's rows, measured against the weights that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from helpers.commands import Call
from helpers.gguf_bases import interleaved, tiny_causal_model, write_base
from rankcast.codec.formats import gguf_order
from rankcast.codec.formats.gguf import interleaved_rows
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.formats.gguf_header import GgufHeader
from rankcast.codec.formats.gguf_order import architecture_of, dequantised, measured_architecture
from rankcast.errors import ConfigError, ModelError


def saved(kind: str, folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Return the folder of a model and its GGUF."""
    model = tiny_causal_model(kind)
    model.save_pretrained(folder / "base")
    return folder / "base", write_base(model, folder / "base.gguf", **changes)


@pytest.mark.parametrize(("kind", "order"), [("llama", True), ("qwen3", False), ("granite", True)])
def test_a_known_order_is_found(kind: str, order: bool, tmp_path: Path) -> None:
    folder, base = saved(kind, tmp_path, dtype=np.float16)
    found = measured_architecture(folder, base)
    assert found == GgufArchitecture.of_gguf(base)
    assert found.interleaved is order


def requantised(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """Return the same GGUF with quantised maps, without a tokenizer."""
    reader, there = gguf.GGUFReader(path), path.with_name(f"{kind.name}.gguf")
    writer = gguf.GGUFWriter(there, "llama")
    for key in ("block_count", "attention.head_count", "attention.head_count_kv"):
        writer.add_uint32(f"llama.{key}", reader.fields[f"llama.{key}"].contents())
    for t in reader.tensors:
        is_map = len(t.shape) == 2
        data = gguf.quants.quantize(t.data, kind) if is_map else t.data
        writer.add_tensor(t.name, data, raw_dtype=kind if is_map else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return there


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16"])
def test_it_is_found_through_quantisation(kind: str, tmp_path: Path) -> None:
    folder, base = saved("llama", tmp_path)
    coarse = requantised(base, gguf.GGMLQuantizationType[kind])
    assert measured_architecture(folder, coarse).interleaved


def test_dequantised_rows_are_those_of_the_package(tmp_path: Path) -> None:
    _, base = saved("llama", tmp_path)
    path = requantised(base, gguf.GGMLQuantizationType.Q4_0)
    header, reader = GgufHeader.open(path), gguf.GGUFReader(path)
    for t in reader.tensors:
        if len(t.shape) == 2:
            whole = gguf.quants.dequantize(t.data, t.tensor_type)
            np.testing.assert_array_equal(dequantised(header.tensors[t.name]), whole)
            np.testing.assert_array_equal(dequantised(header.tensors[t.name], 5), whole[:5])


def test_rows_are_interleaved_as_restated() -> None:
    rows = np.arange(48)
    for heads in (1, 2, 4, 6):
        np.testing.assert_array_equal(rows[interleaved_rows(48, heads)], interleaved(rows, heads))


def test_another_model_or_another_order_is_refused(tmp_path: Path) -> None:
    folder, _ = saved("llama", tmp_path)
    other = write_base(tiny_causal_model("llama", seed=5), tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"q_proj in .*other.gguf|in no order"):
        measured_architecture(folder, other)
    model = tiny_causal_model("llama")
    for layer in model.model.layers:  # neither as they are nor interleaved
        layer.self_attn.k_proj.weight.data = layer.self_attn.k_proj.weight.data.flip(0)
    with pytest.raises(ModelError, match=r"k_proj in .*in no order.*[Mm]erged"):
        measured_architecture(folder, write_base(model, tmp_path / "moved.gguf"))
    scaled = tiny_causal_model("llama")
    scaled.model.layers[0].mlp.down_proj.weight.data *= 2
    with pytest.raises(ModelError, match=r"down_proj in .*in no order"):
        measured_architecture(folder, write_base(scaled, tmp_path / "scaled.gguf"))


def test_fused_weights_cannot_be_measured(tmp_path: Path) -> None:
    folder, base = saved("gpt_neox", tmp_path)
    with pytest.raises(ModelError, match=r"query_key_value|cannot be measured"):
        measured_architecture(folder, base)


def test_a_gguf_that_is_cut_short_or_of_other_shapes_is_refused(tmp_path: Path) -> None:
    folder, base = saved("llama", tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(base.read_bytes()[:-300_000])
    with pytest.raises(ModelError, match="cannot be read"):
        measured_architecture(folder, cut)
    wide = tiny_causal_model("llama")
    wide.model.layers[0].mlp.gate_proj.weight.data = wide.model.layers[0].mlp.gate_proj.weight[:32]
    with pytest.raises(ModelError, match=r"gate_proj has the shape \(96, 64\)"):
        measured_architecture(folder, write_base(wide, tmp_path / "narrow.gguf"))


def test_export_measures_what_is_not_known(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture that the tables lack: as if llama.cpp's converter were not known to us."""
    from peft import LoraConfig, get_peft_model

    import rankcast
    from rankcast.codec.formats import gguf_architecture as tables

    folder, base = saved("llama", tmp_path)
    adapter = get_peft_model(
        tiny_causal_model("llama"), LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapter.save_pretrained(tmp_path / "lora")
    rankcast.pack(tmp_path / "lora").save(tmp_path / "a.rcast")
    args = ["export", str(tmp_path / "a.rcast"), "--format", "gguf", "-o"]
    call.ok(*args, str(tmp_path / "known.gguf"), "--base-model", str(folder))
    words = (*args[:2], "-o", str(tmp_path / "new"), "--base-gguf", str(base))
    assert "--format gguf" in call.refused(*words)

    monkeypatch.setattr(tables, "_INTERLEAVED", frozenset())
    assert "--base-gguf" in call.refused(*args, str(tmp_path / "x"), "--base-model", str(folder))
    assert "measured" in call.refused(*args, str(tmp_path / "x"), "--base-gguf", str(base))
    both = ["--base-model", str(folder), "--base-gguf", str(base)]
    call.ok(*args, str(tmp_path / "measured.gguf"), *both)
    assert (tmp_path / "measured.gguf").read_bytes() == (tmp_path / "known.gguf").read_bytes()


def test_neither_folder_nor_gguf(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--base-model.*--base-gguf"):
        architecture_of(None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    with pytest.raises(ConfigError, match="'opt'"):
        gguf_order.architecture_of(tmp_path)
