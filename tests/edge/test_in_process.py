"""Adapters that are swapped on a model while requests run."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from helpers.edge import EdgeServer, client_of
from helpers.models import adapted, tiny_batch, tiny_model
from helpers.waiting import DEADLOCK_S, wait_until
from rankcast.adapters.export import save_adapter
from rankcast.adapters.fingerprint import base_fingerprint, logits_fingerprint
from rankcast.codec.container import Container, pack_at_exponent
from rankcast.codec.packing import exponent_of_quality
from rankcast.edge.activate import Candidate
from rankcast.edge.in_process import PeftModelActivator, ReadWriteLock, hot_adapter
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import DeliveryError, ModelError
from rankcast.packaging.pack import read_adapter
from rankcast.release.manifest import blob_of

BASE = base_fingerprint(tiny_model("bert"))


@pytest.fixture(scope="module")
def containers(tmp_path_factory: Any) -> list[Container]:
    """Three adapters with ranks that differ, a head, and the logits that they give."""
    containers = []
    for seed, modules in enumerate([None, ["classifier", "bert.pooler"], None]):
        adapter = adapted(seed=seed, modules=modules)
        adapter.set_ranks([(seed + i) % 4 + 1 for i in range(len(adapter.ranks))])
        folder = tmp_path_factory.mktemp("adapter")
        save_adapter(adapter, folder)
        source = read_adapter(folder)
        container = pack_at_exponent(source, exponent_of_quality(source.tensors, 1e-3), 2)
        activator = PeftModelActivator(tiny_model("bert"))
        activator.activate(candidate(container, seed + 1))
        header = replace(
            container.header, fingerprint=logits_fingerprint(activator.model),
            base=replace(container.header.base, fingerprint=BASE),
        )  # fmt: skip
        containers.append(Container(header, container.chunks))
    return containers


def candidate(container: Container, version: int, n_chunks: int | None = None) -> Candidate:
    n = len(container.chunks) if n_chunks is None else n_chunks
    cut = Container(container.header, container.chunks[:n])
    blobs = ("0" * 64, *(blob_of(chunk).sha256 for chunk in container.chunks[:n]))
    return Candidate(ReleasePrefix("a.b", version, 0, blobs), cut, cut.tensors())


def answer(activator: Any) -> torch.Tensor:
    return activator(**tiny_batch()).logits


def test_adapters_take_turns_and_go_back(containers: list[Container]) -> None:
    activator = PeftModelActivator(tiny_model("bert"))
    bare = answer(activator)
    alone = []
    for n, container in enumerate(containers):
        fresh = PeftModelActivator(tiny_model("bert"))
        fresh.activate(candidate(container, n + 1))
        alone.append(answer(fresh))
        activator.activate(candidate(container, n + 1))
        assert torch.allclose(answer(activator), alone[n], atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    activator.restore(candidate(containers[0], 1))
    assert torch.allclose(answer(activator), alone[0], atol=1e-5)
    activator.discard({candidate(containers[1], 2).prefix.label})
    assert len(activator.model.peft_config) == 2
    activator.activate(candidate(containers[0], 1, n_chunks=2))  # a prefix has its own proof
    assert not torch.allclose(answer(activator), alone[0], atol=1e-4)
    activator.deactivate()
    assert activator.active() is None
    assert torch.equal(answer(activator), bare)
    wider = tiny_model("bert")
    wider.classifier = torch.nn.Linear(16, 3)
    with pytest.raises(ModelError, match="carries adapters already"):
        PeftModelActivator(activator.model)
    with pytest.raises(ModelError, match="as many labels"):
        PeftModelActivator(wider).activate(candidate(containers[1], 2))


def test_what_does_not_answer_as_published_is_not_made_active(
    containers: list[Container],
) -> None:
    activator = PeftModelActivator(tiny_model("bert"))
    activator.activate(candidate(containers[0], 1))
    before = answer(activator)
    good = containers[1].header
    assert good.fingerprint is not None
    wrong = dict(good.fingerprint) | {"logits": [9.0] * len(good.fingerprint["logits"])}
    foreign = dict(good.fingerprint) | {"input_ids": [10**6]}
    for fingerprint, words in ((wrong, "does not answer"), (foreign, "vocabulary")):
        bad = Container(replace(good, fingerprint=fingerprint), containers[1].chunks)
        with pytest.raises(DeliveryError, match=words):
            activator.activate(candidate(bad, 2))
        assert torch.equal(answer(activator), before)
        assert len(activator.model.peft_config) == 1
    with pytest.raises(ModelError, match="fingerprint"):
        PeftModelActivator(tiny_model("bert", seed=1)).activate(candidate(containers[0], 1))
    fresh = PeftModelActivator(tiny_model("bert"))
    bare = answer(fresh)
    with pytest.raises(DeliveryError, match="does not answer"):
        fresh.activate(candidate(bad_of(containers[1]), 2))
    assert fresh.active() is None
    assert torch.equal(answer(fresh), bare)
    fresh.activate(candidate(containers[0], 1))
    assert torch.allclose(answer(fresh), before, atol=1e-5)


@pytest.mark.parametrize("what", ["head", "layer"])
def test_a_prefix_proves_its_logits(
    containers: list[Container], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The header knows the logits of the whole adapter only; a prefix has others."""
    activator = PeftModelActivator(tiny_model("bert"))
    activator.activate(candidate(containers[0], 1, n_chunks=3))
    before = answer(activator)
    choose = PeftModelActivator._select

    def spoil(self: PeftModelActivator, label: str) -> None:
        choose(self, label)
        if label.startswith("a.b-v2"):
            other = self._names[candidate(containers[0], 1, 3).prefix.label]
            kind, held = {
                "head": (ModulesToSaveWrapper, "modules_to_save"), "layer": (LoraLayer, "lora_A"),
            }[what]  # fmt: skip
            layers = [m for m in self._peft.modules() if isinstance(m, kind)]
            next(m for m in layers if other in getattr(m, held)).set_adapter(other)

    monkeypatch.setattr(PeftModelActivator, "_select", spoil)
    with pytest.raises(DeliveryError, match="base model and adapter together"):
        activator.activate(candidate(containers[1], 2, n_chunks=3))
    assert torch.allclose(answer(activator), before, atol=1e-6)


