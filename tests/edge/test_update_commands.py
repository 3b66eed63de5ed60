"""From two trainings to a device by their difference: pack, publish, serve, edge sync."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.codec import random_adapter
from helpers.commands import Call
from helpers.servers import served
from rankcast.codec.container import load
from rankcast.codec.formats.peft import write_peft
from rankcast.codec.tensors import AdapterTensors, Factors

pytest.importorskip("fastapi")

BASE = "0" * 16


def training(n: int) -> AdapterTensors:
    """Return an adapter that goes on training, whose components come in another order each time."""
    first, more = (random_adapter(seed, ((512, 256), (256, 512)), (4, 4)) for seed in (0, n))
    rng = np.random.default_rng(n)
    factors = []
    for f, g in zip(first.factors, more.factors, strict=True):
        q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        left, right = (f.left + 0.02 * g.left) @ q, q.T @ (f.right + 0.02 * g.right)
        factors.append(Factors(left.astype(np.float32), right.astype(np.float32)))
    return replace(first, factors=tuple(factors))


def test_a_device_takes_the_difference(tmp_path: Path, call: Call) -> None:
    signing = ["--store", str(tmp_path / "store"), "--keys", str(tmp_path / "keys")]
    device = tmp_path / "device"
    call.ok("keys", "init", *signing)
    files: list[Path] = []

    def publish(n: int, *options: str) -> dict:
        folder = write_peft(training(n), tmp_path / f"lora-{n}", base_model_name="tiny")
        files.append(tmp_path / f"{n}.rcast")
        before = ["--previous", str(files[-2])] if files[1:] else []
        call.ok("pack", str(folder), "-o", str(files[-1]), *before)
        file = load(files[-1])
        base = replace(file.header.base, fingerprint=BASE)
        replace(file, header=replace(file.header, base=base)).save(files[-1])
        args = ["publish", str(files[-1]), "--name", "demo", *signing, *options]
        return json.loads(call.ok(*args, "--json"))

    def sync() -> dict:
        root = ["--root", str(tmp_path / "store" / "metadata" / "root.json")]
        args = ["edge", "sync", "--server", f"http://127.0.0.1:{port}", "--adapter", "demo",
                "--folder", str(device), "--base-fingerprint", BASE, "--format", "rcast",
                "--json", *root]  # fmt: skip
        result = json.loads(call.ok(*args))
        active = device / "adapter" / "current" / "adapter.rcast"
        assert active.read_bytes() == files[-1].read_bytes()
        return result

    assert publish(0)["updates"] == []
    with served(tmp_path, "--no-auth") as (_, port, _):
        assert sync()["update"] == "none"
        for n in (1, 2):
            (made,) = publish(n)["updates"]
            assert made["whole_bytes"] == files[-1].stat().st_size
            result = sync()
            assert (result["outcome"], result["update"]) == ("activated", "applied")
            assert [result["n_bytes"]] == made["bytes"]
            assert result["n_bytes"] < 0.5 * made["whole_bytes"]
        assert publish(3, "--no-updates")["updates"] == []
        assert sync()["update"] == "none"
        assert len(publish(4, "--update-from", "1", "4")["updates"][0]["bytes"]) == 2
        assert sync()["update"] == "applied"
    out = call.refused("publish", str(files[0]), "--name", "demo", *signing, "--update-from", "9")
    assert "no version 9" in out
    out = call.ok("publish", str(files[0]), "--name", "demo", *signing)
    assert "devices with an older version need" in out


def test_a_previous_file_excludes_a_quality(tmp_path: Path, call: Call) -> None:
    folder = write_peft(training(0), tmp_path / "lora", base_model_name="tiny")
    call.ok("pack", str(folder), "-o", str(tmp_path / "a.rcast"))
    args = ["pack", str(folder), "-o", str(tmp_path / "b.rcast"), "--previous"]
    err = call.refused(*args, str(tmp_path / "a.rcast"), "--quality", "fine")
    assert "give no quality or budget" in err
    other = write_peft(random_adapter(0), tmp_path / "other", base_model_name="tiny")
    call.ok("pack", str(other), "-o", str(tmp_path / "c.rcast"))
    assert "no version of it" in call.refused(*args, str(tmp_path / "c.rcast"))
