from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import Call
from helpers.language_models import save_language_model
from helpers.models import tiny_model
from rankcast.errors import ConfigError, ModelError
from rankcast.learner.base_models import is_decoder
from rankcast.presets import FOR_ENCODERS, load_preset, preset_names

DECODERS = ("gemma3-270m", "llama-1b", "qwen3-0.6b")


@pytest.mark.parametrize("name", DECODERS)
def test_presets_of_decoders_adapt_all_linear_maps_as_language_models(name: str) -> None:
    config = load_preset(name)
    assert preset_names()[name]
    finetune = config.finetune
    assert (finetune.objective, finetune.kinds, finetune.r_max) == ("causal", None, 16)
    assert finetune.warmup_steps == pytest.approx(0.03 * config.total_steps, abs=1)
    assert config.data.label_column is None


def test_a_classifier_as_asked() -> None:
    changes = {"finetune.objective": "classification", "data.label_column": "label"}
    config = load_preset("llama-1b", changes)
    assert (config.finetune.objective, config.data.label_column) == ("classification", "label")


@pytest.mark.parametrize("pass_tokens", [0, -1])
def test_a_pass_has_tokens(pass_tokens: int) -> None:
    with pytest.raises(ConfigError, match="pass_tokens must be at least 1"):
        load_preset("llama-1b", {"finetune.pass_tokens": pass_tokens})


def test_which_models_are_decoders(tmp_path: Path) -> None:
    tiny_model("bert").save_pretrained(tmp_path / "bert")
    assert not is_decoder(str(tmp_path / "bert"))
    assert is_decoder(str(save_language_model(tmp_path / "opt", "opt")))
    assert not is_decoder("tiny")
    with pytest.raises(ModelError, match="Cannot load"):
        is_decoder(str(tmp_path / "none"))


@pytest.mark.parametrize("preset", FOR_ENCODERS)
def test_a_preset_for_encoders_says_so_to_a_decoder(
    preset: str, tmp_path: Path, call: Call
) -> None:
    model = save_language_model(tmp_path / "m")
    said = call.refused("train", preset, "--finetune.model", str(model), "--data.source",
                        str(tmp_path / "none.tsv"), "--output", str(tmp_path / "o"))  # fmt: skip
    assert f"the preset {preset} was made for an encoder" in said
    said = call.refused("train", "tiny", "--data.source", str(tmp_path / "none.tsv"),
                        "--output", str(tmp_path / "o"))  # fmt: skip
    assert "made for" not in said
