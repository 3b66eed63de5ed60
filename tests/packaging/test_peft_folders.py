"""`rankcast pack` on folders as PEFT leaves them: initialisations, layouts, words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from helpers.commands import Call
from helpers.tensors import seeded
from helpers.tiny_models import answers, build, error_of
from rankcast.codec.formats.peft import CONFIG, WEIGHTS
from rankcast.errors import CodecError, ConfigError, ModelError
from rankcast.packaging.pack import pack

EXACT = 1e-3
COPIES, EMBEDDINGS = {"save_embedding_layers": True}, {"embeddings": True}
FINEST: dict[str, Any] = {"budget_bits": 1e12}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def adapted(model: str, folder: Path, **settings: Any) -> torch.Tensor:
    """Save an adapter before (`initial`) and after training (`saved`); return what it answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8} | settings)
    tuned = get_peft_model(build(model), config)
    tuned.save_pretrained(folder / "initial", save_embedding_layers=False)
    generator = seeded(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    tuned.eval().save_pretrained(folder / "saved", save_embedding_layers=False)
    return answers(tuned, model)


def error_in_peft(model: str, folder: Path, wanted: torch.Tensor) -> float:
    """Return how far what stock PEFT loads is from what was wanted."""
    from peft import PeftModel

    found = answers(PeftModel.from_pretrained(build(model), folder).eval(), model)
    return error_of(found, wanted, answers(build(model), model))


@pytest.mark.parametrize("by", ["base_model", "initial_adapter"])
@pytest.mark.parametrize(
    ("model", "targets", "settings"),
    [
        ("Llama", ["q_proj", "v_proj"], {"init_lora_weights": "pissa"}),
        ("Llama", ["q_proj", "v_proj"], {"init_lora_weights": "olora", "use_rslora": True}),
        ("GPT-2", ["c_attn"], {"init_lora_weights": "pissa", "rank_pattern": {"h.0.*": 2}}),
        ("GPT-2", ["attn.c_proj"], {"init_lora_weights": "olora"}),  # square, stored input-first
    ],
)
def test_an_adapter_that_changed_its_base_becomes_one_for_the_unchanged_base(
    model: str, targets: list[str], settings: dict[str, Any], by: str, tmp_path: Path
) -> None:
    wanted = adapted(model, tmp_path, target_modules=targets, **settings)
    build(model).save_pretrained(tmp_path / "base")
    source = tmp_path / ("base" if by == "base_model" else "initial")
    container = pack(tmp_path / "saved", **FINEST, **{by: source})
    assert max(container.header.ranks) == 8  # what was learned, less what it began with
    assert (container.header.base.fingerprint is not None) == (by == "base_model")
    container.export("peft", tmp_path / "out")
    assert error_in_peft(model, tmp_path / "out", wanted) < EXACT


def test_a_random_decomposition_needs_the_initial_adapter(tmp_path: Path) -> None:
    how = {"init_lora_weights": "pissa_niter_4", "target_modules": ["q_proj"]}
    wanted = adapted("Llama", tmp_path, **how)
    build("Llama").save_pretrained(tmp_path / "base")
    with pytest.raises(CodecError, match=r"pissa_niter_4.*--initial-adapter"):
        pack(tmp_path / "saved", base_model=tmp_path / "base")
    container = pack(tmp_path / "saved", **FINEST, initial_adapter=tmp_path / "initial")
    container.export("peft", tmp_path / "out")
    # The trained model is right; PEFT itself, which draws another decomposition, is not quite.
    assert error_in_peft("Llama", tmp_path / "out", wanted) < EXACT


def test_wrong_helpers_are_refused(tmp_path: Path) -> None:
    adapted("Llama", tmp_path, init_lora_weights="pissa", target_modules=["q_proj"])
    build("OPT").save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"no weight of model\.layers\.0"):
        pack(tmp_path / "saved", base_model=tmp_path / "other")
    with pytest.raises(ModelError, match="holds no base model"):
        pack(tmp_path / "saved", base_model=tmp_path)
    adapted("Llama", tmp_path / "k", init_lora_weights="pissa", target_modules=["k_proj"])
    with pytest.raises(CodecError, match=r"lacks lora_A of model\.layers\.0"):
        pack(tmp_path / "saved", initial_adapter=tmp_path / "k" / "initial")
    adapted("Llama", tmp_path / "plain", target_modules=["q_proj"])
    with pytest.raises(CodecError, match="--initial-adapter is for"):
        pack(tmp_path / "plain" / "saved", initial_adapter=tmp_path / "initial")
    adapted("Llama", tmp_path / "both", init_lora_weights="pissa", target_modules=["q_proj"])
    config = tmp_path / "both" / "saved" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bias": "all"}))
    with pytest.raises(CodecError, match=r"pissa.*bias"):
        pack(tmp_path / "both" / "saved", initial_adapter=tmp_path / "both" / "initial")


