"""Every format of an exported file answers as the adapter that was packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankcast.adapters.canonical import balance
from rankcast.adapters.export import save_adapter
from rankcast.adapters.svd import ElasticAdapter
from rankcast.cli import main
from tiny_models import randomise, tiny_batch, tiny_model

FINE = ["--budget-bits", "1e6"]


def call(*args: str, capsys: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(args)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def logits(model: Any, *, causal: bool) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_batch(causal=causal)).logits


def packed(tmp_path: Path, capsys: Any, *, causal: bool, modules: Any = None) -> tuple[Any, Path]:
    """Save a base model, train an adapter on it at random, pack it finely."""
    architecture = "llama" if causal else "bert"
    base = tiny_model(architecture, causal=causal)
    base.save_pretrained(tmp_path / "base")
    adapter = ElasticAdapter.attach(base, r_max=4, modules_to_save=modules)
    randomise(adapter, 0, scale=0.2)
    for module in adapter.extra_modules().values():
        for p in module.parameters():
            p.data += 0.1
    adapter.model.eval()
    balance(adapter)
    save_adapter(adapter, tmp_path / "adapter")
    file = tmp_path / "a.rcast"
    status, _, err = call("pack", str(tmp_path / "adapter"), "-o", str(file), *FINE, capsys=capsys)
    assert status == 0, err
    return logits(adapter.model, causal=causal), file


@pytest.mark.parametrize("modules", [None, ["classifier", "bert.pooler"]])
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_classifier(form: str, modules: Any, tmp_path: Path, capsys: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification as Auto

    expected, file = packed(tmp_path, capsys, causal=False, modules=modules)
    target = tmp_path / "out"
    args = ["export", str(file), "--format", form, "--output", str(target)]
    if form == "merged" or modules:
        status, _, err = call(*args, capsys=capsys)
        assert (status, "--base-model" in err) == (2, True)
        args += ["--base-model", str(tmp_path / "base")]
    status, out, err = call(*args, capsys=capsys)
    assert status == 0, err
    assert "mean rank 4.00" in out
    if form == "merged":
        loaded = Auto.from_pretrained(target)
    else:
        loaded = PeftModel.from_pretrained(tiny_model("bert"), target)
    assert torch.allclose(logits(loaded.eval(), causal=False), expected, atol=2e-2)


@pytest.mark.parametrize("form", ["peft", "vllm"])
def test_a_language_model(form: str, tmp_path: Path, capsys: Any) -> None:
    from peft import PeftModel

    expected, file = packed(tmp_path, capsys, causal=True)
    target = tmp_path / "out"
    status, _, err = call(
        "export", str(file), "--format", form, "--output", str(target), capsys=capsys
    )
    assert status == 0, err
    loaded = PeftModel.from_pretrained(tiny_model("llama", causal=True), target).eval()
    assert torch.allclose(logits(loaded, causal=True), expected, atol=2e-2)


def test_gguf_needs_the_configuration_of_the_base(tmp_path: Path, capsys: Any) -> None:
    import gguf

    _, file = packed(tmp_path, capsys, causal=True)
    target = tmp_path / "a.gguf"
    args = ["export", str(file), "--format", "gguf", "--output", str(target)]
    status, _, err = call(*args, capsys=capsys)
    assert (status, "--base-model" in err) == (2, True)
    status, _, err = call(*args, "--base-model", str(tmp_path), capsys=capsys)
    assert (status, "config.json" in err) == (2, True)
    status, _, err = call(*args, "--base-model", str(tmp_path / "base"), capsys=capsys)
    assert status == 0, err
    names = {t.name for t in gguf.GGUFReader(target).tensors}
    assert "blk.1.attn_q.weight.lora_b" in names
    assert len(names) == 2 * 2 * 7


def test_fewer_chunks_say_less(tmp_path: Path, capsys: Any) -> None:
    from peft import PeftModel

    expected, file = packed(tmp_path, capsys, causal=False)
    errors = []
    for n in ("1", "4", "8"):
        target = tmp_path / f"out-{n}"
        args = ["export", str(file), "--chunks", n, "--output", str(target)]
        status, out, err = call(*args, capsys=capsys)
        assert status == 0, err
        assert f"{n} of" in out
        loaded = PeftModel.from_pretrained(tiny_model("bert"), target).eval()
        found = logits(loaded, causal=False)
        errors.append(float(np.abs(found - expected).max()))
    assert errors[0] > errors[-1]


def test_a_run_and_a_file_are_not_mixed(tmp_path: Path, capsys: Any) -> None:
    status, _, err = call("export", "--output", str(tmp_path / "x"), capsys=capsys)
    assert (status, "or a run" in err) == (2, True)
    status, _, err = call(
        "export", "--run", str(tmp_path), "--output", str(tmp_path / "x"), capsys=capsys
    )
    assert (status, "--snr-db" in err) == (2, True)
    (tmp_path / "bad.rcast").write_bytes(b"x" * 100)
    status, _, err = call(
        "export", str(tmp_path / "bad.rcast"), "--output", str(tmp_path / "x"), capsys=capsys
    )
    assert (status, "magic" in err) == (2, True)
