"""Adapters of PEFT are published for a base model that is named by its folder."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import transformers as tf

from helpers.base_models import tiny_base
from helpers.commands import Call
from rankcast.adapters.fingerprint import base_fingerprint


@pytest.fixture
def made(tmp_path: Path, call: Call) -> list[str]:
    """Make keys, a base model and a LoRA of PEFT for it; return the words for keys and store."""
    where = ["--keys", str(tmp_path / "keys"), "--store", str(tmp_path / "store")]
    call.ok("keys", "init", *where)
    model = tiny_base(tf.LlamaForCausalLM, "llama")
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    return where


def test_a_file_without_a_fingerprint_gets_one(made: list[str], tmp_path: Path, call: Call) -> None:
    file, base = str(tmp_path / "a.rcast"), str(tmp_path / "base")
    call.ok("pack", str(tmp_path / "lora"), "-o", file)
    assert json.loads(call.ok("info", file, "--json"))["base_fingerprint"] is None
    err = call.refused("publish", file, "--name", "a", *made)
    assert "rankcast pack --base-model DIR" in err
    assert "rankcast publish --base-model DIR" in err
    expected = base_fingerprint(tf.LlamaForCausalLM.from_pretrained(base))
    out = call.ok("publish", file, "--name", "a", *made, "--base-model", base, "--json")
    assert json.loads(out)["base_fingerprint"] == expected
    out = call.ok("publish", str(tmp_path / "lora"), "--name", "b", *made, "--base-model", base)
    assert "b version 1 is active" in out


def test_packed_with_the_base_model_it_needs_no_more(
    made: list[str], tmp_path: Path, call: Call
) -> None:
    file, base = str(tmp_path / "a.rcast"), str(tmp_path / "base")
    call.ok("pack", str(tmp_path / "lora"), "-o", file, "--base-model", base)
    out = json.loads(call.ok("publish", file, "--name", "a", *made, "--json"))
    assert (
        out["base_fingerprint"] == json.loads(call.ok("info", file, "--json"))["base_fingerprint"]
    )
    again = call.ok("publish", file, "--name", "a", *made, "--base-model", base, "--json")
    assert json.loads(again)["version"] == 1


def test_another_model_than_the_file_names_is_refused(
    made: list[str], tmp_path: Path, call: Call
) -> None:
    file, other = str(tmp_path / "a.rcast"), tmp_path / "other"
    call.ok("pack", str(tmp_path / "lora"), "-o", file, "--base-model", str(tmp_path / "base"))
    tiny_base(tf.LlamaForCausalLM, "llama", seed=1).save_pretrained(other)
    err = call.refused("publish", file, "--name", "a", *made, "--base-model", str(other))
    assert "The adapter was made for" in err
    err = call.refused("publish", file, "--name", "a", *made, "--base-model", str(tmp_path / "no"))
    assert "no base model" in err
    err = call.refused(
        "publish", "run", "--name", "a", *made, "--base-model", str(other), "--planner", "solver"
    )
    assert "--planner and --base-model" in err