def test_experts_that_were_modules_load_as_they_did(tmp_path: Path) -> None:
    """transformers joined Mixtral's experts; PEFT joins LoRAs of before, by their old names."""
    from peft import LoraConfig, PeftModel

    model = build("Mixtral")
    config, generator, tensors = model.config, seeded(0), {}
    hidden, inner = config.hidden_size, config.intermediate_size
    widths = {"w1": (inner, hidden), "w3": (inner, hidden), "w2": (hidden, inner)}
    for layer in range(config.num_hidden_layers):
        for expert in range(config.num_local_experts):
            for kind, (d_out, d_in) in widths.items():
                name = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}"
                for part, shape in {"A": (2, d_in), "B": (d_out, 2)}.items():
                    values = 0.3 * torch.randn(shape, generator=generator)
                    tensors[f"{name}.{kind}.lora_{part}.weight"] = values
    targets = ["w1", "w2", "w3"]
    LoraConfig(r=2, lora_alpha=4, target_modules=targets).save_pretrained(str(tmp_path / "in"))
    save_file(tensors, tmp_path / "in" / WEIGHTS)
    wanted = answers(PeftModel.from_pretrained(model, tmp_path / "in").eval(), "Mixtral")
    container = pack(tmp_path / "in", **FINEST)
    container.export("peft", tmp_path / "out")
    assert error_in_peft("Mixtral", tmp_path / "out", wanted) < 3 * EXACT  # 24 factors a layer
    container.prefix(1).export("peft", tmp_path / "first")
    PeftModel.from_pretrained(build("Mixtral"), tmp_path / "first")  # every expert is there


def test_models_that_see_are_read_in_their_older_layout(tmp_path: Path) -> None:
    from peft import PeftModel

    adapted("LLaVA", tmp_path, target_modules=["q_proj", "v_proj"])
    path = tmp_path / "saved" / WEIGHTS
    new, old = "model.language_model.", "language_model.model."
    save_file({n.replace(new, old, 1): t for n, t in load(path.read_bytes()).items()}, path)
    model = PeftModel.from_pretrained(build("LLaVA"), tmp_path / "saved").eval()
    wanted = answers(model, "LLaVA")  # PEFT knows the older names
    pack(tmp_path / "saved", **FINEST).export("peft", tmp_path / "out")
    assert error_in_peft("LLaVA", tmp_path / "out", wanted) < EXACT


def test_general_form_is_said_and_shown(tmp_path: Path, call: Call) -> None:
    wanted = adapted("Llama", tmp_path, target_modules=["q_proj"], use_dora=True)
    file, saved = str(tmp_path / "a.rcast"), str(tmp_path / "saved")
    said = call.ok("pack", saved, "-o", file, "--budget-bits", "1e9")
    assert "packed in general form because use_dora: true: 6 tensors" in said
    assert "times smaller than adapter_model.safetensors (f32)" in said
    assert "nan" not in said.lower()
    plain = json.loads(call.ok("pack", saved, "-o", file, "--budget-bits", "1e9", "--json"))
    assert plain["form"] == "general"
    assert plain["general_because"] == "use_dora: true"
    assert plain["mean_rank"] is None
    assert plain["bits_given"] == 8 * (tmp_path / "saved" / WEIGHTS).stat().st_size
    assert plain["times_smaller"] == plain["bits_in_float32"] / plain["bits"]
    assert "LORA in general form because use_dora: true: 6 tensors" in " ".join(
        call.ok("info", file).split()
    )
    assert json.loads(call.ok("info", file, "--json"))["form"] == "general"
    said = call.ok("unpack", file, "-o", str(tmp_path / "out"))
    assert "general form (LORA), 6 tensors" in said
    assert error_in_peft("Llama", tmp_path / "out", wanted) < EXACT
    assert "general form" in call.refused("export", file, "--format", "vllm", "-o", saved + "x")
    for words in (["pack", saved, "-o", file, "--measure"], ["qat", saved, "-o", file]):
        refused = call.refused(*words, "--texts", "texts.tsv")
        assert "Only plain low-rank adapters can be measured or trained" in refused


