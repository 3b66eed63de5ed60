"""vLLM finds a device's active adapter by its name; what vLLM does is in `helpers.vllm`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from helpers.edge import EdgeServer, client_of, release_of
from helpers.vllm import LoRARequest, LoRAResolver, ServingModels, VllmServer, check_interface
from helpers.vllm import modules as vllm_modules
from helpers.waiting import in_background
from rankcast.codec.container import Container
from rankcast.codec.formats.peft import read_peft
from rankcast.codec.header import BaseModel
from rankcast.edge.engines import vllm_resolver
from rankcast.edge.engines.folder import AdapterFolder, WriteAdapter
from rankcast.edge.engines.vllm import VllmEndpoint
from rankcast.errors import ConfigError, DeliveryError

BASE_MODEL = "owner/tiny"
Change = Callable[[Path], object]


def release(seed: int, name: str | None = BASE_MODEL, task: str = "CAUSAL_LM") -> Container:
    """Return an adapter of rank 6 of a language model."""
    file = release_of(seed)
    base = BaseModel(name, file.header.base.fingerprint)
    return replace(file, header=replace(file.header, base=base, task={"task_type": task}))


def sync(server: EdgeServer, folder: Path, activator: Any = None) -> Any:
    """Let a device fetch the newest release for vLLM."""
    activator = activator or WriteAdapter("vllm", folder / "adapter")
    return client_of(server, folder, activator=activator).sync()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ServingModels]:
    """Start vLLM with the plugin and the device in `tmp_path`; other variables as named."""

    def started(
        *devices: Path, model: str = BASE_MODEL, others: Any = (), max_rank: int = 16, **named: str
    ) -> ServingModels:
        folders = devices or (tmp_path,)
        outputs = os.pathsep.join(str(folder / "adapter") for folder in folders)
        variables = {
            "RANKCAST_DEVICE": os.pathsep.join(str(folder / "state") for folder in folders),
            "RANKCAST_DEVICE_OUTPUT": outputs,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        }
        for name, value in (variables | named).items():
            monkeypatch.setenv(name, value)
        for name, module in vllm_modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        vllm_resolver.register()
        vllm_resolver.register()  # processes of vLLM load plugins more than once
        registry: Any = import_module("vllm.lora.resolver").LoRAResolverRegistry
        for i, other in enumerate(others):
            registry.register_resolver(f"other {i}", other)
        assert list(registry.get_supported_resolvers())[:1] == ["rankcast"]
        return ServingModels(registry, model, max_rank)

    return started


def ask(models: ServingModels, name: str = "demo") -> int:
    return asyncio.run(models.generate(name))


def loaded_version(models: ServingModels) -> int:
    """Return which release the worker read last."""
    return int(Path(models.worker.loads[-1]).name.split("-")[1].removeprefix("v"))


def test_the_project_names_the_plugin_and_loading_it_costs_nothing() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    entry = project["entry-points"]["vllm.general_plugins"]["rankcast"]
    module, _, function = entry.partition(":")
    assert getattr(import_module(module), function) is vllm_resolver.register
    code = (
        f"import sys, {module} as plugin; plugin.{function}(); "
        f"print({{'torch', 'numpy', 'vllm'}} & set(sys.modules))"
    )
    plain = {k: v for k, v in os.environ.items() if k != vllm_resolver.DEVICE}
    done = subprocess.run(  # noqa: S603 our own interpreter
        [sys.executable, "-c", code], env=plain, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("which", ["stand-in", "vLLM itself"])
def test_contract_of_what_the_plugin_needs_of_vllm(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if which == "stand-in":
        for name, module in vllm_modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    elif importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    resolver, request = (import_module(f"vllm.lora.{name}") for name in ("resolver", "request"))
    check_interface(resolver, request)
    monkeypatch.setenv("RANKCAST_DEVICE", "/nowhere")
    vllm_resolver.register()
    ours = resolver.LoRAResolverRegistry.get_resolver("rankcast")
    assert isinstance(ours, resolver.LoRAResolver)
    assert asyncio.run(ours.resolve_lora(BASE_MODEL, "demo")) is None
    resolver.LoRAResolverRegistry.resolvers.pop("rankcast")


def test_the_active_adapter_is_served_under_its_name(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels]
) -> None:
    server.publish(release(1))
    assert sync(server, tmp_path).outcome == "activated"
    models = start()
    assert (ask(models), ask(models)) == (200, 200)
    assert models.asked == ["demo"]  # once: then vLLM has it
    assert len(models.worker.loads) == 1  # and is not told to read it with every request
    request = models.requests["demo"]
    assert (request.lora_name, request.lora_int_id, request.load_inplace) == ("demo", 1, False)
    expected = release(1).tensors()
    for p, f in zip(expected.projections, expected.factors, strict=True):
        found = models.worker.weights[1]
        a, b = (found[f"base_model.model.{p.name}.lora_{x}.weight"] for x in "AB")
        np.testing.assert_array_equal((b @ a), f.delta_weight())


def test_other_names_are_left_to_other_resolvers(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    class Other(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            return LoRARequest(lora_name, 7, str(folder)) if lora_name == "theirs" else None

    server.publish(release(1))
    sync(server, tmp_path)
    folder = (tmp_path / "adapter" / "current").resolve()
    models = start(others=[Other()])
    assert (ask(models, "theirs"), ask(models, "nobody's")) == (200, 404)
    assert models.asked == ["theirs", "theirs", "nobody's", "nobody's"]
    assert not caplog.records


def test_a_new_release_replaces_the_old_one_in_place(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels]
) -> None:
    server.publish(release(1))
    sync(server, tmp_path)
    models = start()
    with serving(models) as vllm:
        assert ask(models) == 200
        server.publish(release(2), version=2)
        endpoint = VllmEndpoint(vllm.url, "demo", tmp_path / "adapter")
        assert endpoint.active() is not None  # the resolver's path says which release it is
        assert sync(server, tmp_path, endpoint).outcome == "activated"
        assert [post["what"] for post in vllm.posts] == ["load_lora_adapter"]
        assert vllm.posts[0]["load_inplace"] is True
        assert loaded_version(models) == 2
        number = models.requests["demo"].lora_int_id
        assert [ask(models) for _ in range(3)] == [200] * 3
        assert (models.asked, len(models.worker.loads)) == (["demo"], 2)
        a = models.worker.weights[number][
            "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
        ]
        np.testing.assert_array_equal(a, release(2).tensors().factors[0].right)
        again = start()  # vLLM was restarted, and asks before the device syncs again
        assert (ask(again), loaded_version(again)) == (200, 2)


@contextmanager
def serving(models: ServingModels) -> Iterator[VllmServer]:
    server = VllmServer(models)
    with in_background(server):
        yield server


def test_what_failed_its_proof_is_not_served(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels]
) -> None:
    server.publish(release(1))
    sync(server, tmp_path)
    server.publish(release(2), version=2)
    failing = WriteAdapter("vllm", tmp_path / "adapter", hook=("false",))
    assert sync(server, tmp_path, failing).outcome == "rolled-back"
    assert any("-v2-" in path.name for path in (tmp_path / "adapter" / "versions").iterdir())
    models = start()
    assert (ask(models), loaded_version(models)) == (200, 1)


def test_before_the_first_sync_there_is_nothing(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    models = start()
    assert "no folder yet" in caplog.text
    assert ask(models) == 404
    server.publish(replace(release(1), chunks=release(1).chunks))
    failing = WriteAdapter("vllm", tmp_path / "adapter", hook=("false",))
    assert sync(server, tmp_path, failing).outcome == "rolled-back"
    assert ask(models) == 404
    assert "No release of demo is active" in caplog.text
    client_of(server, tmp_path, activator=WriteAdapter("vllm", tmp_path / "adapter")).sync(
        retry_rejected=True
    )
    assert ask(models) == 200


def other_bytes(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def config_with(**fields: Any) -> Change:
    """Return what puts fields into an adapter's configuration and its digest beside it."""

    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text("utf-8")) | fields
        path.write_text(json.dumps(config), "utf-8")
        sums = AdapterFolder("vllm", folder.parents[1])._sums(folder)
        (folder / "rankcast_release.json").write_text(json.dumps(sums), "utf-8")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_bytes, "is damaged"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "is damaged"),
        (lambda f: (f / "more.bin").write_bytes(b"x"), "is damaged"),
        (lambda f: (f / "rankcast_release.json").unlink(), "holds no adapter that rankcast edge"),
        (lambda f: (f / "rankcast_release.json").write_text("[]"), "holds no adapter"),
        (config_with(use_dora=True), "use_dora True, which vLLM cannot serve"),
        (config_with(bias="all"), "bias 'all', which vLLM cannot serve"),
        (config_with(lora_bias=True), "lora_bias True"),
        (config_with(modules_to_save=["score"]), r"modules_to_save \['score'\].*format merged"),
        (config_with(task_type="SEQ_CLS"), "task_type 'SEQ_CLS', which vLLM cannot serve"),
        (config_with(target_parameters=["experts.w"]), "target_parameters"),
        (config_with(peft_type="IA3"), "peft_type 'IA3'"),
        (config_with(r="many"), "no readable adapter_config.json"),
    ],
)  # fmt: skip
def test_what_must_not_be_loaded_is_refused_and_the_log_says_why(  # noqa: PLR0917 fixtures
    change: Change, message: str, server: EdgeServer, tmp_path: Path,
    start: Callable[..., ServingModels], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.publish(release(1))
    sync(server, tmp_path)
    change((tmp_path / "adapter" / "current").resolve())
    models = start()
    assert [ask(models) for _ in range(3)] == [404] * 3
    assert (models.requests, models.worker.loads) == ({}, [])
    (record,) = caplog.records  # the same again is not said again
    assert record.levelno == logging.ERROR
    assert caplog.messages[0].startswith("demo is not loaded: ")
    caplog.clear()
    with pytest.raises(DeliveryError, match=message):
        vllm_resolver.DeviceAdapters.of(os.environ).find(BASE_MODEL, "demo")


def test_the_next_sync_writes_a_damaged_adapter_anew(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels]
) -> None:
    server.publish(release(1))
    sync(server, tmp_path)
    other_bytes((tmp_path / "adapter" / "current").resolve())
    models = start()
    assert ask(models) == 404
    sync(server, tmp_path)
    assert ask(models) == 200


