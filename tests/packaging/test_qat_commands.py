"""qat, and pack with measurements: for a run, and for an adapter that PEFT trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import Call
from helpers.models import keyword_splits
from rankcast.adapters.arrays import install
from rankcast.adapters.export import load_adapter
from rankcast.adapters.fingerprint import answers_alike, base_fingerprint
from rankcast.cli.main import main
from rankcast.codec.container import read_container
from rankcast.codec.planner import pack_planned
from rankcast.codec.quantiser import step_of
from rankcast.config.codec import CodecConfig
from rankcast.errors import CheckpointError, ModelError
from rankcast.learner.base_models import load_model
from rankcast.learner.objectives import SequenceClassification
from rankcast.learner.qat import QatConfig
from rankcast.packaging.pack import read_adapter
from rankcast.packaging.qat import (
    CHECKPOINT,
    QatResult,
    SizeConfig,
    train_on_rounded_weights,
    train_to_size,
)
from rankcast.packaging.texts import Texts
from rankcast.training.byte_run import SizedAdapter

QUICK = ("--steps", "6", "--lr", "0.005")


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("qat") / "run"
    short = ("--steps", "15", "--training.gradient_steps", "2", "--training.warm_up_steps", "2")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "tiny", *short, "--output", str(folder)])
    assert not stopped.value.code
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: Any) -> tuple[Path, Path, Path]:
    """Return folders of a base model, of a PEFT LoRA on it, and of texts."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("foreign")
    splits = keyword_splits()
    objective = SequenceClassification(2)
    base = load_model("tiny", objective, 0, train_texts=splits.train.texts)
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    model = get_peft_model(
        base.model,
        LoraConfig(r=3, target_modules=["query", "value"], task_type="SEQ_CLS"),
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "lora")
    for split, texts in (("train", splits.train), ("validation", splits.validation)):
        lines = [f"{t}\t{y}" for t, y in zip(texts.texts, texts.labels or (), strict=True)]
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n", "utf-8")
    return folder / "base", folder / "lora", folder


def test_pack_takes_the_steps_that_were_trained(run: Path, tmp_path: Path, call: Call) -> None:
    target, file = tmp_path / "trained", tmp_path / "a.rcast"
    out = call.ok("qat", str(run), "-o", str(target), *QUICK, "--json")
    report = json.loads(out)
    assert report["n_texts"] == 64
    assert not (target / CHECKPOINT).exists()
    source = read_adapter(target)
    assert source.exponent is not None
    assert len(source.offsets) == len(source.tensors.projections)

    call.ok("pack", str(target), "-o", str(file))
    container = read_container(file.read_bytes())
    # The base model's name makes the difference.
    assert 8 * file.stat().st_size == pytest.approx(report["bits"], rel=0.05)
    for i, f in enumerate(container.tensors().factors):
        cells = f.right / step_of(source.exponent + source.offsets[i])
        np.testing.assert_allclose(cells, np.rint(cells), atol=1e-3)


def test_an_interrupted_training_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    def train(name: str, steps: int = 6, stop_after: int = 99) -> QatResult | None:
        return train_on_rounded_weights(
            run, tmp_path / name, QatConfig(steps=steps, lr=5e-3), Texts(),
            lambda step, _: step >= stop_after,
        )  # fmt: skip

    assert train("whole") is not None
    assert train("parts", stop_after=4) is None
    assert (tmp_path / "parts" / CHECKPOINT).is_file()
    with pytest.raises(CheckpointError, match="other settings"):
        train("parts", steps=7)
    assert train("parts") is not None
    whole, parts = (read_adapter(tmp_path / name) for name in ("whole", "parts"))
    assert (whole.exponent, whole.offsets) == (parts.exponent, parts.offsets)
    for f, g in zip(whole.tensors.factors, parts.tensors.factors, strict=True):
        np.testing.assert_array_equal(f.left, g.left)


