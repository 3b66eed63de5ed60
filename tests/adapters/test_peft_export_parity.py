from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from helpers.models import adapted, logits, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import export_lora
from rankcast.errors import ConfigError

MODELS = [
    *((a, False) for a in ("bert", "gpt2", "opt", "llama", "t5")),
    *((a, True) for a in ("gpt2", "opt", "llama")),
]


def trained(architecture: str, *, causal: bool = False, seed: int = 0) -> ElasticAdapter:
    adapter = adapted(architecture, causal=causal, seed=seed)
    n = adapter.layout.n_projections
    adapter.set_ranks(np.random.default_rng(seed).integers(0, 5, n))
    return adapter


@pytest.mark.parametrize(("architecture", "causal"), MODELS)
def test_stock_peft_loads_it_with_equal_logits(
    architecture: str, causal: bool, tmp_path: Any
) -> None:
    from peft import PeftModel

    adapter = trained(architecture, causal=causal)
    assert 0 in adapter.ranks
    path = export_lora(adapter, tmp_path / "lora", base_model_name="base")
    loaded = PeftModel.from_pretrained(tiny_model(architecture, causal=causal), path).eval()

    expected = logits(adapter.model, causal=causal)
    base = logits(tiny_model(architecture, causal=causal), causal=causal)
    assert not torch.allclose(expected, base, atol=1e-2)
    assert torch.allclose(logits(loaded, causal=causal), expected, rtol=1e-5, atol=1e-5)
    adapted = {n for n, m in loaded.base_model.model.named_modules() if hasattr(m, "lora_A")}
    sent = zip(adapter.layout.projections, adapter.ranks, strict=True)
    assert adapted == {p.name for p, r in sent if r}


def test_configuration_gives_a_factor_of_one_with_and_without_patterns(tmp_path: Any) -> None:
    adapter = trained("bert")
    ranks = np.array([0, 1, 2, 3] * 3)
    export_lora(adapter, tmp_path, ranks=ranks, base_model_name="some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    names = [p.name for p in adapter.layout.projections]

    assert config["r"] == config["lora_alpha"] == 3
    assert config["rank_pattern"] == {n: r for n, r in zip(names, ranks.tolist(), strict=True) if r}
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert set(config["target_modules"]) == set(config["rank_pattern"])
    assert config["base_model_name_or_path"] == "some/base"
    assert config["task_type"] == "SEQ_CLS"
    assert config["peft_type"] == "LORA"


def test_given_ranks_do_not_change_the_active_ones(tmp_path: Any) -> None:
    from peft import PeftModel

    adapter = trained("bert")
    before = adapter.ranks
    export_lora(adapter, tmp_path, ranks=np.full(12, 2))
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()

    assert np.array_equal(adapter.ranks, before)
    with adapter.at_ranks(np.full(12, 2)):
        assert torch.allclose(logits(loaded), logits(adapter.model), rtol=1e-5, atol=1e-5)


def test_a_second_export_replaces_the_first_and_nothing_else(tmp_path: Any) -> None:
    from peft import PeftModel

    target = tmp_path / "lora"
    export_lora(trained("bert"), target)
    (target / "notes.txt").write_text("mine")
    second = trained("bert", seed=1)
    export_lora(second, target)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), target).eval()

    assert (target / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]
    assert torch.allclose(logits(loaded), logits(second.model), rtol=1e-5, atol=1e-5)


def test_nothing_to_export_is_said(tmp_path: Any) -> None:
    adapter = trained("bert")
    with pytest.raises(ConfigError, match=r"nothing to export.*only the head"):
        export_lora(adapter, tmp_path / "lora", ranks=np.zeros(12, dtype=int))
    assert not list(tmp_path.iterdir())
