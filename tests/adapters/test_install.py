"""A container's adapter on a base model answers as the trained one does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.base_models import tiny_base
from helpers.models import adapted, logits, tiny_model
from rankcast.adapters.arrays import in_full, install
from rankcast.adapters.export import load_adapter, save_adapter
from rankcast.adapters.fingerprint import (
    answers_alike,
    base_fingerprint,
    base_tensors,
    check_base,
    logits_fingerprint,
)
from rankcast.codec.container import pack_at_exponent
from rankcast.codec.tensors import AdapterTensors
from rankcast.errors import ModelError
from rankcast.packaging.pack import read_adapter


@pytest.mark.parametrize(
    ("architecture", "causal", "modules"),
    [
        ("bert", False, None),
        ("bert", False, ["classifier", "bert.pooler"]),
        ("gpt2", True, None),
        ("opt", True, None),
        ("llama", True, None),
        ("t5", False, None),
    ],
)
def test_fine_steps_give_the_trained_logits(
    architecture: str, causal: bool, modules: Any, tmp_path: Path
) -> None:
    adapter = adapted(architecture, modules=modules, causal=causal)
    save_adapter(adapter, tmp_path)
    source = read_adapter(tmp_path)
    assert source.base.fingerprint == base_fingerprint(adapter.model)
    relative = "difference" in source.tensors.carriage.values()
    assert relative == (modules is not None)
    container = pack_at_exponent(source, exponent=-60)
    base = tiny_model(architecture, causal=causal)
    before = logits(base, causal=causal)
    installed = install(base, container.tensors(), container.header).eval()
    expected = logits(adapter.model, causal=causal)
    assert not torch.allclose(before, expected, atol=1e-1)
    assert torch.allclose(logits(installed, causal=causal), expected, atol=1e-3)
    assert base_fingerprint(installed) == source.base.fingerprint


def test_saved_originals_do_not_disturb_loading(tmp_path: Path) -> None:
    adapter = adapted(modules=["classifier", "bert.pooler"])
    save_adapter(adapter, tmp_path)
    loaded = load_adapter(tiny_model("bert"), tmp_path)
    loaded.model.eval()
    assert torch.equal(logits(loaded.model), logits(adapter.model))


def test_another_base_model_is_refused_by_name(tmp_path: Path) -> None:
    adapter = adapted()
    save_adapter(adapter, tmp_path)
    container = pack_at_exponent(read_adapter(tmp_path), exponent=-30)
    header = dataclasses.replace(
        container.header, base=dataclasses.replace(container.header.base, name="tiny-bert")
    )
    other = tiny_model("bert", seed=1)
    other.name_or_path = "other-bert"
    with pytest.raises(ModelError, match=r"tiny-bert .* this is other-bert"):
        install(other, container.tensors(), header)
    check_base(other, None, None)


def test_fingerprint_is_that_of_the_frozen_weights_alone() -> None:
    plain = base_fingerprint(tiny_model("bert"))
    model = tiny_model("bert")
    model.classifier.weight.data += 1
    assert base_fingerprint(model) == plain
    assert base_fingerprint(adapted(modules=["classifier", "bert.pooler"]).model) == plain
    assert base_fingerprint(tiny_model("bert").bert) == plain
    changed = tiny_model("bert")
    changed.bert.encoder.layer[0].output.dense.bias.data[0] += 1e-6
    assert base_fingerprint(changed) != plain


def test_an_embedding_that_is_the_output_layer_counts_as_the_embedding() -> None:
    """XLM-R's class for masked words registers its output layer first, and both are one tensor."""
    import transformers as tf

    masked = tiny_base(tf.XLMRobertaForMaskedLM, "xlm-roberta")
    assert masked.lm_head.decoder.weight is masked.roberta.embeddings.word_embeddings.weight
    assert base_fingerprint(masked) == base_fingerprint(masked.roberta)
    names = [name for name, _ in base_tensors(masked)]
    assert "embeddings.word_embeddings.weight" in names
    assert len(names) == len(set(names)) == len(list(masked.roberta.parameters()))


def test_logits_tell_whether_the_adapter_is_active(tmp_path: Path) -> None:
    adapter = adapted()
    fingerprint = logits_fingerprint(adapter.model)
    assert answers_alike(adapter.model, fingerprint)
    adapter.set_ranks(np.zeros(adapter.layout.n_projections, dtype=np.int64))
    assert not answers_alike(adapter.model, fingerprint)
    assert not answers_alike(adapter.model, fingerprint | {"logits": [0.0]})


def test_a_difference_needs_the_tensor_that_it_adds_to(tmp_path: Path) -> None:
    adapter = adapted(modules=["classifier", "bert.pooler"])
    save_adapter(adapter, tmp_path)
    container = pack_at_exponent(read_adapter(tmp_path), exponent=-30)
    header = dataclasses.replace(
        container.header, base=dataclasses.replace(container.header.base, fingerprint=None)
    )
    model = tiny_model("bert")
    model.bert.pooler = None
    with pytest.raises(ModelError, match="pooler"):
        install(model, container.tensors(), header)


def test_tensors_of_the_adapters_own_stay_its_own() -> None:
    """Only differences are added to the base model's."""
    model, name = tiny_model("bert"), "bert.pooler.dense.bias"
    tensors = AdapterTensors(
        (), (),
        {name: np.ones(16, np.float32), "x": np.ones(2, np.float32), "y": np.ones(3, np.float32)},
        {name: "difference", "x": "own", "y": "full"},
    )  # fmt: skip
    found = in_full(tensors, model)
    assert found.carriage == {name: "full", "x": "own", "y": "full"}
    assert np.array_equal(found.modules[name], model.bert.pooler.dense.bias.detach().numpy() + 1)
    assert np.array_equal(found.modules["x"], [1, 1])
    assert in_full(dataclasses.replace(tensors, carriage=found.carriage), model).modules is (
        tensors.modules
    )
