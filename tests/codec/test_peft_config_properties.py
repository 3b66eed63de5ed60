"""Each field of a LoRA's configuration is carried, makes the general form, or is refused."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.peft_folders import PLAIN, QUERY, VALUE, save_folder, two_projections
from rankcast.codec.formats import peft_config
from rankcast.codec.formats.peft import CONFIG, read_peft, write_peft
from rankcast.errors import CodecError

EFFECT: dict[str, tuple[str, tuple[Any, ...]]] = {
    # training, initialisation, or the program that wrote it: nothing changes
    "task_type": ("none", ("CAUSAL_LM", None)),
    "base_model_name_or_path": ("none", ("org/model", None)),
    "init_lora_weights": ("none", (True, False, "gaussian", "orthogonal", "eva", "mica")),
    "lora_dropout": ("none", (0.1,)),
    "inference_mode": ("none", (False, True)),
    "fan_in_fan_out": ("none", (True,)),
    "exclude_modules": ("none", (["k_proj"], "k.*")),
    "layers_to_transform": ("none", ([0],)),
    "layers_pattern": ("none", ("layers",)),
    "auto_mapping": ("none", ({"base_model_class": "X"},)),
    "peft_version": ("none", ("9.9",)),
    "megatron_core": ("none", ("megatron.core",)),
    "qalora_group_size": ("none", (32,)),
    "loftq_config": ("none", ({"loftq_bits": 4},)),
    "eva_config": ("none", ({"rho": 2.0},)),
    "corda_config": ("none", ({"cache_file": "/home/me/x"},)),
    "lora_ga_config": ("none", ({"direction": "ArBr"},)),
    "runtime_config": ("none", ({"ephemeral_gpu_offload": True},)),
    "merge_weights": ("none", (True,)),
    "future_switch": ("none", (None, False, "", [], {})),
    # what the factors are multiplied by
    "lora_alpha": ("scale", (1, 12, 3.5)),
    "use_rslora": ("scale", (True,)),
    "alpha_pattern": ("scale", ({"q_proj": 5}, {"layers.0.self_attn.v_proj": 1, ".*q_proj": 8})),
    "rank_pattern": ("scale", ({}, None, {"q_proj": 2})),
    # written again
    "revision": ("written", ("main",)),
    "target_parameters": ("written", (["experts.down_proj"],)),
    "trainable_token_indices": ("written", ([1, 2], {"embed_tokens": [3]})),
    # more than factors
    "use_dora": ("general", (True,)),
    "bias": ("general", ("all", "lora_only")),
    "alora_invocation_tokens": ("general", ([1, 2],)),
    "use_qalora": ("general", (True,)),
    "monteclora_config": ("general", ({"num_samples": 2},)),
    "layer_replication": ("general", ([[0, 2]],)),
    "use_bdlora": ("general", ({"nblocks": 2},)),
    "arrow_config": ("general", ({"top_k": 1},)),
    "kasa_config": ("general", ({"beta": 0.1},)),
    "velora_config": ("general", ({"scale": 1.0},)),
    "megatron_config": ("general", ({"x": 1},)),
    "ensure_weight_tying": ("general", (True,)),
    # not to be understood
    "later_method": ("refused", (True, 1, "x", {"a": None})),
    "r": ("refused", (3, 0, "2", 2.5, True)),
    "modules_to_save": ("refused", ("classifier", [1])),
    "lora_bias": ("refused", ("yes", 1)),
}
CHANGING = ("pissa", "PiSSA", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "newest")


def settings() -> st.SearchStrategy[dict[str, Any]]:
    """Return a few fields with values that they do not have by default."""
    field = st.sampled_from(sorted(EFFECT))
    pair = field.flatmap(lambda n: st.tuples(st.just(n), st.sampled_from(EFFECT[n][1])))
    return st.lists(pair, max_size=5, unique_by=lambda p: p[0]).map(dict)


def expected_scale(config: dict[str, Any], module: str) -> float:
    """Return alpha over rank as PEFT's documentation has it, for the patterns above."""
    alpha = config["lora_alpha"]
    for key, value in (config.get("alpha_pattern") or {}).items():
        if module.endswith(key.removeprefix(".*")):
            alpha = value
            break
    return alpha / (2**0.5 if config.get("use_rslora") else 2)


