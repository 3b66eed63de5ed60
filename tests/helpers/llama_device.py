"""A cloud with a tiny language model, and a device with its GGUF and llama.cpp's own server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from helpers.commands import Call
from helpers.gguf_bases import VOCABULARY, tiny_causal_model, write_base
from helpers.llama_cpp import LlamaServer, llama_server
from rankcast.codec.container import load
from rankcast.codec.header import BaseModel
from rankcast.edge.state import DeviceState, read_state
from rankcast.packaging.pack import pack
from rankcast.release.keys import KeyFolder
from rankcast.release.manifest import Manifest
from rankcast.release.proof import Proof
from rankcast.release.publish import publish, published
from rankcast.release.repository import Repository
from rankcast.release.store import Store

KIND = "llama"
PROMPT = list(range(5, 17))
IDLE_S = 1
"""The least that llama.cpp takes."""
SAME = 1e-4
"""Kullback-Leibler divergence of two computations of one model, with weights in half precision on
one side [nats]; adapters here change answers by a hundred times as much."""


def trained(seed: int, kind: str = KIND, *, std: float = 0.2, **sizes: int) -> Any:
    """Return a tiny model, or one of other sizes, with an adapter on all its maps."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_causal_model(kind, **sizes), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def answer(model: Any, prompt: Iterable[int] = PROMPT) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities of the next token."""
    with torch.no_grad():
        logits = model(torch.tensor([list(prompt)])).logits[0, -1].double()
    return torch.log_softmax(logits, -1).numpy()


def says(server: LlamaServer, prompt: Iterable[int] = PROMPT) -> NDArray[np.float64]:
    """Return the same of a server."""
    return server.log_probabilities(list(prompt), VOCABULARY)


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the Kullback-Leibler divergence [nats]."""
    return float((np.exp(one) * (one - other)).sum())


@cache
def alone() -> NDArray[np.float64]:
    """Return what the base model says without an adapter."""
    return answer(tiny_causal_model(KIND))


@dataclass(frozen=True)
class Cloud:
    """A store with keys, a base model as folder and as GGUF, and adapters for it.

    Attributes:
        root: folder of all of it.
        call: runs a command.
        gguf: of the base model.
    """

    root: Path
    call: Call
    gguf: Path

    def expected(self, seed: int) -> NDArray[np.float64]:
        """Return what PEFT says with the adapter as it is decoded."""
        from peft import PeftModel

        load(self.root / f"{seed}.rcast").export("peft", self.root / f"peft-{seed}")
        return answer(
            PeftModel.from_pretrained(tiny_causal_model(KIND), self.root / f"peft-{seed}")
        )

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def manifest_file(self) -> Path:
        entry = published(Repository.load(self.store), "demo")
        assert entry is not None
        return self.store.manifest_path("demo", entry.sha256)

    def active_manifest(self) -> Manifest:
        return Manifest.from_bytes(self.manifest_file.read_bytes())

    def signing(self) -> list[str]:
        return ["--keys", str(self.root / "keys"), "--store", str(self.root / "store"), "--json"]

    def publish(
        self, seed: int, *more: str, std: float = 0.2, packing: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Publish the adapter of a seed as a person does, with all that is recorded of it.

        Args:
            seed: of the adapter.
            more: options of `rankcast publish`.
            std: of its weights.
            packing: options of `rankcast pack`.
        """
        trained(seed, std=std).save_pretrained(self.root / f"lora-{seed}")
        file = self.root / f"{seed}.rcast"
        base = ["--base-model", str(self.root / "base")]
        self.call.ok("pack", str(self.root / f"lora-{seed}"), "-o", str(file), *base, *packing)
        words = ["publish", str(file), "--name", "demo", *base, *more, *self.signing()]
        return json.loads(self.call.ok(*words))

    def publish_again(self, seed: int, proof: Proof | None) -> int:
        """Publish the file of a seed with a proof that was recorded of it; return the version."""
        keys = KeyFolder(self.root / "keys")
        publish(
            [load(self.root / f"{seed}.rcast")], "demo", self.store, keys, datetime.now(UTC),
            proof=proof,
        )  # fmt: skip
        return self.active_manifest().version

    def sign(self, model: Any, proof: Proof | None) -> None:
        """Publish an adapter for this base model, whatever it was trained on, and a proof."""
        model.save_pretrained(self.root / "odd")
        container = pack(self.root / "odd")
        base = BaseModel("base", str(self.active_manifest().base.fingerprint))
        odd = replace(container, header=replace(container.header, base=base))
        keys = KeyFolder(self.root / "keys")
        publish([odd], "demo", self.store, keys, datetime.now(UTC), proof=proof)


def new_cloud(root: Path, call: Call, quantised: gguf.GGMLQuantizationType | None = None) -> Cloud:
    """Make keys and a base model; its GGUF is F16, or quantised."""
    name = "F16" if quantised is None else quantised.name
    cloud = Cloud(root, call, root / f"base-{name}.gguf")
    call.ok("keys", "init", *cloud.signing())
    model = tiny_causal_model(KIND)
    model.save_pretrained(root / "base")
    write_base(model, cloud.gguf, dtype=np.float16, quantised=quantised)
    return cloud


@dataclass(frozen=True)
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

    @property
    def state(self) -> DeviceState:
        state = read_state(self.folder)
        assert state is not None
        return state

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

    def sync(self, server: LlamaServer) -> dict[str, Any]:
        """Sync, which has to succeed, and return what it says."""
        return json.loads(self.call.ok(*self.words(server)))
