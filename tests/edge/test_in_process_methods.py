"""Adapters that are more than a LoRA, swapped on a model in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
    get_peft_model_state_dict,
)

from helpers.models import tiny_batch, tiny_model
from rankcast.adapters.fingerprint import base_fingerprint, logits_fingerprint
from rankcast.codec.container import Container
from rankcast.edge.activate import Candidate
from rankcast.edge.in_process import PeftModelActivator
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import DeliveryError, ModelError
from rankcast.packaging.pack import pack
from rankcast.release.manifest import blob_of

TARGETS = ["query", "value"]
METHODS: dict[str, Any] = {
    "ia3": IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "vera": VeraConfig(target_modules=TARGETS, r=4),
    "dora": LoraConfig(target_modules=TARGETS, r=4, use_dora=True),
    "bias": LoraConfig(target_modules=TARGETS, r=4, lora_bias=True),
}


def packed(folder: Path, config: Any) -> tuple[Container, torch.Tensor]:
    """Return an adapter filled with noise, and what the model answers with it."""
    model = get_peft_model(tiny_model("bert"), config)
    noise = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            near_one = 1.0 if "ia3" in name else 0.0
            parameter.data = near_one + 0.2 * torch.randn(parameter.shape, generator=noise)
    model.eval().save_pretrained(folder)
    container = pack(folder, budget_bits=1e12)
    base = replace(container.header.base, fingerprint=base_fingerprint(tiny_model("bert")))
    header = replace(container.header, base=base, fingerprint=logits_fingerprint(model))
    with torch.no_grad():
        return Container(header, container.chunks), model(**tiny_batch()).logits


def candidate(container: Container, version: int = 1, n_chunks: int | None = None) -> Candidate:
    cut = container.prefix(len(container.chunks) if n_chunks is None else n_chunks)
    blobs = ("0" * 64, *(blob_of(chunk).sha256 for chunk in cut.chunks))
    return Candidate(ReleasePrefix("a.b", version, 0, blobs), cut, cut.tensors())


def test_every_method_answers_as_it_did_where_it_was_packed(tmp_path: Path) -> None:
    bare = tiny_model("bert")(**tiny_batch()).logits
    for name, config in METHODS.items():
        container, wanted = packed(tmp_path / name, config)
        activator = PeftModelActivator(tiny_model("bert"))
        activator.activate(candidate(container))
        found = activator(**tiny_batch()).logits
        assert torch.allclose(found, wanted, atol=1e-3), name
        activator.activate(candidate(container, n_chunks=1))  # a prefix that no logits came with
        assert torch.isfinite(activator(**tiny_batch()).logits).all(), name
        activator.deactivate()
        assert torch.allclose(activator(**tiny_batch()).logits, bare, atol=1e-6), name


def test_a_model_that_takes_other_tensors_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container, _ = packed(tmp_path / "a", METHODS["vera"])
    load = PeftModel.from_pretrained

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        name = kwargs["adapter_name"]
        held = get_peft_model_state_dict(model, adapter_name=name)
        next(iter(held.values())).zero_()
        return model

    monkeypatch.setattr(PeftModel, "from_pretrained", forgetful)
    activator = PeftModelActivator(tiny_model("bert"))
    with pytest.raises(DeliveryError, match=r"is not what came with"):
        activator.activate(candidate(container))
    assert activator.active() is None


def test_another_method_than_before_leaves_the_one_before_active(tmp_path: Path) -> None:
    first, wanted = packed(tmp_path / "a", METHODS["dora"])
    second, _ = packed(tmp_path / "b", METHODS["ia3"])
    activator = PeftModelActivator(tiny_model("bert"))
    activator.activate(candidate(first))
    with pytest.raises(DeliveryError):
        activator.activate(candidate(second, version=2))
    assert torch.allclose(activator(**tiny_batch()).logits, wanted, atol=1e-3)


def test_a_prompt_is_refused_with_the_way_to_use_it(tmp_path: Path) -> None:
    config = PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
    container, _ = packed(tmp_path / "a", config)
    activator = PeftModelActivator(tiny_model("bert"))
    with pytest.raises(ModelError, match=r"PREFIX_TUNING.*load it at start"):
        activator.activate(candidate(container))
    assert torch.isfinite(activator(**tiny_batch()).logits).all()