def test_adapters_in_another_format_and_heads_are_refused_by_name(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    tensors = random_adapter(0, ((64, 64),), (4,), {"classifier.weight": (2, 64)})
    head = packed(tensors)
    server.publish(replace(head, header=replace(head.header, base=release(1).header.base)))
    result = sync(server, tmp_path / "head")
    assert result.outcome == "rolled-back"
    assert "no modules saved in full, and the adapter has classifier.weight" in result.message
    server.publish(release(1))
    sync(server, tmp_path, WriteAdapter("peft", tmp_path / "adapter"))
    assert read_peft(tmp_path / "adapter" / "current")[0].ranks.max() > 1
    assert ask(start()) == 404
    assert "is of the format 'peft'. Sync with --format vllm." in caplog.text


def test_an_adapter_of_another_base_model_is_refused(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.publish(release(1))
    sync(server, tmp_path)
    same = ("owner/tiny", "/opt/models/Tiny", "/hub/models--owner--tiny/snapshots/0123", "tiny/")
    assert [ask(start(model=model)) for model in same] == [200] * 4
    assert ask(start(model="/opt/models/base")) == 404
    assert "RANKCAST_BASE_MODEL=/opt/models/base" in caplog.text
    assert ask(start(model="/opt/models/base", RANKCAST_BASE_MODEL="/opt/models/base")) == 200
    assert ask(start(model="owner/tiny", RANKCAST_BASE_MODEL="/opt/models/base")) == 404
    server.publish(release(2, name=None), version=2)
    sync(server, tmp_path)
    assert ask(start(model="anything", RANKCAST_BASE_MODEL="")) == 200


def test_a_rank_that_the_server_does_not_take_is_named(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.publish(release(1))
    sync(server, tmp_path)
    assert ask(start(max_rank=1)) == 400  # vLLM itself refuses
    assert ask(start(RANKCAST_MAX_LORA_RANK="1")) == 404
    assert "rank 6, and this vLLM takes up to 1. Start it with --max-lora-rank 6" in caplog.text
    assert ask(start(RANKCAST_MAX_LORA_RANK="6")) == 200


def test_a_damaged_state_does_not_hide_another_device(
    server: EdgeServer, tmp_path: Path, start: Callable[..., ServingModels],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server.publish(release(1))
    one, two = tmp_path / "one", tmp_path / "two"
    sync(server, two)
    (one / "state").mkdir(parents=True)
    (one / "state" / "state.json").write_text("{}")
    models = start(one, two)
    assert (ask(models), caplog.messages) == (200, [])
    assert ask(models, "other") == 404
    assert f"{one / 'state' / 'state.json'} is damaged" in caplog.text


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"RANKCAST_DEVICE_OUTPUT": os.pathsep.join("ab")},
            "names 2 folders and RANKCAST_DEVICE 1",
        ),
        ({"RANKCAST_MAX_LORA_RANK": "many"}, "not 'many'"),
        ({"RANKCAST_MAX_LORA_RANK": "0"}, "not '0'"),
    ],
)
def test_variables_that_make_no_sense_stop_the_server(named: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        vllm_resolver.DeviceAdapters.of({"RANKCAST_DEVICE": "/device"} | named)


def test_the_output_lies_beside_the_state_unless_named() -> None:
    (device,) = vllm_resolver.DeviceAdapters.of({"RANKCAST_DEVICE": "/var/lib/demo"}).devices
    assert device == vllm_resolver.DeviceFolder(
        Path("/var/lib/demo"), Path("/var/lib/demo/adapter")
    )
    assert vllm_resolver.DeviceAdapters.of({}).devices == ()


def test_a_server_that_asks_nobody_is_warned(
    start: Callable[..., ServingModels], caplog: pytest.LogCaptureFixture
) -> None:
    start(VLLM_ALLOW_RUNTIME_LORA_UPDATING="0")
    assert "vLLM asks nobody without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in caplog.text
