"""A device with a GGUF, llama.cpp's own server, and nothing else: releases become its answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.commands import Call
from helpers.gguf_bases import VOCABULARY, tiny_causal_model, write_base
from helpers.llama_cpp import LlamaServer, llama_server, needs_llama_cpp
from helpers.llama_device import (
    KIND,
    SAME,
    Cloud,
    Device,
    alone,
    answer,
    distance,
    new_cloud,
    says,
    trained,
)
from helpers.programs import free_port
from helpers.servers import files_over_http

pytestmark = pytest.mark.usefixtures("_llama_cpp")


@pytest.fixture(scope="session", autouse=True)
def _llama_cpp() -> None:
    needs_llama_cpp()


@pytest.fixture
def cloud(tmp_path: Path, call: Call) -> Cloud:
    return new_cloud(tmp_path, call)


@pytest.fixture
def device(cloud: Cloud, call: Call) -> Iterator[Device]:
    with files_over_http(cloud.root / "store") as url:
        yield Device(cloud, url, call)


def test_two_releases_change_the_answers_of_one_process(cloud: Cloud, device: Device) -> None:
    told = cloud.publish(1, "--runs-on", str(cloud.gguf))
    assert (told["proof"], [x["quantisation"] for x in told["runs_on"]]) == (True, ["F16"])
    with device.serve() as server:
        assert distance(alone(), says(server)) < SAME
        for seed in (1, 2):
            if seed == 2:
                told = cloud.publish(2)  # copies are kept from release to release
                assert len(told["runs_on"]) == 1
            out = device.sync(server)
            assert out["outcome"] == "activated", out["message"]
            assert "F16 copy of" in out["message"]
            expected = cloud.expected(seed)
            assert distance(expected, says(server)) < SAME
            assert distance(expected, alone()) > 100 * SAME
        assert server.process.poll() is None
        out = device.sync(server)
        assert (out["outcome"], "had lost" in out["message"]) == ("up-to-date", False)


PROMPTS = np.random.default_rng(0).integers(3, VOCABULARY, (16, 12)).tolist()


FINELY = ("--budget-bits", "100000")
"""Of random weights, which say nothing twice, even the quality `fine` costs half a nat."""


def divergence(model: Any, server: LlamaServer) -> float:
    """Return the mean Kullback-Leibler divergence of a server from a model [nats]."""
    return float(np.mean([distance(answer(model, p), says(server, p)) for p in PROMPTS]))


@pytest.mark.parametrize(("kind", "std"), [("Q8_0", 0.1), ("Q4_0", 0.2)])
def test_a_quantised_base_answers_with_the_adapter_as_closely_as_without(
    kind: str, std: float, tmp_path: Path, call: Call
) -> None:
    """Against transformers with the adapter as it was trained, not as it was coded: the divergence
    at most doubles from that of the two bases, while the adapter changes ten times as much. What
    changes answers a thousand times as much changes what rounding does to them, too."""
    cloud = new_cloud(tmp_path, call, gguf.GGMLQuantizationType[kind])
    told = cloud.publish(1, "--runs-on", str(cloud.gguf), std=std, packing=FINELY)
    assert (told["proof"], [x["quantisation"] for x in told["runs_on"]]) == (True, [kind])
    base = tiny_causal_model(KIND)
    with files_over_http(tmp_path / "store") as url, Device(cloud, url, call).serve() as server:
        between_bases = divergence(base, server)
        out = Device(cloud, url, call).sync(server)
        assert out["outcome"] == "activated", out["message"]
        assert f"{kind} copy of" in out["message"]
        found, changed = divergence(trained(1, std=std), server), divergence(base, server)
        assert found <= 2 * between_bases
        assert changed > 10 * between_bases
        assert server.process.poll() is None


def test_a_server_that_was_killed_gets_its_adapter_back_and_the_device_says_so(
    cloud: Cloud, device: Device
) -> None:
    """Its supervisor starts it again, with the scales of its command line: no adapter counts."""
    cloud.publish(1, "--runs-on", str(cloud.gguf))
    expected, port = cloud.expected(1), free_port()
    with device.serve(port=port) as server:
        label = device.sync(server)["message"].split()[0]
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        status, out, err = device.call(*device.words(server))
        assert (status, "does not answer" in out + err) == (2, True)
        error = device.state.last_error
        assert error is not None
        assert "Is it running?" in error.message
    with device.serve("again", port=port) as server:
        assert distance(alone(), says(server)) < SAME
        out = device.sync(server)
        assert out["outcome"] == "up-to-date"
        assert out["message"].startswith(f"The engine had lost {label}, or its files were changed")
        assert distance(expected, says(server)) < SAME
        state = device.state
        assert (state.last_error, state.phase) == (None, "idle")
        assert [x.kind for x in state.history][-2:] == ["failed", "restored"]
        out = device.sync(server)
        assert (out["outcome"], "had lost" in out["message"]) == ("up-to-date", False)
        assert [x.kind for x in device.state.history][-1] == "restored"


def test_what_must_not_be_active_leaves_the_answers_as_they_were(
    cloud: Cloud, device: Device
) -> None:
    """Changed bytes, an adapter of another shape or architecture, a proof of another adapter."""
    cloud.publish(1, "--runs-on", str(cloud.gguf))
    with device.serve() as server:
        device.sync(server)
        first = says(server)
        proof = cloud.active_manifest().proof

        def refused(why: str) -> None:
            status, out, err = device.call(*device.words(server))
            assert (status != 0, why in out + err) == (True, True), out + err
            check(server, device, first)

        cloud.sign(trained(2), proof)
        refused("as it was published")
        cloud.sign(trained(3, intermediate_size=128), None)
        refused("takes")
        cloud.sign(trained(4, "gpt2"), None)
        refused("llama.cpp has no name for")
        cloud.publish(5)
        blob = cloud.active_manifest().files[0].blobs()[-1]
        for path, why in (
            (cloud.manifest_file, "stays in use"),
            (cloud.store.blob_path(blob.sha256), "ask whoever published"),
        ):
            data = path.read_bytes()
            path.write_bytes(bytes([*data[:-2], data[-2] ^ 1, data[-1]]))
            refused(why)
            path.write_bytes(data)
        assert device.sync(server)["outcome"] == "activated"
        assert distance(cloud.expected(5), says(server)) < SAME


def check(server: LlamaServer, device: Device, first: NDArray[np.float64]) -> None:
    """The first release answers, and the state says so."""
    np.testing.assert_allclose(says(server), first, atol=1e-5)
    assert server.process.poll() is None
    active = device.state.active
    assert active is not None
    assert active.version == 1


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
        assert distance(cloud.expected(1), says(server)) < SAME


def test_nor_to_bring_it_into_a_running_server(cloud: Cloud, device: Device) -> None:
    cloud.publish(1, "--runs-on", str(cloud.gguf))
    with device.serve() as server:
        for outcome in ("activated", "up-to-date"):
            command = [sys.executable, "-c", _LIGHTLY, *device.words(server)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["outcome"] == outcome
        assert distance(cloud.expected(1), says(server)) < SAME