def bad_of(container: Container) -> Container:
    assert container.header.fingerprint is not None
    logits = [9.0] * len(container.header.fingerprint["logits"])
    changed = dict(container.header.fingerprint) | {"logits": logits}
    return Container(replace(container.header, fingerprint=changed), container.chunks)


def test_every_request_meets_one_adapter_whole(containers: list[Container]) -> None:
    """Four threads ask while two adapters take turns: an answer is one of two, never between."""
    activator = PeftModelActivator(tiny_model("bert"))
    both = [candidate(containers[n], n + 1) for n in (0, 2)]
    expected = []
    for one in both:
        activator.activate(one)
        expected.append(answer(activator))
    stop, wrong, seen, answered = threading.Event(), [], set(), threading.Semaphore(0)

    def ask() -> None:
        while not stop.is_set():
            got = answer(activator)
            fits = [n for n, e in enumerate(expected) if torch.allclose(got, e, atol=1e-5)]
            seen.update(fits)
            if len(fits) != 1:
                wrong.append(got)
            answered.release()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        one = both[turn % 2]
        activator.activate(one)
        activator.discard({one.prefix.label})  # so that the next turn loads anew
        for _ in range(6):  # one from every thread may be of the turn before
            assert answered.acquire(timeout=DEADLOCK_S)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert seen == {0, 1}


def test_a_model_is_served_while_releases_come(
    containers: list[Container], server: EdgeServer, tmp_path: Path
) -> None:
    server.publish(containers[0])
    client = client_of(server, tmp_path, BASE)
    with hot_adapter(tiny_model("bert"), client, every_s=None) as served:
        first = answer(served)
    n = len(server.requests)
    server.manifest_file.rename(tmp_path / "aside")
    bare = tiny_model("bert")
    with hot_adapter(bare, client) as served:  # offline: the adapter comes from the cache
        assert torch.allclose(answer(served), first, atol=1e-5)
        with served.reading() as model:
            assert model.active_adapter
    assert len(server.requests) == n
    server.publish(bad_of(containers[1]), version=2)
    with hot_adapter(tiny_model("bert"), client, every_s=None) as served:
        assert torch.allclose(answer(served), first, atol=1e-5)
    server.publish(containers[1], version=3)
    with hot_adapter(tiny_model("bert"), client, every_s=None) as served:
        assert not torch.allclose(answer(served), first, atol=1e-2)


def test_a_writer_waits_for_readers_and_is_not_overtaken() -> None:
    lock, order = ReadWriteLock(), []
    inside, leave = threading.Event(), threading.Event()

    def read_first() -> None:
        with lock.reading():
            inside.set()
            leave.wait()
            order.append("first reader")

    def write() -> None:
        with lock.writing():
            order.append("writer")

    def read_later() -> None:
        with lock.reading():
            order.append("later reader")

    threads = [threading.Thread(target=read_first), threading.Thread(target=write)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    wait_until(lambda: lock._n_waiting)
    threads.append(threading.Thread(target=read_later))
    threads[2].start()
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["first reader", "writer", "later reader"]
