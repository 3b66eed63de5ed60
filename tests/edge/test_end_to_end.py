"""From a trained adapter to the same logits on a device, over 1 Mbit/s with 5 % loss.

Every command runs as a person would run it; the device is a process of its own. What it activated
is loaded by PEFT as it comes from PyPI, and compared with what the cloud decodes of that prefix and
adds to the base model's weights itself.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import Call
from helpers.lossy_links import WAYS, LossyLink, why_no_namespaces
from helpers.models import randomise, tiny_batch, tiny_model
from rankcast.adapters.elastic import ElasticAdapter
from rankcast.adapters.export import save_adapter
from rankcast.adapters.fingerprint import base_fingerprint
from rankcast.codec.container import Container, read_container

pytest.importorskip("fastapi")


@pytest.fixture(params=["kernel", "proxy"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "kernel" and (why := why_no_namespaces()) is not None:
        pytest.skip(why)
    return request.param


@dataclass(frozen=True)
class Cloud:
    """What was published, and the files that a device is given."""

    model: Callable[[], Any]
    container: Container
    root: Path

    @property
    def database(self) -> str:
        return f"sqlite:///{self.root}/devices.db"

    def logits(self, n_chunks: int) -> torch.Tensor:
        """Return what the base model says with the first chunks put into its weights."""
        model, tensors = self.model(), self.container.prefix(n_chunks).tensors()
        with torch.no_grad():
            for p, factors in zip(tensors.projections, tensors.factors, strict=True):
                weight = model.get_submodule(p.name).weight
                weight += torch.from_numpy(factors.delta_weight())
            for name, values in tensors.modules.items():
                assert tensors.carriage[name] == "full"
                model.get_parameter(name).copy_(torch.from_numpy(values))
        return answer(model)


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny_batch()).logits


def published(folder: Path, model: Callable[[], Any], r_max: int, call: Call) -> Cloud:
    """Make an adapter, and do what its owner does until devices may fetch it."""
    adapter = ElasticAdapter.attach(model(), r_max=r_max)
    randomise(adapter, 0, scale=0.05)
    save_adapter(adapter, folder / "adapter")
    file, store, keys = folder / "a.rcast", folder / "store", folder / "keys"
    signing = ["--store", str(store), "--keys", str(keys)]
    for args in (
        ["pack", str(folder / "adapter"), "-o", str(file)],
        ["keys", "init", *signing],
        ["publish", str(file), "--name", "demo", *signing],
    ):
        call.ok(*args)
    cloud = Cloud(model, read_container(file.read_bytes()), folder)
    out = call.ok("devices", "add", "pi", "--database", cloud.database)
    (folder / "token").write_text(out)
    return cloud


def sync(cloud: Cloud, link: LossyLink, *more: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Sync on the device; return what it says and what PEFT makes of what it activated."""
    from peft import PeftModel

    folder = cloud.root / "device"
    done = link.run(
        "edge", "sync", "--server", link.url, "--adapter", "demo", "--folder", str(folder),
        "--base-fingerprint", base_fingerprint(cloud.model()), "--token-file",
        str(cloud.root / "token"), "--root", str(cloud.root / "store" / "metadata" / "root.json"),
        "--deadline-s", "3600", "--json", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = PeftModel.from_pretrained(cloud.model(), folder / "adapter" / "current")
    return json.loads(done.stdout), answer(model)


def check(cloud: Cloud, way: str) -> None:
    """Deliver half of an adapter, then the rest, and compare logits each time."""
    chunks = cloud.container.header.chunks
    n_half = len(chunks) // 2
    half = len(cloud.container.to_bytes()) - sum(e.n_bytes for e in chunks[n_half:])
    with WAYS[way](cloud.root / "store", cloud.database) as link:
        # The modem says 10 dB; in this bandwidth that carries half of the adapter in an hour, far
        # longer than it takes.
        wide = 8.0 * (half + 1) / 3600.0 / 3.4594
        result, logits = sync(cloud, link, "--snr-db", "10", "--bandwidth-hz", f"{wide:.6f}")
        n_got = len(result["release"]["blobs"]) - 1
        assert (result["outcome"], result["planned_by"], n_got) == ("activated", "server", n_half)
        assert torch.allclose(logits, cloud.logits(n_half), atol=1e-4)
        result, logits = sync(cloud, link)
    assert result["outcome"] == "activated"
    assert len(result["release"]["blobs"]) - 1 == len(chunks)
    whole = cloud.logits(len(chunks))
    assert torch.allclose(logits, whole, atol=1e-4)
    assert not torch.allclose(whole, cloud.logits(n_half), atol=1e-3)
    assert not torch.allclose(whole, answer(cloud.model()), atol=1e-3)


def test_a_device_answers_as_the_cloud_does(way: str, tmp_path: Path, call: Call) -> None:
    check(published(tmp_path, lambda: tiny_model("bert"), 4, call), way)


def test_an_adapter_of_real_size(tmp_path: Path, call: Call) -> None:
    from rankcast.learner.base_models import MINILM_PACKAGE, load_model
    from rankcast.learner.objectives import SequenceClassification

    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        pytest.skip("needs pip install 'rankcast[demo]'")

    def model() -> Any:
        return load_model("minilm", SequenceClassification(2), seed=0).model

    way = "kernel" if why_no_namespaces() is None else "proxy"
    check(published(tmp_path, model, 8, call), way)
