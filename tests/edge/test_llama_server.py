"""A device with a GGUF, llama.cpp's own server, and nothing else: releases become its answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.commands import Call
from helpers.gguf_bases import VOCABULARY, tiny_causal_model, write_base
from helpers.llama_cpp import LlamaServer, llama_server, needs_llama_cpp
from helpers.servers import files_over_http
from rankcast.codec.container import load
from rankcast.codec.header import BaseModel
from rankcast.packaging.pack import pack
from rankcast.release.keys import KeyFolder
from rankcast.release.manifest import Manifest
from rankcast.release.proof import Proof
from rankcast.release.publish import publish, published
from rankcast.release.repository import Repository
from rankcast.release.store import Store

pytestmark = pytest.mark.usefixtures("_llama_cpp")
KIND = "llama"
PROMPT = list(range(5, 17))
IDLE_S = 1
"""The least that llama.cpp takes."""


@pytest.fixture(scope="session", autouse=True)
def _llama_cpp() -> None:
    needs_llama_cpp()


def trained(seed: int, **sizes: int) -> Any:
    """Return the tiny model, or one of other sizes, with an adapter on all its maps."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_model(KIND, **sizes), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def answer(model: Any) -> NDArray[np.float64]:
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -1].double()
    return torch.log_softmax(logits, -1).numpy()


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Kullback-Leibler divergence [nats]."""
    return float((np.exp(one) * (one - other)).sum())


@dataclass(frozen=True)
class Cloud:
    """A store with keys, a base model as folder and as GGUF, and adapters for it.

    Attributes:
        root: folder of all of it.
        call: runs a command.
    """

    root: Path
    call: Call

    def expected(self, seed: int) -> NDArray[np.float64]:
        """Return what PEFT says with the adapter as it is decoded."""
        from peft import PeftModel

        load(self.root / f"{seed}.rcast").export("peft", self.root / f"peft-{seed}")
        return answer(
            PeftModel.from_pretrained(tiny_causal_model(KIND), self.root / f"peft-{seed}")
        )

    def active_manifest(self) -> Manifest:
        store = Store(self.root / "store")
        entry = published(Repository.load(store), "demo")
        assert entry is not None
        return Manifest.from_bytes(store.manifest_path("demo", entry.sha256).read_bytes())

    @property
    def gguf(self) -> Path:
        return self.root / "base-F16.gguf"

    def signing(self) -> list[str]:
        return ["--keys", str(self.root / "keys"), "--store", str(self.root / "store"), "--json"]

    def publish(self, seed: int, *more: str) -> dict[str, Any]:
        """Publish the adapter of a seed."""
        trained(seed).save_pretrained(self.root / f"lora-{seed}")
        file = self.root / f"{seed}.rcast"
        base = ["--base-model", str(self.root / "base")]
        self.call.ok("pack", str(self.root / f"lora-{seed}"), "-o", str(file), *base)
        words = ["publish", str(file), "--name", "demo", *base, *more, *self.signing()]
        return json.loads(self.call.ok(*words))


@pytest.fixture
def cloud(tmp_path: Path, call: Call) -> Cloud:
    cloud = Cloud(tmp_path, call)
    call.ok("keys", "init", *cloud.signing())
    model = tiny_causal_model(KIND)
    model.save_pretrained(tmp_path / "base")
    write_base(model, cloud.gguf, dtype=np.float16)
    return cloud


@dataclass
class Device:
    """A device that asks a cloud.

    Attributes:
        cloud: whose releases it takes.
        url: of its store.
        call: runs a command.
    """

    cloud: Cloud
    url: str
    call: Call

    @property
    def folder(self) -> Path:
        return self.cloud.root / "device"

    def slots(self) -> list[Path]:
        words = ["edge", "prepare", "--adapter", "demo", "--folder", str(self.folder)]
        out = self.call.ok(*words, "--base-model", str(self.cloud.gguf), "--json")
        return [Path(path) for path in json.loads(out)["files"]]

    def serve(self, name: str = "llama", **settings: Any) -> Any:
        """Start llama.cpp's server as the documents say; a context manager."""
        known = {"scale": 0.0, "sleep_idle_seconds": IDLE_S}
        log = self.cloud.root / f"{name}.log"
        return llama_server(self.cloud.gguf, self.slots(), log=log, **{**known, **settings})

    def words(self, server: LlamaServer | None, *more: str) -> list[str]:
        trust = ["--root", str(self.cloud.root / "store" / "metadata" / "root.json")]
        engine = [] if server is None else ["--llama-url", server.address]
        return ["edge", "sync", "--server", self.url, "--adapter", "demo", "--folder",
                str(self.folder), "--base-model", str(self.cloud.gguf), *trust, *engine, "--whole",
                "--json", *more]  # fmt: skip


@pytest.fixture
def device(cloud: Cloud, call: Call) -> Iterator[Device]:
    with files_over_http(cloud.root / "store") as url:
        yield Device(cloud, url, call)