def test_measured_prefixes_stand_in_the_file(run: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "a.rcast"
    budget = "30000"
    out = call.ok("pack", str(run), "-o", str(file), "--measure", "--budget-bits", budget, "--json")
    assert float(budget) - 1_200 < 8 * file.stat().st_size <= float(budget)
    header = read_container(file.read_bytes()).header
    assert json.loads(out)["loss"] == header.chunks[-1].loss
    assert all(entry.loss is not None and entry.loss > 0 for entry in header.chunks)
    assert all(0 <= (entry.accuracy or -1) <= 1 for entry in header.chunks)
    assert header.fingerprint is not None
    shown = call.ok("info", str(file))
    assert f"{header.chunks[-1].loss:.3f}" in shown
    assert f"{header.chunks[-1].accuracy:.1%}" in shown


def test_ranks_and_steps_are_planned_by_what_the_run_learned(
    run: Path, tmp_path: Path, call: Call
) -> None:
    file = tmp_path / "a.rcast"
    named = ("pack", str(run), "-o", str(file), "--planned")
    call.ok(*named, "--budget-bits", "18000")
    assert 15_500 < 8 * file.stat().st_size <= 18_000
    gains = read_adapter(run).gains
    assert gains is not None
    expected = pack_planned(read_adapter(run), 18_000, gains)
    assert file.read_bytes() == expected.to_bytes()
    assert "--planned needs a budget" in call.refused(*named)


def test_a_foreign_adapter_is_measured_on_named_texts(
    foreign: tuple[Path, Path, Path], tmp_path: Path, call: Call
) -> None:
    from transformers import AutoModelForSequenceClassification

    base, lora, texts = foreign
    file = tmp_path / "a.rcast"
    named = ("--texts", str(texts), "--base-model", str(base))
    call.ok("pack", str(lora), "-o", str(file), *named)
    container = read_container(file.read_bytes())
    model = AutoModelForSequenceClassification.from_pretrained(base)
    assert container.header.base.fingerprint == base_fingerprint(model)[:16]
    installed = install(model, container.tensors(), container.header)
    assert container.header.fingerprint is not None
    assert answers_alike(installed, dict(container.header.fingerprint))

    target = tmp_path / "trained"
    call.ok("qat", str(lora), "-o", str(target), *named, *QUICK)
    fresh = AutoModelForSequenceClassification.from_pretrained(base)
    assert load_adapter(fresh, target).layout.kinds == ("q", "v")


def test_training_on_another_base_model_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    described = other / "adapter" / "rankcast_adapter.json"
    raw = json.loads(described.read_text("utf-8"))
    described.write_text(json.dumps(raw | {"base_fingerprint": "0" * 64}), "utf-8")
    with pytest.raises(ModelError, match="fingerprint 000000000000"):
        train_on_rounded_weights(other, tmp_path / "out", QatConfig(steps=1), Texts())
    assert not (tmp_path / "out").exists()


def test_a_foreign_adapter_without_texts_is_refused(
    foreign: tuple[Path, Path, Path], tmp_path: Path, call: Call
) -> None:
    err = call.refused("qat", str(foreign[1]), "-o", str(tmp_path / "x"), "--steps", "2")
    assert "--texts" in err
    assert not (tmp_path / "x").exists()


TO_SIZE = ("--target-bytes", "800", "--steps", "12")


def test_qat_to_a_size(run: Path, tmp_path: Path, call: Call) -> None:
    target, file = tmp_path / "small", tmp_path / "a.rcast"
    report = json.loads(call.ok("qat", str(run), "-o", str(target), *TO_SIZE, "--json"))
    assert report["bytes"] <= 800
    assert report["n_texts"] == 64
    assert not (target / CHECKPOINT).exists()
    call.ok("pack", str(target), "-o", str(file))
    assert file.stat().st_size == report["bytes"]
    words = call.ok("qat", str(run), "-o", str(tmp_path / "other"), *TO_SIZE, "--rank", "1")
    assert "at rank 1" in words
    call.ok("pack", str(tmp_path / "other"), "-o", str(file))
    assert read_container(file.read_bytes()).tensors().ranks.max() == 1


def test_qat_to_a_size_goes_on_where_it_stopped(run: Path, tmp_path: Path) -> None:
    config = SizeConfig(CodecConfig(target_bytes=800, teachers=0), steps=12)

    def to_size(name: str, stop_after: int = 99) -> SizedAdapter | None:
        return train_to_size(
            run, tmp_path / name, config, Texts(), lambda row: row.step >= stop_after
        )

    whole = to_size("whole")
    assert whole is not None
    for stop in (2, 8):  # before weights are rounded, and after
        assert to_size("parts", stop) is None
        assert (tmp_path / "parts" / CHECKPOINT).is_file()
    with pytest.raises(CheckpointError, match="other settings"):
        train_to_size(run, tmp_path / "parts", replace(config, steps=13), Texts())
    parts = to_size("parts")
    assert parts is not None
    assert parts.file.to_bytes() == whole.file.to_bytes()
    assert parts.before == whole.before


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--rank", "1"), "--target-bytes"), ((*TO_SIZE, "--rate-weight", "1e-6"), "--rate-weight")],
)
def test_qat_refuses(
    run: Path, tmp_path: Path, call: Call, options: tuple[str, ...], named: str
) -> None:
    assert named in call.refused("qat", str(run), "-o", str(tmp_path / "x"), *options)
