"""`rankcast.pack` on models in memory and beside base models, as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rankcast
from helpers.tensors import seeded
from helpers.tiny_models import answers, build, error_of
from rankcast.codec import header
from rankcast.codec.formats.gguf import read_base_config
from rankcast.errors import CodecError, ConfigError, ModelError
from rankcast.packaging import pack as packing
from rankcast.packaging.base_model import with_base
from rankcast.packaging.export import export

FINEST: dict[str, Any] = {"budget_bits": 1e12}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tuned(model: Any = None, **settings: Any) -> Any:
    """Return a Llama with a trained LoRA."""
    from peft import LoraConfig, get_peft_model

    usual = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model or build("Llama"), LoraConfig(**usual | settings))
    generator = seeded(1)
    for name, p in adapted.named_parameters():
        if "lora_" in name or (p.requires_grad and "modules_to_save" in name):
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    return adapted.eval()


def test_a_merged_adapter_is_not_taken_for_one_on_its_base() -> None:
    adapted = tuned()
    adapted.merge_adapter()
    with pytest.raises(ModelError, match="unmerge_adapter"):
        rankcast.pack(adapted)
    adapted.unmerge_adapter()
    assert rankcast.pack(adapted).header.projections


def test_several_active_adapters_are_not_one() -> None:
    from peft import LoraConfig

    adapted = tuned()
    adapted.add_adapter("second", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    adapted.set_adapter("second")
    assert {p.kind for p in rankcast.pack(adapted).header.projections} == {"v"}
    adapted.base_model.set_adapter(["default", "second"])
    with pytest.raises(ModelError, match="one active adapter"):
        rankcast.pack(adapted)


def test_a_vocabulary_that_has_grown_travels_or_is_refused(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    build("Llama").save_pretrained(tmp_path)
    size = read_base_config(tmp_path)["vocab_size"]

    def grown(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_pretrained(tmp_path)
            model.resize_token_embeddings(size + 3, mean_resizing=False)
        return model

    adapted = tuned(grown(0))
    with pytest.raises(CodecError, match="--embeddings"):
        rankcast.pack(adapted)
    container = rankcast.pack(adapted, embeddings=True, **FINEST)
    container.export("peft", tmp_path / "out")
    ids = torch.arange(size - 3, size + 3)[None]
    plain, expected = grown(1)(ids).logits, adapted(ids).logits
    found = PeftModel.from_pretrained(grown(1), tmp_path / "out")(ids).logits
    assert error_of(found, expected, plain) < 1e-3


def test_embeddings_in_full_are_saved_once() -> None:
    adapted = tuned(modules_to_save=["embed_tokens"])
    with pytest.raises(CodecError, match="--embeddings"):
        rankcast.pack(adapted)
    modules = rankcast.pack(adapted, embeddings=True).header.modules
    assert [m.name for m in modules if "embed" in m.name] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden_size": 64}, r"layers\.0\.self_attn\.q_proj maps 32 to 32.*\(32, 64\)"),
        ({"num_hidden_layers": 1}, r"layers\.1\.self_attn\.q_proj is not there"),
    ],
)
def test_a_base_model_that_does_not_fit_is_not_written_into_the_file(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    config = build("Llama").config
    for name, value in settings.items():
        setattr(config, name, value)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    adapted = tuned()
    with pytest.raises(ModelError, match=words):
        rankcast.pack(adapted, base_model=tmp_path)
    adapted.save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelError, match=words):
        with_base(rankcast.pack(tmp_path / "saved"), tmp_path)


def test_repeated_layers_have_no_merged_model(tmp_path: Path) -> None:
    build("Llama").save_pretrained(tmp_path / "base")
    tuned(layer_replication=[(0, 2), (1, 2)]).save_pretrained(tmp_path / "saved")
    container = rankcast.pack(tmp_path / "saved")
    with pytest.raises(CodecError, match="layer_replication, cannot be merged"):
        export(container, "merged", tmp_path / "out", base_model=tmp_path / "base")


def test_parameters_of_linear_layers_come_back(tmp_path: Path) -> None:
    from peft import PeftModel

    adapted = tuned(target_modules=["v_proj"], target_parameters=["q_proj.weight"])
    wanted = answers(adapted, "Llama")
    adapted.save_pretrained(tmp_path / "saved")
    rankcast.pack(tmp_path / "saved", **FINEST).export("peft", tmp_path / "out")
    found = answers(PeftModel.from_pretrained(build("Llama"), tmp_path / "out").eval(), "Llama")
    assert error_of(found, wanted, answers(build("Llama"), "Llama")) < 1e-3


def test_what_readers_would_refuse_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = tuned()
    container = rankcast.pack(adapted)
    monkeypatch.setattr(header, "LARGEST_JSON", 100)
    with pytest.raises(CodecError, match=r"2 tensors.*Adapt fewer modules"):
        container.to_bytes()
    monkeypatch.setattr(packing, "LARGEST_PARAMS", 100)
    with pytest.raises(CodecError, match=r"512 numbers, and readers accept 100"):
        rankcast.pack(adapted)


def test_what_is_no_adapter_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.rcast"
    file.touch()
    with pytest.raises(CodecError, match="it is a file"):
        rankcast.pack(file)
    with pytest.raises(CodecError, match="downloaded first"):
        rankcast.pack("somebody/some-lora")
    with pytest.raises(ConfigError, match="no number of bits"):
        rankcast.pack(tmp_path, budget_bits=float("nan"))