def says(server: LlamaServer) -> NDArray[np.float64]:
    return server.log_probabilities(PROMPT, VOCABULARY)


def test_two_releases_change_the_answers_of_one_process(cloud: Cloud, device: Device) -> None:
    told = cloud.publish(1, "--runs-on", str(cloud.gguf))
    assert (told["proof"], [x["quantisation"] for x in told["runs_on"]]) == (True, ["F16"])
    alone = answer(tiny_causal_model(KIND))
    with device.serve() as server:
        assert distance(alone, says(server)) < 1e-4
        for seed in (1, 2):
            if seed == 2:
                told = cloud.publish(2)  # copies are kept from release to release
                assert len(told["runs_on"]) == 1
            out = json.loads(device.call.ok(*device.words(server)))
            assert out["outcome"] == "activated", out["message"]
            assert "F16 copy of" in out["message"]
            expected = cloud.expected(seed)
            assert distance(expected, says(server)) < 1e-4
            assert distance(expected, alone) > 1e-2
        assert server.process.poll() is None
        out = json.loads(device.call.ok(*device.words(server)))
        assert out["outcome"] == "up-to-date"
    with device.serve("again") as server:  # restarted: it answers alone until the device sees it
        assert distance(alone, says(server)) < 1e-4
        assert json.loads(device.call.ok(*device.words(server)))["outcome"] == "up-to-date"
        assert distance(cloud.expected(2), says(server)) < 1e-4


def test_what_answers_otherwise_than_published_never_becomes_active(
    cloud: Cloud, device: Device
) -> None:
    """The proof is of the adapter before; and another model's adapter is not even written."""
    cloud.publish(1, "--runs-on", str(cloud.gguf))
    with device.serve() as server:
        device.call.ok(*device.words(server))
        first = says(server)
        sign(cloud, trained(2), cloud.active_manifest().proof)
        status, out, _ = device.call(*device.words(server))
        assert (status, "as it was published" in out) == (1, True)
        np.testing.assert_allclose(says(server), first, atol=1e-5)
        sign(cloud, trained(3, intermediate_size=128), None)
        status, out, _ = device.call(*device.words(server))
        assert (status, "takes" in out) == (1, True)
        np.testing.assert_allclose(says(server), first, atol=1e-5)
        assert server.process.poll() is None
        state = json.loads(
            device.call.ok("edge", "status", "--folder", str(device.folder), "--json")
        )
        assert state["active"]["version"] == 1


def sign(cloud: Cloud, model: Any, proof: Proof | None) -> None:
    """Publish an adapter for the same base model, whatever it was trained on, and a proof."""
    model.save_pretrained(cloud.root / "odd")
    container = pack(cloud.root / "odd")
    base = BaseModel("base", str(cloud.active_manifest().base.fingerprint))
    odd = replace(container, header=replace(container.header, base=base))
    store, keys = Store(cloud.root / "store"), KeyFolder(cloud.root / "keys")
    publish([odd], "demo", store, keys, datetime.now(UTC), proof=proof)


def test_other_models_are_refused_by_name(cloud: Cloud, device: Device) -> None:
    other = write_base(tiny_causal_model(KIND, seed=1), cloud.root / "other.gguf")
    trained(1).save_pretrained(cloud.root / "lora")
    words = ["publish", str(cloud.root / "lora"), "--name", "demo", "--base-model",
             str(cloud.root / "base"), "--runs-on", str(other), *cloud.signing()]  # fmt: skip
    assert "other.gguf is no copy of" in device.call.refused(*words)
    cloud.publish(1)
    err = device.call.refused(*device.words(None, "--format", "gguf"))
    assert "--runs-on" in err
    cloud.publish(1, "--runs-on", str(cloud.gguf))
    cloud.gguf.write_bytes(other.read_bytes())  # the fingerprint is taken again
    err = device.call.refused(*device.words(None, "--format", "gguf"))
    assert "an F16 copy of" in err
    assert "this device has another base model" in err


_LIGHTLY = """
import sys
from rankcast.cli.main import main
try:
    main()
finally:
    assert not {"torch", "transformers", "peft"}.intersection(sys.modules)
"""


def test_a_device_needs_no_torch(cloud: Cloud, device: Device) -> None:
    """Nor transformers, PEFT, or config.json."""
    cloud.publish(1, "--runs-on", str(cloud.gguf))
    (cloud.root / "base" / "config.json").unlink()
    command = [sys.executable, "-c", _LIGHTLY, *device.words(None, "--format", "gguf")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 ours
    assert done.returncode == 0, done.stderr
    assert "F16 copy of" in json.loads(done.stdout)["message"]
    file = device.folder / "adapter" / "current" / "adapter.gguf"
    with llama_server(cloud.gguf, [file], log=cloud.root / "log") as server:
        assert distance(cloud.expected(1), says(server)) < 1e-4
