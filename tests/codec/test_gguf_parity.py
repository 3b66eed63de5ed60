"""GGUF adapters by llama.cpp's rule, restated here: W + (alpha ? alpha / rank : 1)·B·A.

The base weights are stored as its converter stores them; what it computes is mapped back and has to
be the model with our adapter on it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from helpers.models import adapted, logits, tiny_model
from rankcast.adapters.arrays import tensors_of
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.codec.formats.gguf import interleaved_rows, write_gguf
from rankcast.codec.formats.gguf_architecture import GgufArchitecture
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError, ConfigError
from rankcast.records import Projection
from studies.baselines.canonical import balance


def ranked(architecture: str) -> tuple[ElasticAdapter, AdapterTensors]:
    adapter = adapted(architecture, causal=True)
    balance(adapter)
    n = adapter.layout.n_projections
    adapter.set_ranks(np.random.default_rng(0).integers(0, 5, n))
    return adapter, tensors_of(adapter)


LLAMA = GgufArchitecture("llama", 2, 2, 1, interleaved=True, tied=False)


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {t.name: np.array(t.data) for t in reader.tensors}


def llama_cpp_permute(weights: np.ndarray, n_heads: int) -> np.ndarray:
    """Row i of a head goes where llama.cpp's converter puts it, one row at a time."""
    size = weights.shape[0] // n_heads
    order = [h * size + half * size // 2 + i for h in range(n_heads) for i in range(size // 2)
             for half in (0, 1)]  # fmt: skip
    return weights[order]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_llama_cpp_has_the_same_logits(architecture: str, tmp_path: Path) -> None:
    adapter, tensors = ranked(architecture)
    model = tiny_model(architecture, causal=True)
    config = model.config.to_dict()
    path = write_gguf(tensors, tmp_path / "a.gguf", GgufArchitecture.of_config(config))
    fields, stored_lora = read(path)
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["general.architecture"] == architecture
    alpha = fields["adapter.lora.alpha"]

    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), 2)
    used = set()
    for p in tensors.projections:
        name = names.get_name(f"{p.name}.weight", try_suffixes=(".weight",))
        if f"{name}.lora_a" not in stored_lora:
            continue
        used |= {f"{name}.lora_a", f"{name}.lora_b"}
        a, b = stored_lora[f"{name}.lora_a"], stored_lora[f"{name}.lora_b"]
        rank = a.shape[0]
        weight = model.get_submodule(p.name).weight
        stored = weight.detach().numpy()
        stored = stored.T if architecture == "gpt2" else stored
        heads = {"q": 2, "k": 1}.get(p.kind) if architecture == "llama" else None
        order = np.arange(p.d_out)
        if heads:
            order = llama_cpp_permute(order, heads)
        merged = stored[order] + (alpha / rank if alpha else 1.0) * b @ a
        back = np.empty_like(merged)
        back[order] = merged
        weight.data = torch.from_numpy(back.T.copy() if architecture == "gpt2" else back)
    assert used == stored_lora.keys()
    expected = logits(adapter.model, causal=True)
    assert torch.allclose(logits(model, causal=True), expected, atol=1e-4)


def test_rows_are_interleaved_by_head() -> None:
    rows = np.arange(12, dtype=np.float32)
    assert interleaved_rows(12, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(interleaved_rows(12, 3), llama_cpp_permute(rows, 3))


def test_what_llama_cpp_cannot_take_is_refused(tmp_path: Path) -> None:
    _, tensors = ranked("llama")
    config = LLAMA
    path = tmp_path / "a.gguf"
    head = {"score.weight": np.zeros(2, np.float32)}
    with_head = dataclasses.replace(tensors, modules=head, carriage={"score.weight": "full"})
    with pytest.raises(CodecError, match=r"score\.weight"):
        write_gguf(with_head, path, config)
    nothing = tuple(Factors(f.left[:, :0], f.right[:0]) for f in tensors.factors)
    with pytest.raises(CodecError, match="No component"):
        write_gguf(dataclasses.replace(tensors, factors=nothing), path, config)
    with pytest.raises(CodecError, match=r"q_proj has 16 rows, which do not fit 3 heads"):
        write_gguf(tensors, path, dataclasses.replace(LLAMA, n_heads=3))
    with pytest.raises(CodecError, match="no name"):  # of the second layer
        write_gguf(tensors, path, dataclasses.replace(LLAMA, n_layers=1))
    first = tensors.projections[0].name
    twice = [
        dataclasses.replace(p, name=first) if p.kind == "o" else p for p in tensors.projections
    ]
    with pytest.raises(CodecError, match=r"are both blk\.0"):
        write_gguf(dataclasses.replace(tensors, projections=tuple(twice)), path, LLAMA)
    experts = "model.layers.0.mlp.experts.down_proj"
    one = [
        dataclasses.replace(p, name=experts) if p.kind == "o" else p for p in tensors.projections
    ]
    with pytest.raises(CodecError, match=r"all experts of .*experts\.down_proj in one weight"):
        write_gguf(dataclasses.replace(tensors, projections=tuple(one)), path, LLAMA)
    with pytest.raises(ConfigError, match="upgrade gguf"):
        write_gguf(tensors, path, dataclasses.replace(LLAMA, name="from-the-future"))
    strange = tuple(dataclasses.replace(p, name=f"x.{p.name}") for p in tensors.projections)
    with pytest.raises(CodecError, match="no name"):
        write_gguf(dataclasses.replace(tensors, projections=strange), path, config)
    assert not path.exists()


def test_sorted_factors_serve_as_well(tmp_path: Path) -> None:
    _, tensors = ranked("llama")
    again = dataclasses.replace(tensors, factors=tuple(f.sorted() for f in tensors.factors))
    config = LLAMA
    one = read(write_gguf(tensors, tmp_path / "a.gguf", config))[1]
    other = read(write_gguf(again, tmp_path / "b.gguf", config))[1]
    for name in one:
        if name.endswith("lora_a"):
            b = name.replace("lora_a", "lora_b")
            np.testing.assert_allclose(one[b] @ one[name], other[b] @ other[name], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tied", "is_refused"),
    [
        ("llama", True, True), ("llama", False, False), ("llama", None, False),
        ("qwen2", None, False), ("qwen3", True, True), ("phi3", None, False),
        ("gpt2", None, True), ("gpt2", False, False),
        ("gemma", None, True), ("gemma2", None, True),
    ],
)  # fmt: skip
def test_an_output_layer_that_is_the_embedding_has_no_adapter(
    kind: str, tied: bool | None, is_refused: bool, tmp_path: Path
) -> None:
    """Defaults are those of the classes: `transformers` writes only what differs from them."""
    lm_head = Projection("lm_head", 0, "lm_head", 4, 9)
    factors = Factors(np.ones((9, 2), np.float32), np.ones((2, 4), np.float32))
    tensors = AdapterTensors((lm_head,), (factors,), {}, {})
    config = {"model_type": kind, "num_hidden_layers": 2, "num_attention_heads": 2}
    if tied is not None:
        config["tie_word_embeddings"] = tied
    architecture = GgufArchitecture.of_config(config)
    path = tmp_path / "a.gguf"
    if is_refused:
        with pytest.raises(CodecError, match=r"lm_head.* tied .*merged weights"):
            write_gguf(tensors, path, architecture)
        assert not path.exists()
    else:
        assert set(read(write_gguf(tensors, path, architecture))[1]) == {
            "output.weight.lora_a", "output.weight.lora_b",
        }  # fmt: skip
