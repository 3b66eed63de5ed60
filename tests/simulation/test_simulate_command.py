"""`rankcast simulate`: a cloud, devices and links, all real but the air."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Call, fresh_python
from helpers.waiting import wait_until
from rankcast.cli.simulate import Simulate
from rankcast.codec.container import read_container
from rankcast.simulation.releases import least_bits, made_up_adapter
from rankcast.simulation.results import SimulationResult
from rankcast.simulation.run import Simulation
from rankcast.simulation.settings import SimulationSettings

pytest.importorskip("fastapi")

SHORT = ["--process", "static", "--deadline-s", "1.5", "--every-s", "0.5"]
DURATION_S = 3600.0
"""Long enough for any machine: these tests stop as soon as they have seen what they wait for."""


def simulate_until(
    done: Callable[[Simulation], bool], command: Simulate, work: Path, **settings: Any
) -> SimulationResult:
    """Simulate what a command says until something is seen."""
    name, releases = command.releases()
    links = command.links(sum(len(chunk) for chunk in releases[0][0].chunks))
    simulation = Simulation(
        SimulationSettings(
            name, DURATION_S, command.deadline_s, command.every_s, links.median_bps,
            update_at=3.0 / DURATION_S, resets=command.resets, seed=command.seed, **settings,
        ),
        links, releases, work,
    )  # fmt: skip
    return simulation.run(lambda: done(simulation))


def test_every_device_ends_with_what_its_link_allows(tmp_path: Path) -> None:
    def done(simulation: Simulation) -> bool:
        devices = simulation.result().devices
        newest = [device.version == 2 for device in devices]
        return bool(devices) and all(d.version for d in devices) and newest[2] and is_whole(devices)

    def is_whole(devices: Any) -> bool:
        return devices[2].n_chunks == devices[2].n_file_chunks

    command = Simulate(
        devices=3, process="static", deadline_s=1.5, every_s=0.5, bandwidth_hz=3e4,
        snr_range_db=(-3.0, 25.0),
    )  # fmt: skip
    began_s = time.monotonic()
    result = simulate_until(done, command, tmp_path)
    at_most_s = time.monotonic() - began_s  # longer than the links were there
    assert result.succeeded
    assert [x.manifest.version for x in result.releases] == [1, 2]
    assert result.server is not None
    assert result.server.n_errors == result.server.tracebacks == 0
    summary = result.summary()
    assert (summary["with_adapter"], summary["unexcused"]) == (3, [])
    rates = [device.mean_bps for device in result.devices]
    assert rates == sorted(set(rates))
    fast = result.devices[2]
    assert fast.updated_s is not None
    assert fast.updated_s > 0
    needed_bits = least_bits(result.releases[0].manifest) / 2  # its overhead is generous
    for device in result.devices:
        folder = tmp_path / "devices" / f"{device.device:03d}"
        data = (folder / "adapter" / "current" / "adapter.rcast").read_bytes()
        container = read_container(data, allow_prefix=True)
        assert len(container.chunks) >= device.n_chunks
        for entry, chunk in zip(container.header.chunks, container.chunks, strict=False):
            assert entry.fits(chunk)
        assert device.received_bits < device.link_bits
        assert device.link_bits <= device.mean_bps * (at_most_s + 1.0)
        assert device.first_usable_s is not None
        assert device.first_usable_s >= needed_bits / device.mean_bps


def test_faults_are_survived_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.rcast"
    made_up_adapter(5).save(file)

    def done(simulation: Simulation) -> bool:
        summary = simulation.result().summary()
        is_restarted = simulation._cloud.n_starts == 2
        return is_restarted and summary["with_adapter"] == 4 and summary["resets"] > 0

    command = Simulate(
        adapter=file, devices=4, process="static", deadline_s=1.5, every_s=0.5, resets=0.5,
        snr_range_db=(5.0, 10.0), radio=True, seed=1,
    )  # fmt: skip
    result = simulate_until(done, command, tmp_path / "work", restart_at=4.0 / DURATION_S)
    assert result.succeeded
    assert result.server is not None
    assert result.server.starts == 2


def test_everything_is_written_and_printed(tmp_path: Path, call: Call) -> None:
    output, table = tmp_path / "r.json", tmp_path / "r.csv"
    args = [*SHORT, "--devices", "2", "--minutes", "0.05", "--radio", "--restart-server",
            "--json", "--output", str(output), "--csv", str(table)]  # fmt: skip
    status, out, err = call("simulate", *args)
    assert out, err
    plain = json.loads(out)
    assert json.loads(output.read_text()) == plain
    assert len(table.read_text().splitlines()) == 3
    assert plain["link"]["planned_with"] == "radio"
    assert plain["settings"]["restart_at"] == 0.75
    failed = plain["summary"]["unexcused"] or plain["unended"] or plain["server"]["tracebacks"]
    assert status == (1 if failed else 0)


def test_it_loads_no_torch() -> None:
    watched = (
        "import sys\n"
        "from rankcast.cli.main import main\n"
        "try: main(['simulate', '--devices', '1', '--minutes', '0.02', '--deadline-s', '1'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = fresh_python(watched, check=False)
    assert "with an adapter" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_an_interruption_prints_what_there_was(tmp_path: Path) -> None:
    work = tmp_path / "work"
    args = ["simulate", "--devices", "2", "--minutes", "60", *SHORT, "--work", str(work)]
    process = subprocess.Popen(  # noqa: S603 - our own words, no shell
        [sys.executable, "-m", "rankcast", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    log = work / "server.log"

    def has_planned() -> bool:
        return log.exists() and "/v1/plan" in log.read_text()

    wait_until(lambda: process.poll() is not None or has_planned())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "stopping after" in err
    assert "with an adapter" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--devices", "0"], "at least one device"),
        (["--resets", "2"], "probabilities"),
        (["--process", "trace"], "--trace FILE"),
        (["--process", "jakes", "--fading", "nakagami"], "rayleigh or rician"),
        (["nothing.rcast"], "cannot be read"),
        (["a.rcast", "--store", "b"], "not both"),
        (["--store", "nowhere"], ""),
        (["--deadline-s", "0"], "deadline"),
    ],
)
def test_options_that_make_no_sense(args: list[str], words: str, call: Call) -> None:
    assert words in call.refused("simulate", *args)
