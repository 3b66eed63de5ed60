"""LoRA directories read and written without torch mean what PEFT takes them to mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from helpers.models import randomise, tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import save_adapter
from rankcast.codec.formats.native import read_native
from rankcast.codec.formats.peft import read_peft, write_peft
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import CodecError
from rankcast.packaging.pack import pack, read_adapter

LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["query", "value", "dense"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": LORA,
    "rank-stabilised": LORA | {"use_rslora": True},
    "patterns": LORA
    | {
        "rank_pattern": {"layer.1.attention.self.query": 2, "layer.0.output.dense": 3},
        "alpha_pattern": {"layer.1.attention.self.query": 5, ".*value": 7},
    },
}


def saved(model: Any, folder: Path) -> Any:
    """Give every tensor of the adapter random values and save it."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """Read without mapping the file, which these tests write over."""
    return load(path.read_bytes())


def deltas(model: Any) -> dict[str, Any]:
    return {
        name: module.get_delta_weight("default").detach().numpy()
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_what_peft_saved(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", **CONFIGS[name])
    model = saved(get_peft_model(tiny_model("bert"), config), tmp_path)
    read, _ = read_peft(tmp_path)

    expected = deltas(model)
    assert {p.name for p in read.projections} == set(expected)
    for p, f in zip(read.projections, read.factors, strict=True):
        np.testing.assert_allclose(f.delta_weight(), expected[p.name], atol=1e-6)
        sizes = np.linalg.norm(f.left, axis=0)
        np.testing.assert_allclose(sizes, np.linalg.norm(f.right, axis=1), rtol=1e-4)
        assert (np.diff(sizes) <= 1e-6).all()
    head = model.base_model.model.classifier.modules_to_save["default"].weight
    np.testing.assert_array_equal(read.modules["classifier.weight"], head.detach().numpy())


def test_reads_adalora_with_its_rank_pattern(tmp_path: Path) -> None:
    from peft import AdaLoraConfig, PeftModel, get_peft_model

    config = AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=6,
        target_r=3,
        lora_alpha=5,
        total_step=100,
        target_modules=["query", "value"],
    )
    model = get_peft_model(tiny_model("bert"), config)
    names = [n for n, _ in model.named_parameters() if "lora_E" in n]
    keep = np.random.default_rng(0).random((len(names), 6)) < 0.6
    keep[0] = False  # a projection without any rank
    model.peft_config["default"].rank_pattern = {
        n.removeprefix("base_model.model.").replace(".default", ""): row.tolist()
        for n, row in zip(names, keep, strict=True)
    }
    saved(model, tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    read, _ = read_peft(tmp_path)

    expected = deltas(loaded)
    assert [f.rank for f in read.factors].count(0) == 1
    for p, f in zip(read.projections, read.factors, strict=True):
        np.testing.assert_allclose(f.delta_weight(), expected[p.name], atol=1e-6)


@pytest.mark.parametrize("uniform_rank", [False, True])
def test_peft_reads_what_was_written(uniform_rank: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4, alpha=6.0)
    randomise(adapter, 0, scale=0.2)
    adapter.model.eval()
    native, _ = read_native(save_adapter(adapter, tmp_path / "native"))
    if uniform_rank:
        modules = {}
        head = adapter.extra_modules()
    else:
        modules = native.modules
        head = {}
    ranks = [1, 0, 2, 3, 4, 4] * (len(native.factors) // 6)
    cut = tuple(
        Factors(f.left[:, :r], f.right[:r]) for f, r in zip(native.factors, ranks, strict=True)
    )
    tensors = AdapterTensors(native.projections, cut, modules, dict.fromkeys(modules, "full"))
    task_type = None if uniform_rank else "SEQ_CLS"
    write_peft(tensors, tmp_path / "lora", task_type=task_type, uniform_rank=uniform_rank)

    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "lora").eval()
    for name, module in head.items():
        own = loaded.base_model.model.get_submodule(name)
        getattr(own, "modules_to_save", {"default": own})["default"].load_state_dict(
            module.state_dict()
        )
    with torch.no_grad(), adapter.at_ranks(np.array(ranks)):
        expected = adapter.model(**tiny_batch()).logits
        assert torch.allclose(loaded(**tiny_batch()).logits, expected, atol=1e-5)
    if uniform_rank:
        config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        assert config["rank_pattern"] == {}
        assert config["r"] == config["lora_alpha"] == 4
        shapes = load_file(tmp_path / "lora" / "adapter_model.safetensors")
        assert {t.shape[0] for n, t in shapes.items() if "lora_A" in n} == {4}


def test_a_run_is_packed_with_every_component_and_its_head(tmp_path: Path) -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4, alpha=6.0)
    randomise(adapter, 0, scale=0.2)
    save_adapter(adapter, tmp_path / "adapter")
    source = read_adapter(tmp_path)
    for i, f in enumerate(source.tensors.factors):
        full = adapter.delta_weight(i, 4).numpy()
        np.testing.assert_allclose(f.delta_weight(), full, atol=1e-5)
    decoded = pack(source, quality="fine").tensors()
    for f, g in zip(source.tensors.factors, decoded.factors, strict=True):
        error = np.linalg.norm(f.delta_weight() - g.delta_weight())
        assert error < 0.3 * np.linalg.norm(f.delta_weight())
    assert set(decoded.modules) == {"classifier.weight", "classifier.bias"}


def test_a_checkpoint_of_a_trainer_is_read_at_the_ranks_that_it_was_saved_at(
    tmp_path: Path,
) -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=4, alpha=6.0)
    randomise(adapter)
    adapter.set_ranks([i % 5 for i in range(len(adapter.ranks))])
    adapter.model.save_pretrained(tmp_path)
    tensors, _ = read_peft(tmp_path)
    found = {p.name: f for p, f in zip(tensors.projections, tensors.factors, strict=True)}
    for i, projection in enumerate(adapter.layout.projections):
        expected = adapter.delta_weight(i).detach().numpy()
        update = found[projection.name].delta_weight()
        assert np.allclose(update, expected, atol=1e-5), projection.name
        assert np.linalg.matrix_rank(update) == i % 5


def test_bfloat16_is_read_by_its_bits(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = saved(get_peft_model(tiny_model("bert"), LoraConfig(**LORA)), tmp_path)
    del model
    path = tmp_path / "adapter_model.safetensors"
    halves = {name: t.bfloat16() for name, t in load_file(path).items()}
    save_file(halves, path)
    read, _ = read_peft(tmp_path)
    p = read.projections[0]
    a = halves[f"base_model.model.{p.name}.lora_A.weight"].float()
    b = halves[f"base_model.model.{p.name}.lora_B.weight"].float()
    np.testing.assert_allclose(read.factors[0].delta_weight(), (1.5 * b @ a).numpy(), atol=1e-5)


def test_sorting_keeps_the_product() -> None:
    rng = np.random.default_rng(0)
    for d_out, d_in, r in ((5, 40, 8), (40, 5, 8), (20, 30, 3), (4, 4, 0)):
        left = rng.normal(size=(d_out, r)).astype(np.float32)
        right = rng.normal(size=(r, d_in)).astype(np.float32)
        ordered = Factors(left, right).sorted()
        np.testing.assert_allclose(ordered.delta_weight(), left @ right, atol=1e-4)


def test_without_a_scale_there_is_no_lora(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    saved(get_peft_model(tiny_model("bert"), LoraConfig(**LORA)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": None}))
    with pytest.raises(CodecError, match="lacks lora_alpha"):
        read_peft(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.lora_magnitude_vector", "DoRA"),
        ("x.lora_diag", "a part of a LoRA"),
        ("bert.encoder.layer.0.attention.self.query.lora_B.bias", "lora_bias is not set"),
        ("bert.encoder.layer.0.attention.self.query.lora_E", "AdaLoRA"),
        ("bert.embeddings.token_adapter.trainable_tokens_delta", "trainable_token_indices"),
        ("bert.encoder.layer.0.attention.self.query.bias", "trained bias"),
        ("bert.pooler.dense.weight", "neither a LoRA nor"),
    ],
)
def test_tensors_that_the_configuration_does_not_announce_are_refused_by_name(
    name: str, words: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    saved(get_peft_model(tiny_model("bert"), LoraConfig(**LORA)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.model.{name}": torch.ones(2)}, path)
    with pytest.raises(CodecError, match=words) as refused:
        read_peft(tmp_path)
    assert name in str(refused.value)


def test_damaged_and_diverged_adapters_are_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    with pytest.raises(CodecError, match="no adapter in"):
        read_adapter(tmp_path)
    saved(get_peft_model(tiny_model("bert"), LoraConfig(**LORA)), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(CodecError, match="missing or damaged"):
        read_peft(tmp_path)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, path)
    with pytest.raises(CodecError, match="NaN"):
        read_peft(tmp_path)
    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(CodecError, match="lacks lora_"):
        read_peft(tmp_path)


def test_writing_refuses_what_the_reader_cannot_take(tmp_path: Path) -> None:
    adapter = ElasticAdapter.attach(tiny_model("bert"), r_max=2)
    randomise(adapter, 0)
    native, _ = read_native(save_adapter(adapter, tmp_path / "native"))
    with pytest.raises(CodecError, match="no modules saved in full"):
        write_peft(native, tmp_path / "x", uniform_rank=True)
    empty = tuple(Factors(f.left[:, :0], f.right[:0]) for f in native.factors)
    with pytest.raises(CodecError, match="No component"):
        write_peft(AdapterTensors(native.projections, empty, {}, {}), tmp_path / "x")
    difference = AdapterTensors(
        native.projections,
        native.factors,
        native.modules,
        dict.fromkeys(native.modules, "difference"),
    )
    with pytest.raises(CodecError, match="base model"):
        write_peft(difference, tmp_path / "x")
    assert not (tmp_path / "x").exists()
