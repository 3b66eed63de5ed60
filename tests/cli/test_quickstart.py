"""`rankcast quickstart`: all of it, its commands by hand, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from helpers.commands import Call, fresh_python
from helpers.native_folders import save_run
from helpers.servers import ask
from helpers.waiting import wait_until
from rankcast.cli import quickstart
from rankcast.codec.formats.peft import read_peft
from rankcast.simulation.made_up import write_adapter, write_base_model

FAST = ("--port", "0", "--rate-bps", "1e6")
PROGRAMS = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def is_closed(address: str) -> bool:
    """Return whether nobody listens there."""
    host, port = address.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.contextmanager
def started(line: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command as a shell does."""
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S602 a line as it was printed
            f"exec {line}", shell=True, cwd=folder, env=PROGRAMS, stdin=subprocess.DEVNULL,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def says(process: subprocess.Popen[bytes], log: Path, words: str) -> str:
    """Wait until a program has said something, and return all that it said."""
    wait_until(lambda: words in log.read_text() or process.poll() is not None)
    text = log.read_text()
    assert words in text
    return text


def test_it_delivers_an_adapter_and_its_update_without_torch(tmp_path: Path) -> None:
    words = ["quickstart", "--folder", str(tmp_path / "q"), *FAST, "--json"]
    code = f"""
import sys
from rankcast.cli.main import main
try:
    main({words!r})
finally:
    assert not {{"torch", "transformers", "peft", "huggingface_hub"}} & set(sys.modules)
"""
    plain = json.loads(fresh_python(code).stdout)
    assert Path(plain["folder"]) == tmp_path / "q"
    assert read_peft(Path(plain["adapter"]))[0].ranks.max() == 8
    syncs = [step["output"] for step in plain["steps"] if " edge sync " in step["command"]]
    assert [sync["outcome"] for sync in syncs] == ["activated", "activated"]
    assert [sync["update"] for sync in syncs] == ["none", "applied"]
    assert syncs[1]["release"]["version"] == 2
    assert 0 < 3 * syncs[1]["n_bytes"] < syncs[0]["n_bytes"]
    assert Path(plain["operator_token"]).read_text().startswith("rc_")
    assert is_closed(plain["server"])
    assert is_closed(plain["link"])


def test_the_printed_commands_work_as_they_stand(tmp_path: Path, call: Call) -> None:
    script = call.ok("quickstart", "--folder", str(tmp_path / "by hand"), *FAST, "--by-hand")
    move, *lines = (x for x in script.splitlines() if x and not x.startswith("#"))
    folder, printed = Path(shlex.split(move)[1]), []
    with contextlib.ExitStack() as stack:
        for number, line in enumerate(lines):
            if line.startswith(("rankcast serve", "rankcast link")):
                log = tmp_path / f"{number}.log"
                says(stack.enter_context(started(line, folder, log)), log, "Listening on http")
                continue
            done = subprocess.run(  # noqa: S602 a line as it was printed
                line, shell=True, cwd=folder, env=PROGRAMS, check=False, capture_output=True,
                text=True,
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            printed.append(done.stdout)
    assert len(printed) == 10
    assert "An update of" in printed[-2]
    assert "PeftModel.from_pretrained(model, 'device/adapter/current')" in printed[-2]
    assert "demo, active: version 2" in printed[-1]


def test_it_serves_on_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """And the commands that it has shown work in another terminal meanwhile."""
    log, folder = tmp_path / "log", tmp_path / "q"
    line = shlex.join(("rankcast", "quickstart", "--folder", str(folder), *FAST))
    with started(f"{line} --keep-serving yes", tmp_path, log) as process:
        text = says(process, log, "Serving until Ctrl-C")
        shown = [x.removeprefix("$ ") for x in text.splitlines() if x.startswith("$ ")]
        move, sync = shown[0], next(x for x in shown if " edge sync " in x)
        again = subprocess.run(  # noqa: S602 lines as they were printed
            f"{move} && {sync}", shell=True, env=PROGRAMS, check=True, capture_output=True,
            text=True, cwd=tmp_path,
        )  # fmt: skip
        assert again.stdout.startswith("up-to-date")
        serve = shlex.split(next(x for x in shown if x.startswith("rankcast serve")))
        port = int(serve[serve.index("--port") + 1])
        token = (folder / "operator.token").read_text().strip()
        status, body = ask(port, "GET", "/v1/devices", token=token)
        assert (status, b"device-1" in body) == (200, True)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert is_closed(f"http://127.0.0.1:{port}")
    assert (folder / "device" / "adapter" / "current").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    log, folder = tmp_path / "log", tmp_path / "q"
    line = shlex.join(("rankcast", "quickstart", "--folder", str(folder), "--port", "0"))
    with started(f"{line} --rate-bps 800", tmp_path, log) as process:  # minutes for a file
        text = says(process, log, "8. The device")
        process.send_signal(number)
        assert process.wait() == 130
    assert "Traceback" not in log.read_text()
    assert not folder.exists()
    addresses = [x.split()[2].rstrip(";,") for x in text.splitlines() if x.startswith("Listening")]
    assert len(addresses) == 2
    assert all(map(is_closed, addresses))


def test_what_is_in_the_way_is_named(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, new = tmp_path / "full", tmp_path / "new"
    full.mkdir()
    (full / "mine").touch()
    said = call.refused("quickstart", "--folder", str(full), *FAST)
    assert f"rm -r {full}" in said
    assert "--folder" in said
    assert (full / "mine").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = call.refused("quickstart", "--folder", str(new), "--port", port)
    assert f"Port {port}" in said
    assert "--port 0" in said
    assert "rankcast" in call.refused("quickstart", str(full), "--folder", str(new), *FAST)
    monkeypatch.setattr(quickstart, "find_spec", lambda name: name != "uvicorn" or None)
    assert "pip install 'rankcast[serve]'" in call.refused("quickstart", "--folder", str(new))
    assert not new.exists()
    assert find_spec("uvicorn") is not None


def test_it_takes_an_adapter_of_ones_own(tmp_path: Path, call: Call) -> None:
    write_base_model(tmp_path / "base", 0)
    write_adapter(tmp_path / "lora", 1)
    words = ("quickstart", str(tmp_path / "lora"), "--folder", str(tmp_path / "q"), *FAST)
    assert "--base-model" in call.refused(*words)
    script = call.ok(*words, "--base-model", str(tmp_path / "base"), "--by-hand")
    assert f"rankcast pack {tmp_path / 'lora'} -o first.rcast --base-model {tmp_path}" in script
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == ["next"]
    run = save_run(tmp_path / "lora", tmp_path / "run", "ab" * 32)
    script = call.ok("quickstart", str(run), "--folder", str(tmp_path / "r"), *FAST, "--by-hand")
    assert script.count(f"--base-fingerprint {'ab' * 32}") == 2
    call.ok("pack", str(tmp_path / "r" / "next"), "-o", str(tmp_path / "next.rcast"))
