"""A container's adapter on a base model answers as the trained one does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import adapted, logits, tiny_model
from rankcast.adapters.arrays import install
from rankcast.adapters.export import load_adapter, save_adapter
from rankcast.adapters.fingerprint import (
    answers_alike,
    base_fingerprint,
    check_base,
    logits_fingerprint,
)
from rankcast.codec.container import pack_at_exponent
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
