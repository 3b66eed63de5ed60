"""rankcast.pack and rankcast.load, as a program calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rankcast
from helpers.codec import random_adapter
from helpers.commands import fresh_python
from helpers.models import randomise, tiny_model
from rankcast.codec.formats.peft import read_peft, write_peft
from rankcast.errors import CodecError, ConfigError, DataError, InfeasibleDeadlineError, ModelError
from rankcast.packaging.pack import link_budget_bits, read_adapter
from rankcast.packaging.texts import Texts


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    tensors = random_adapter(0, ((48, 32), (32, 96), (32, 32)), (8, 8, 8), size=0.3)
    return write_peft(tensors, tmp_path / "lora", base_model_name="tiny", task_type="CAUSAL_LM")


def test_what_is_saved_is_loaded(lora: Path, tmp_path: Path) -> None:
    container = rankcast.pack(lora)
    assert isinstance(container, rankcast.Container)
    file = container.save(tmp_path / "new" / "a.rcast")
    assert rankcast.load(file) == container
    assert 8 * file.stat().st_size == container.n_bits
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.rcast"]


def test_every_prefix_is_a_file_and_an_adapter(lora: Path, tmp_path: Path) -> None:
    container = rankcast.pack(str(lora), quality="fine")
    ladder = container.ladder
    assert [step.n_chunks for step in ladder] == list(range(1, len(container.chunks) + 1))
    errors, whole = [], read_adapter(lora).tensors
    for step, (_, tensors) in zip(ladder, container.decoded(), strict=True):
        prefix = container.prefix(step.n_chunks)
        assert 8 * step.n_bytes == prefix.n_bits
        assert (step.loss, step.accuracy) == (None, None)
        assert prefix.ladder == ladder[: step.n_chunks]
        assert prefix.is_whole == (step.n_chunks == len(ladder))
        for a, b, c in zip(prefix.tensors().factors, tensors.factors, whole.factors, strict=True):
            np.testing.assert_array_equal(a.delta_weight(), b.delta_weight())
            errors.append(np.linalg.norm(a.delta_weight() - c.delta_weight()))
    sums = np.reshape(errors, (len(ladder), -1)).sum(axis=1)
    assert sums[-1] < 0.2 * sums[0]
    short = container.prefix(2).save(tmp_path / "short.rcast")
    with pytest.raises(CodecError, match="prefix=True"):
        rankcast.load(short)
    assert rankcast.load(short, prefix=True) == container.prefix(2)


@pytest.mark.parametrize("n", [-1, 10**6])
def test_a_prefix_that_is_not_there_is_refused(n: int, lora: Path) -> None:
    with pytest.raises(CodecError, match="complete chunks"):
        rankcast.pack(lora).prefix(n)


def test_the_file_fits_its_budget(lora: Path) -> None:
    # AWGN at 10·log10(3) dB carries 2 bit/s/Hz: 20 kHz for a second are 40,000 bits.
    budget = link_budget_bits(10 * np.log10(3), 20_000, 1.0)
    assert budget == pytest.approx(40_000)
    assert rankcast.pack(lora, budget_bits=budget).n_bits <= budget
    with pytest.raises(InfeasibleDeadlineError, match="short by"):
        rankcast.pack(lora, budget_bits=100)


def test_contradictions_and_absences_are_named(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        rankcast.pack(lora, quality="good", budget_bits=1e6)
    with pytest.raises(ConfigError, match="needs a budget"):
        rankcast.pack(lora, planned=True)
    with pytest.raises(ConfigError, match="--texts"):
        rankcast.pack(lora, measure=True)
    with pytest.raises(CodecError, match="no adapter"):
        rankcast.pack(tmp_path)
    with pytest.raises(CodecError, match="cannot be read"):
        rankcast.load(tmp_path / "none.rcast")
    with pytest.raises(ModelError, match="no adapter on this BertFor"):
        rankcast.pack(tiny_model("bert"))  # pyright: ignore[reportArgumentType]


def test_exports_without_the_base_model(lora: Path, tmp_path: Path) -> None:
    container = rankcast.pack(lora)
    target = container.export("peft", tmp_path / "peft")
    tensors, config = read_peft(target)
    assert config["task_type"] == "CAUSAL_LM"
    for f, g in zip(tensors.factors, container.tensors().factors, strict=True):
        np.testing.assert_allclose(f.delta_weight(), g.delta_weight(), atol=1e-6)
    padded = read_peft(container.prefix(1).export("vllm", tmp_path / "vllm"))[1]
    assert (padded["rank_pattern"], padded["r"]) == ({}, padded["lora_alpha"])
    assert rankcast.load(container.export("rcast", tmp_path / "a.rcast")) == container
    with pytest.raises(ConfigError, match=r"rankcast\.packaging\.export"):
        container.export("merged", tmp_path / "merged")
    with pytest.raises(ConfigError, match="--base-model"):
        container.export("gguf", tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match="did you mean 'peft'"):
        container.export("pefft", tmp_path / "x")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["default", "second"])
def test_an_adapter_in_memory_is_packed_like_its_folder(name: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from rankcast.adapters.fingerprint import base_fingerprint

    base = tiny_model("bert")
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(base, config, adapter_name=name)
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    packed, expected = rankcast.pack(model), rankcast.pack(folder)
    assert packed.chunks == expected.chunks
    assert packed.header.base.fingerprint == base_fingerprint(tiny_model("bert"))


def test_an_elastic_adapter_is_packed_like_its_folder(tmp_path: Path) -> None:
    from rankcast.adapters.elastic import ElasticAdapter
    from rankcast.adapters.export import save_adapter

    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4)
    randomise(adapter, 0, scale=0.2)
    assert rankcast.pack(adapter) == rankcast.pack(save_adapter(adapter, tmp_path / "a"))


def test_a_folder_is_packed_without_torch(lora: Path) -> None:
    code = (
        "import sys, rankcast\n"
        f"container = rankcast.pack({str(lora)!r})\n"
        "print(len(container.ladder) > 0, sorted({'torch', 'peft', 'scipy'} & set(sys.modules)))"
    )
    done = fresh_python(code)
    assert done.stdout.strip() == "True []"


def test_texts_for_measuring_have_to_be_found(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        rankcast.pack(lora, texts=Texts(texts=str(tmp_path / "nowhere"), base_model="tiny"))
