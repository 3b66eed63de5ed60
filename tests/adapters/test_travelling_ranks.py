"""Weights that PEFT or torch saves and loads bring the ranks that they were saved at."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from helpers.models import ARCHITECTURES, randomise, tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.errors import CheckpointError

N, R_MAX = 12, 4
RANKS = [3, 0, 4, 1, 2, 2, 1, 4, 0, 3, 1, 2]


def attach(architecture: str = "bert", seed: int = 0) -> ElasticAdapter:
    adapter = ElasticAdapter.attach(tiny_model(architecture), r_max=R_MAX, alpha=8.0)
    randomise(adapter, seed)
    adapter.model.eval()
    return adapter


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits


def saved(ranks: Any = RANKS) -> tuple[ElasticAdapter, dict[str, torch.Tensor]]:
    adapter = attach(seed=5)
    adapter.set_ranks(ranks)
    return adapter, get_peft_model_state_dict(adapter.model)


def by_load_adapter(source: ElasticAdapter, target: ElasticAdapter, folder: Path) -> None:
    source.model.save_pretrained(folder)
    target.model.load_adapter(folder, "default", is_trainable=True)


def by_bin(source: ElasticAdapter, target: ElasticAdapter, folder: Path) -> None:
    source.model.save_pretrained(folder, safe_serialization=False)
    assert (folder / "adapter_model.bin").is_file()
    target.model.load_adapter(folder, "default")


def by_peft_state(source: ElasticAdapter, target: ElasticAdapter, folder: Path) -> None:
    set_peft_model_state_dict(target.model, get_peft_model_state_dict(source.model))


def by_assignment(source: ElasticAdapter, target: ElasticAdapter, folder: Path) -> None:
    state = get_peft_model_state_dict(source.model)
    set_peft_model_state_dict(target.model, state, low_cpu_mem_usage=True)


def by_torch(source: ElasticAdapter, target: ElasticAdapter, folder: Path) -> None:
    torch.save(source.model.state_dict(), folder / "weights.pt")
    target.model.load_state_dict(torch.load(folder / "weights.pt"), strict=True)


def by_the_base_model(source: ElasticAdapter, target: ElasticAdapter, folder: Path) -> None:
    state = source.model.get_base_model().state_dict()
    target.model.get_base_model().load_state_dict(state, strict=True)


WAYS = (by_load_adapter, by_bin, by_peft_state, by_assignment, by_torch, by_the_base_model)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_loading_restores_ranks_and_logits(way: Any, tmp_path: Path) -> None:
    source, _ = saved()
    target = attach()
    way(source, target, tmp_path)
    assert target.ranks.tolist() == RANKS
    assert target.loaded_ranks is not None
    assert target.loaded_ranks.tolist() == RANKS
    target.model.eval()
    assert torch.equal(logits(target.model), logits(source.model))
    target.set_ranks([R_MAX] * N)
    assert not torch.allclose(logits(target.model), logits(source.model), atol=1e-3)
    assert target.loaded_ranks.tolist() == RANKS  # what came stays on record


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str, tmp_path: Path) -> None:
    source, target = attach(architecture, seed=5), attach(architecture)
    ranks = np.random.default_rng(1).integers(0, R_MAX + 1, source.layout.n_projections)
    source.set_ranks(ranks)
    by_load_adapter(source, target, tmp_path)
    assert target.ranks.tolist() == ranks.tolist()


@pytest.fixture(scope="module")
def pair() -> tuple[ElasticAdapter, ElasticAdapter]:
    return attach(seed=5), attach()


@given(ranks=st.lists(st.integers(0, R_MAX), min_size=N, max_size=N))
def test_any_ranks_come_back(pair: tuple[ElasticAdapter, ElasticAdapter], ranks: list[int]) -> None:
    source, target = pair
    source.set_ranks(ranks)
    state = get_peft_model_state_dict(source.model)
    names = [p.name for p in source.layout.projections]
    assert [float(state[f"base_model.model.{name}.lora_rank"]) for name in names] == ranks
    set_peft_model_state_dict(target.model, state)
    assert target.ranks.tolist() == ranks


def test_a_copy_has_ranks_of_its_own() -> None:
    source, state = saved()
    twin = copy.deepcopy(source)
    twin.set_ranks([R_MAX] * N)
    assert source.ranks.tolist() == RANKS
    set_peft_model_state_dict(twin.model, state)
    assert twin.ranks.tolist() == RANKS
    twin.set_ranks([1] * N)
    set_peft_model_state_dict(source.model, get_peft_model_state_dict(twin.model))
    assert source.ranks.tolist() == [1] * N
    assert twin.loaded_ranks is not None
    assert twin.loaded_ranks.tolist() == RANKS


@pytest.mark.parametrize("lacking", [1, N])
def test_weights_without_ranks_are_reported_at_every_load(
    lacking: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = saved()
    target = attach()
    set_peft_model_state_dict(target.model, state)
    assert target.loaded_ranks is not None
    for name in [name for name in state if name.endswith(".lora_rank")][:lacking]:
        del state[name]
    target.set_ranks([1] * N)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="rankcast"):
            set_peft_model_state_dict(target.model, state)
        assert [r.name for r in caplog.records] == ["rankcast.adapters"]
        assert f"lack {lacking} ranks" in caplog.text
        assert "ElasticAdapter.set_ranks" in caplog.text
        assert target.ranks.tolist()[:1] == [1]
        assert target.ranks.tolist()[lacking:] == RANKS[lacking:]
        assert target.loaded_ranks is None


def test_a_load_of_other_weights_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    target = attach()
    target.set_ranks(RANKS)
    state = target.model.state_dict()
    without = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    assert len(without) < len(state)
    with caplog.at_level(logging.WARNING, logger="rankcast"):
        target.model.load_state_dict(without, strict=False)
        target.model.load_state_dict(state, strict=True)
    assert not caplog.records
    assert target.ranks.tolist() == RANKS


@pytest.mark.parametrize(
    "damage", [[-1.0], [R_MAX + 1.0], [1.5], [float("nan")], [1.0, 2.0], [], [[2.0], [2.0]]]
)
def test_a_damaged_rank_is_refused(damage: Any, tmp_path: Path) -> None:
    source, state = saved()
    (name, *_) = (name for name in state if name.endswith(".lora_rank"))
    source.model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.tensor(damage)}, file)
    with pytest.raises(CheckpointError, match=r"lora_rank.default holds .* no rank from 0 to 4"):
        attach().model.load_adapter(tmp_path, "default")


def test_stock_peft_reads_the_file_and_takes_every_component(tmp_path: Path) -> None:
    source, _ = saved()
    source.model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(tiny_model("bert"), tmp_path).eval()
    with source.at_ranks([R_MAX] * N):
        torch.testing.assert_close(
            logits(stock.base_model.model), logits(source.model), rtol=1e-4, atol=1e-4
        )


def test_nothing_is_added_to_what_is_trained() -> None:
    adapter = attach()
    assert not [n for n, _ in adapter.model.named_parameters() if "lora_rank" in n]
    assert not [n for n, _ in adapter.model.named_buffers() if "lora_rank" in n]
    assert not [name for name in adapter.state_dict() if "rank" in name]
