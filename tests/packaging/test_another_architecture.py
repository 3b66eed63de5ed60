"""An adapter of another architecture is refused wherever a base model is named; without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.commands import Call
from helpers.edge import FileSource, serving
from rankcast.codec.container import load
from rankcast.codec.formats.base_folder import BaseFolder
from rankcast.codec.formats.tensor_file import TensorFile, write_tensor_file
from rankcast.codec.header import BaseModel
from rankcast.errors import ModelError
from rankcast.packaging.base_model import base_fingerprints_of_folder
from rankcast.release import verify as signed
from rankcast.simulation.made_up import write_adapter, write_base_model


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Return a LoRA of a Llama's attention."""
    write_adapter(tmp_path / "lora", 1)
    return tmp_path / "lora"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_base_model(tmp_path / "llama", 0)
    return tmp_path / "llama"


@pytest.fixture
def bert(tmp_path: Path, llama: Path) -> Path:
    """Return a folder with as many weights of the same widths, under BERT's names."""
    file, folder = TensorFile.open(llama / "model.safetensors"), tmp_path / "bert"
    named = {
        name.replace("model.layers.", "bert.encoder.layer.")
        .replace(".self_attn.q_proj", ".attention.self.query")
        .replace("model.embed_tokens", "bert.embeddings.word_embeddings")
        .replace("model.norm", "bert.pooler.dense"): file.array(name)
        for name in file.entries
    }
    folder.mkdir()
    shapes = {name: (values.shape, values.dtype) for name, values in named.items()}
    write_tensor_file(folder / "model.safetensors", shapes, named.values())
    config = json.loads((llama / "config.json").read_text())
    config |= {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_pack_takes_the_model_it_fits_and_no_other(
    lora: Path, llama: Path, bert: Path, tmp_path: Path, call: Call
) -> None:
    file = tmp_path / "a.rcast"
    err = call.refused("pack", str(lora), "-o", str(file), "--base-model", str(bert))
    assert "model.layers.0.self_attn.q_proj is no module of this bert" in err
    assert not file.exists()
    call.ok("pack", str(lora), "-o", str(file), "--base-model", str(llama))
    (whole,) = base_fingerprints_of_folder(llama)
    assert whole.startswith(str(load(file).header.base.fingerprint))


def test_publish_and_quickstart_refuse_it(
    lora: Path, bert: Path, tmp_path: Path, call: Call
) -> None:
    file, signing = tmp_path / "a.rcast", ["--store", str(tmp_path / "s"), "--keys", str(tmp_path)]
    call.ok("pack", str(lora), "-o", str(file))  # which names no base model
    signing = ["--store", str(tmp_path / "store"), "--keys", str(tmp_path / "keys")]
    call.ok("keys", "init", *signing)
    for path in (file, lora):
        words = ["publish", str(path), "--name", "demo", "--base-model", str(bert), *signing]
        assert "is no module of this bert" in call.refused(*words)
    words = ["quickstart", str(lora), "--base-model", str(bert), "--folder", str(tmp_path / "q")]
    assert "is no module of this bert" in call.refused(*words, "--port", "0")
    assert not (tmp_path / "q").exists()


def test_a_device_refuses_what_was_published_for_the_wrong_model(
    lora: Path, bert: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version published it: with the fingerprint of the model that does not fit."""
    file = tmp_path / "a.rcast"
    call.ok("pack", str(lora), "-o", str(file))
    packed, fingerprint = load(file), base_fingerprints_of_folder(bert)[0]
    header = replace(packed.header, base=BaseModel("made-up", fingerprint[:16]))
    with serving(tmp_path) as server:
        server.publish(replace(packed, header=header))
        source = FileSource(server.manifest_file)
        monkeypatch.setattr(signed, "signed_source", lambda *_, **__: source)
        words = ["edge", "sync", "--server", server.url, "--adapter", "demo", "--folder",
                 str(tmp_path / "device"), "--base-model", str(bert)]  # fmt: skip
        status, out, _ = call(*words)
    assert (status, out.partition(":")[0]) == (1, "rolled-back")
    assert "is no module of this bert" in out
    assert not (tmp_path / "device" / "adapter" / "current").exists()


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("model.layers.0.self_attn.q_proj", True),
        ("layers.0.self_attn.q_proj", True),  # of the class without a head
        ("lm_head", True),  # tied to the embedding, so that the files lack it
        ("score", True),  # a head is new to its task
        ("model.layers.0.self_attn.qkv_proj", False),
        ("model.layers.4.self_attn.q_proj", False),  # of layers 0 to 3
        ("transformer.h.0.attn.c_attn", False),
    ],
)
def test_which_modules_a_folder_has(name: str, fits: bool, llama: Path) -> None:
    base = BaseFolder.open(llama)
    if fits:
        base.check_fits(name, 256, 256)
        return
    with pytest.raises(ModelError, match="does not fit"):
        base.check_fits(name, 256, 256)


def test_models_whose_files_may_have_other_names_are_not_judged_by_names(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    BaseFolder.open(llama).check_fits("model.layers.0.block_sparse_moe.gate", 256, 8)