def test_the_size_is_said_beside_the_file_that_was_given(tmp_path: Path, call: Call) -> None:
    adapted("Llama", tmp_path, target_modules=["q_proj"])
    path = tmp_path / "saved" / WEIGHTS
    save_file({n: t.bfloat16() for n, t in load(path.read_bytes()).items()}, path)
    file = tmp_path / "a.rcast"
    said = call.ok("pack", str(tmp_path / "saved"), "-o", str(file))
    ratio = path.stat().st_size / file.stat().st_size
    assert f"{ratio:.1f} times smaller than adapter_model.safetensors (bf16)" in said


def test_a_folder_without_an_adapter_says_where_one_is(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        adapted("Llama", tmp_path / name, target_modules=["q_proj"])
        (tmp_path / name / "saved").rename(tmp_path / "x")
        (tmp_path / name / "initial" / WEIGHTS).unlink()
        (tmp_path / name / "initial" / CONFIG).rename(tmp_path / name / CONFIG)
        (tmp_path / "x").rename(tmp_path / f"of-{name}")
    with pytest.raises(CodecError, match="checkpoint-1000, checkpoint-500, of-checkpoint"):
        pack(tmp_path)
    (tmp_path / "of-checkpoint-500" / CONFIG).unlink()
    with pytest.raises(CodecError, match=r"adapter_config.json, which PEFT writes beside"):
        pack(tmp_path / "of-checkpoint-500")
    with pytest.raises(CodecError, match="neither a run of rankcast"):
        pack(tmp_path / "checkpoint-500" / "initial")


def test_the_fingerprint_of_the_base_is_written_and_checked(tmp_path: Path) -> None:
    from rankcast.adapters.fingerprint import base_fingerprint

    adapted("Llama", tmp_path, target_modules=["q_proj"])
    build("Llama").save_pretrained(tmp_path / "base")
    build("Llama", seed=1).save_pretrained(tmp_path / "other")
    source = tmp_path / "saved"
    container = pack(source, base_model=tmp_path / "base")
    assert container.header.base.fingerprint == base_fingerprint(build("Llama"))
    assert container.header.base.name == "base"
    assert pack(source).header.base.fingerprint is None
    other = pack(source, base_model=tmp_path / "other")
    assert other.header.base.fingerprint == base_fingerprint(build("Llama", seed=1))
    with pytest.raises(ConfigError, match="--texts"):
        pack(source, base_model=tmp_path / "base", measure=True)


def test_a_model_in_memory_whose_weights_may_have_changed_has_no_fingerprint(
    tmp_path: Path,
) -> None:
    from peft import IA3Config, LoraConfig, get_peft_model

    from rankcast.adapters.fingerprint import base_fingerprint

    build("Llama").save_pretrained(tmp_path / "base")
    expected = base_fingerprint(build("Llama"))
    adapters = {
        None: IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        expected: LoraConfig(target_modules=["k_proj"], init_lora_weights=False),
    }
    for fingerprint, config in adapters.items():
        container = pack(get_peft_model(build("Llama"), config))
        assert container.header.base.fingerprint == fingerprint
    changed = LoraConfig(target_modules=["k_proj"], init_lora_weights="pissa")
    container = pack(get_peft_model(build("Llama"), changed), base_model=tmp_path / "base")
    assert container.header.base.fingerprint == expected


@pytest.mark.parametrize(
    ("settings", "save", "options"),
    [
        ({"target_modules": r".*\.(q|v)_proj"}, {}, {}),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 1, "v": 24}}, {}, {}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, {}, {}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["model.layers.1.mlp"]}, {}, {}),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {}, EMBEDDINGS),
        ({"target_modules": ["q_proj", "lm_head"]}, COPIES, {"base_model": True}),
        ({"target_modules": ["q_proj"]}, COPIES, EMBEDDINGS),
    ],
)  # fmt: skip
def test_what_peft_makes_of_it_is_what_it_made_of_the_original(
    settings: dict[str, Any], save: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    tuned = get_peft_model(build("Llama"), config)
    generator = seeded(1)
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    tuned.eval().save_pretrained(tmp_path / "saved", **{"save_embedding_layers": False} | save)
    build("Llama").save_pretrained(tmp_path / "base")
    given = {k: tmp_path / "base" if k == "base_model" else v for k, v in options.items()}
    pack(tmp_path / "saved", **FINEST, **given).export("peft", tmp_path / "out")
    assert error_in_peft("Llama", tmp_path / "out", answers(tuned, "Llama")) < EXACT