@given(settings())
def test_no_field_is_dropped_silently(chosen: dict[str, Any]) -> None:
    config = PLAIN | chosen
    kinds = {name: EFFECT[name][0] for name in chosen}
    refused = [name for name, kind in kinds.items() if kind == "refused"]
    general = [name for name, kind in kinds.items() if kind == "general"]
    if config.get("target_parameters") and (
        config.get("rank_pattern") or config.get("alpha_pattern")
    ):
        general.append("target_parameters")
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_folder(Path(scratch) / "in", config, two_projections())
        if refused:
            with pytest.raises(CodecError) as stopped:
                read_peft(folder)
            assert any(name in str(stopped.value) for name in refused)
            return
        tensors, _ = read_peft(folder)
        written = json.loads((write_peft(tensors, Path(scratch) / "out") / CONFIG).read_text())
    if general:
        assert tensors.is_general
        assert set(tensors.modules) == set(two_projections())
        ignored = ("corda_config", "runtime_config")
        assert {k: v for k, v in written.items() if k in config} == {
            k: v for k, v in config.items() if k not in ignored
        }
        return
    for p, f in zip(tensors.projections, tensors.factors, strict=True):
        parts = {k[-8]: v for k, v in two_projections().items() if p.name in k}
        expected = expected_scale(config, p.name) * parts["B"] @ parts["A"]
        np.testing.assert_allclose(f.delta_weight(), expected, rtol=1e-5, atol=1e-6)
    for name, kind in kinds.items():
        if kind == "written":
            assert written[name] == chosen[name]
    assert written["r"] == written["lora_alpha"] == 2


@pytest.mark.parametrize("how", CHANGING)
def test_an_initialisation_that_changes_the_base_model_is_refused(how: str, tmp_path: Path) -> None:
    folder = save_folder(tmp_path, PLAIN | {"init_lora_weights": how}, two_projections())
    with pytest.raises(CodecError, match=f"init_lora_weights: {how}"):
        read_peft(folder)
    adaptive = {"peft_type": "ADALORA", "init_r": 2, "init_lora_weights": how}
    values = {f"base_model.model.{m}.lora_E": np.ones((2, 1), np.float32) for m in (QUERY, VALUE)}
    save_folder(tmp_path, PLAIN | adaptive, two_projections() | values)
    assert not read_peft(tmp_path)[0].is_general  # AdaLoRA takes the field for a switch


def test_every_field_of_peft_is_known() -> None:
    """A field that a later PEFT has is to be understood before it is listed."""
    import peft

    known = peft_config._UNDERSTOOD | peft_config._WITHOUT_EFFECT | set(peft_config._GENERAL)
    for cls in (peft.LoraConfig, peft.AdaLoraConfig):
        assert {f.name for f in dataclasses.fields(cls)} <= known
    fields = {f.name for f in dataclasses.fields(peft.LoraConfig)} - {"peft_type", "target_modules"}
    assert fields <= set(EFFECT)


def test_the_defaults_of_peft_ask_for_nothing() -> None:
    import peft

    defaults = peft.LoraConfig(task_type="CAUSAL_LM").to_dict()
    assert peft_config.general_reason(defaults | {"peft_type": "LORA"}, {}) is None
    assert not peft_config.changes_base(defaults | {"peft_type": "LORA"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "XLORA", "adapters": {"0": "/home/me/a"}}, "adapters"),
        (
            {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "x.bin"},
            "prompt_tuning_init_state_dict_path",
        ),
        ({"peft_type": ""}, "no kind of adapter"),
        ({"peft_type": 3}, "no kind of adapter"),
        ({"r": 2}, "no readable description"),
        ({"peft_type": "LORA", "r": 2, "lora_alpha": float("nan")}, "no readable description"),
        (PLAIN | {"rank_pattern": {"(": 2}}, r"pattern '\('"),
        (PLAIN | {"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
    ],
)
def test_what_needs_other_files_or_is_nonsense_is_refused(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = save_folder(tmp_path, config, two_projections())
    with pytest.raises(CodecError, match=words):
        read_peft(folder)


def test_a_method_of_tomorrow_is_carried_as_it_is(tmp_path: Path) -> None:
    config = {"peft_type": "TOMORROW", "knob": {"a": [1, 2]}, "base_model_name_or_path": "org/m"}
    rng = np.random.default_rng(0)
    values = {
        "_orig_mod.base_model.model.x.tomorrow_w": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "module.base_model.model.x.tomorrow_ids": np.arange(7),
    }
    tensors, _ = read_peft(save_folder(tmp_path / "in", config, values))
    assert tensors.is_general
    assert tensors.config == config
    assert set(tensors.modules) == {f"base_model.model.x.tomorrow_{n}" for n in ("w", "ids")}
    assert tensors.modules["base_model.model.x.tomorrow_ids"].dtype == np.int64
    again, written = read_peft(write_peft(tensors, tmp_path / "out", base_model_name="org/other"))
    assert written == config | {"base_model_name_or_path": "org/other"}
    for name, array in tensors.modules.items():
        np.testing.assert_array_equal(again.modules[name], array)
    with pytest.raises(CodecError, match=r"general form \(TOMORROW\)"):
        write_peft(tensors, tmp_path / "vllm", uniform_rank=True)
