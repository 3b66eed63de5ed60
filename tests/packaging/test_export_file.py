"""Every format of an exported file answers as the adapter that was packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import Call
from helpers.models import adapted, logits, tiny_model
from rankcast.adapters.export import save_adapter
from studies.baselines.canonical import balance

FINE = ["--budget-bits", "1e6"]


def packed(tmp_path: Path, call: Call, *, causal: bool, modules: Any = None) -> tuple[Any, Path]:
    """Save a base model, train an adapter on it at random, pack it finely."""
    architecture = "llama" if causal else "bert"
    tiny_model(architecture, causal=causal).save_pretrained(tmp_path / "base")
    adapter = adapted(architecture, causal=causal, modules=modules)
    balance(adapter)
    save_adapter(adapter, tmp_path / "adapter")
    file = tmp_path / "a.rcast"
    call.ok("pack", str(tmp_path / "adapter"), "-o", str(file), *FINE)
    return logits(adapter.model, causal=causal), file


@pytest.mark.parametrize("modules", [None, ["classifier", "bert.pooler"]])
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_classifier(form: str, modules: Any, tmp_path: Path, call: Call) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification as Auto

    expected, file = packed(tmp_path, call, causal=False, modules=modules)
    target = tmp_path / "out"
    args = ["export", str(file), "--format", form, "--output", str(target)]
    if form == "merged" or modules:
        assert "--base-model" in call.refused(*args)
        args += ["--base-model", str(tmp_path / "base")]
    out = call.ok(*args)
    assert "mean rank 4.00" in out
    if form == "merged":
        loaded = Auto.from_pretrained(target)
    else:
        loaded = PeftModel.from_pretrained(tiny_model("bert"), target)
    assert torch.allclose(logits(loaded.eval(), causal=False), expected, atol=2e-2)


@pytest.mark.parametrize("form", ["peft", "vllm"])
def test_a_language_model(form: str, tmp_path: Path, call: Call) -> None:
    from peft import PeftModel

    expected, file = packed(tmp_path, call, causal=True)
    target = tmp_path / "out"
    call.ok("export", str(file), "--format", form, "--output", str(target))
    loaded = PeftModel.from_pretrained(tiny_model("llama", causal=True), target).eval()
    assert torch.allclose(logits(loaded, causal=True), expected, atol=2e-2)


def test_gguf_needs_the_configuration_of_the_base(tmp_path: Path, call: Call) -> None:
    import gguf

    _, file = packed(tmp_path, call, causal=True)
    target = tmp_path / "a.gguf"
    args = ["export", str(file), "--format", "gguf", "--output", str(target)]
    assert "--base-model" in call.refused(*args)
    assert "config.json" in call.refused(*args, "--base-model", str(tmp_path))
    call.ok(*args, "--base-model", str(tmp_path / "base"))
    names = {t.name for t in gguf.GGUFReader(target).tensors}
    assert "blk.1.attn_q.weight.lora_b" in names
    assert len(names) == 2 * 2 * 7


def test_fewer_chunks_say_less(tmp_path: Path, call: Call) -> None:
    from peft import PeftModel

    expected, file = packed(tmp_path, call, causal=False)
    errors = []
    for n in ("1", "4", "8"):
        target = tmp_path / f"out-{n}"
        args = ["export", str(file), "--chunks", n, "--output", str(target)]
        out = call.ok(*args)
        assert f"{n} of" in out
        loaded = PeftModel.from_pretrained(tiny_model("bert"), target).eval()
        answer = logits(loaded, causal=False)
        errors.append(float(np.abs(answer - expected).max()))
    assert errors[0] > errors[-1]


def test_a_run_and_a_file_are_not_mixed(tmp_path: Path, call: Call) -> None:
    assert "or a run" in call.refused("export", "--output", str(tmp_path / "x"))
    assert "--snr-db" in call.refused(
        "export", "--run", str(tmp_path), "--output", str(tmp_path / "x")
    )
    (tmp_path / "bad.rcast").write_bytes(b"x" * 100)
    assert "magic" in call.refused(
        "export", str(tmp_path / "bad.rcast"), "--output", str(tmp_path / "x")
    )
