"""`rankcast rehearse`: a cloud, devices and links, all real but the air."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import call
from rankcast.codec.container import read_container
from rankcast.delivery.blobs import blob_of
from rankcast.delivery.rehearsal.releases import made_adapter

pytest.importorskip("fastapi")

SHORT = ["--process", "static", "--deadline-s", "1.5", "--every-s", "0.5"]


def rehearsed(capsys: Any, *args: str) -> tuple[int, dict[str, Any]]:
    status, out, err = call("rehearse", *SHORT, *args, "--json", capsys=capsys)
    assert out, err
    return status, json.loads(out)


def test_every_device_ends_with_what_its_link_allows(tmp_path: Path, capsys: Any) -> None:
    work, output, table = tmp_path / "work", tmp_path / "r.json", tmp_path / "r.csv"
    args = ["--devices", "3", "--minutes", "0.2", "--bandwidth-hz", "3e4",
            "--snr-range-db", "-3", "25", "--work", str(work), "--output", str(output),
            "--csv", str(table)]  # fmt: skip
    status, found = rehearsed(capsys, *args)
    assert status == 0
    assert json.loads(output.read_text()) == found
    assert len(table.read_text().splitlines()) == 4
    devices, summary = found["devices"], found["summary"]
    assert [release["version"] for release in found["releases"]] == [1, 2]
    assert summary["with_adapter"] == 3
    assert summary["unexcused"] == []
    assert found["server"]["errors"] == found["server"]["tracebacks"] == 0
    slow, fast = devices[0], devices[2]
    assert slow["mean_bps"] < fast["mean_bps"]
    assert slow["first_usable_s"] > fast["first_usable_s"]
    assert (slow["version"], slow["n_rungs"]) < (fast["version"], fast["n_rungs"])
    assert (fast["version"], fast["n_rungs"]) == (2, fast["of"])
    assert fast["updated_s"] > 0
    for device in devices:
        folder = work / "devices" / f"{device['device']:03d}"
        data = (folder / "adapter" / "current" / "adapter.rcast").read_bytes()
        container = read_container(data, allow_prefix=True)
        assert len(container.chunks) == device["n_rungs"]
        for entry, chunk in zip(container.header.chunks, container.chunks, strict=False):
            assert blob_of(chunk).sha256 == entry.sha256
        assert device["received_bits"] < device["link_bits"]
        assert device["link_bits"] <= device["mean_bps"] * (found["elapsed_s"] + 1.0)


def test_faults_are_survived_and_told(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "a.rcast"
    file.write_bytes(made_adapter(5).to_bytes())
    args = [str(file), "--devices", "4", "--minutes", "0.2", "--resets", "0.5", "--restart-server",
            "--snr-range-db", "5", "10", "--radio", "--seed", "1"]  # fmt: skip
    status, found = rehearsed(capsys, *args)
    assert status == 0
    assert found["summary"]["with_adapter"] == 4
    assert found["summary"]["resets"] > 0
    assert found["server"]["starts"] == 2
    assert found["link"]["planned_with"] == "radio"


def test_it_loads_no_torch() -> None:
    watched = (
        "import sys\n"
        "from rankcast.cli import main\n"
        "try: main(['rehearse', '--devices', '1', '--minutes', '0.06', '--deadline-s', '1'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", watched], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "with an adapter" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_an_interruption_prints_what_there_was(tmp_path: Path) -> None:
    work = tmp_path / "work"
    args = ["rehearse", "--devices", "2", "--minutes", "5", *SHORT, "--work", str(work)]
    process = subprocess.Popen(  # noqa: S603 - our own words, no shell
        [sys.executable, "-c", "from rankcast.cli import main; main()", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    log = work / "server.log"
    while process.poll() is None and not (log.exists() and "/v1/plan" in log.read_text()):
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping after" in err
    assert "with an adapter" in out
    assert "Shutting down" in log.read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--devices", "0"], "at least one device"),
        (["--resets", "2"], "probability"),
        (["--process", "trace"], "--trace FILE"),
        (["nothing.rcast"], "cannot be read"),
        (["a.rcast", "--store", "b"], "not both"),
        (["--store", "nowhere"], ""),
        (["--deadline-s", "0"], "deadline"),
    ],
)
def test_options_that_make_no_sense(args: list[str], words: str, capsys: Any) -> None:
    status, _, err = call("rehearse", *args, capsys=capsys)
    assert (status, words in err) == (2, True), err
