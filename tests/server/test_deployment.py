"""docs/deploy.md, docs/operate.md and the files of docs/deploy: they parse, and what they run runs.

Neither systemd nor containers are needed: the commands are taken out of the files as they stand,
and only folders, programs and ports become those of the test.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi")

from helpers.commands import Call
from helpers.native_folders import save_run
from helpers.servers import ask
from helpers.waiting import wait_until
from rankcast.cli.main import parse
from rankcast.cli.serve import Serve
from rankcast.codec.formats.peft import read_peft
from rankcast.packaging.base_model import base_fingerprint_of_folder
from rankcast.simulation.cloud import ServerProcess
from rankcast.simulation.made_up import write_adapter, write_base_model, write_next_adapter

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service")) + sorted(DEPLOY.glob("*.timer"))
INSTALLED = "/opt/rankcast/bin/rankcast"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
ELSEWHERE = ("--vllm-url", "--llama-url", "vllm", "--mqtt", "--runs-on", "prepare")
"""Words of commands that need a broker, a language model or another server; others test these."""
NOTHING: Mapping[str, str] = {}


def unit(path: Path) -> configparser.ConfigParser:
    """Return a unit, in which lines that end in a backslash go on."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(re.sub(r"\\\n\s*", "", path.read_text("utf-8")))
    return parser


def started_by(path: Path) -> list[str]:
    """Return the words of the command of a unit, without the program."""
    program, *words = shlex.split(unit(path)["Service"]["ExecStart"])
    assert program == INSTALLED
    return words


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def moved(words: list[str], folders: dict[str, Path]) -> list[str]:
    """Return a command with other folders."""
    for old, new in folders.items():
        words = [word.replace(old, str(new)) for word in words]
    return words


@pytest.fixture
def folder(tmp_path: Path, call: Call) -> Path:
    """Return a folder with what docs/deploy.md has after its first section."""
    write_base_model(tmp_path / "models" / "minilm", 0)
    write_adapter(tmp_path / "my-peft-lora", 1)
    return tmp_path


def follow(
    page: str, section: str, folder: Path, call: Call, changes: Mapping[str, str] = NOTHING
) -> list[str]:
    """Run the commands of a section of a document, and return what they print."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (part,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return [out for line in "".join(blocks).replace("\\\n", " ").splitlines()
            if (out := type_in(line, folder, call)) is not None]  # fmt: skip


def type_in(line: str, folder: Path, call: Call) -> str | None:
    """Run a line; None for one that is left out."""
    words = shlex.split(line.replace("~/", f"{folder}/").replace("/media/", f"{folder}/media/"))
    if words[:1] == ["rankcast"] and not set(ELSEWHERE) & set(words):
        return call.ok(*words[1:])
    if words[:1] in (["mkdir"], ["cp"]):
        done = subprocess.run(  # noqa: S602 our own documents
            line.replace("~/", f"{folder}/"), shell=True, check=True, cwd=folder,
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout
    return None


@pytest.fixture
def published(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder after the first section of docs/deploy.md was typed."""
    monkeypatch.chdir(folder)
    printed = follow("deploy.md", r"1\. Keys and a first release", folder, call)
    assert len(printed) == 5
    assert len(list((folder / "online-keys").iterdir())) == 2
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[ServerProcess]:
    """Run the server as its unit does, at any port."""
    words = moved(started_by(DEPLOY / "rankcast.service"), {"/srv/rankcast": published})
    running = ServerProcess([*words[1:], "--port", "0"], published / "log")
    yield running
    running.kill()


def test_units_are_whole() -> None:
    assert len(UNITS) == 4
    for path in UNITS:
        parsed = unit(path)
        assert f"/etc/systemd/system/{path.name}" in path.read_text("utf-8").splitlines()[0]
        assert parsed["Unit"]["Description"]
        if path.suffix == ".timer":
            assert path.with_suffix(".service") in UNITS
            assert parsed["Install"]["WantedBy"] == "timers.target"
            continue
        service = parsed["Service"]
        assert (service["User"], service["NoNewPrivileges"]) == ("rankcast", "yes")
        assert service["ProtectSystem"] == "strict"
        assert callable(parse(started_by(path)).run)
    serve = unit(DEPLOY / "rankcast.service")["Service"]
    assert float(serve["TimeoutStopSec"]) > Serve.grace_s
    assert serve["WorkingDirectory"] == f"/var/lib/{serve['StateDirectory']}"
    refresh = unit(DEPLOY / "rankcast-refresh.service")["Service"]
    assert refresh["ReadWritePaths"] in refresh["ExecStart"]


def test_a_device_follows_the_server_by_their_units(
    published: Path, server: ServerProcess, call: Call
) -> None:
    call.ok("devices", "add", "desk", "--operator")  # in the server's folder
    token = call.ok("devices", "add", "pi-1", "--database", f"sqlite:///{published}/rankcast.db")
    (published / "token").write_text(token)
    assert ask(server.port, "GET", "/readyz") == (200, b"ok, 1 adapters\n")
    words = moved(started_by(DEPLOY / "rankcast-sst2.service"), {
        "https://adapters.example": Path(f"http:/127.0.0.1:{server.port}"),
        "/etc/rankcast/root.json": published / "store" / "metadata" / "root.json",
        "/etc/rankcast": published, "/opt": published, "/var/lib/rankcast": published,
    })  # fmt: skip
    words = [word.replace("http:/127", "http://127") for word in words]
    log = published / "device.log"
    with log.open("wb") as out:
        device = subprocess.Popen(  # noqa: S603 our own words, no shell
            [sys.executable, "-m", "rankcast", *words], stdout=out, stderr=out
        )
    try:
        wait_until(lambda: log.read_text() or device.poll() is not None)
    finally:
        device.terminate()
        device.wait()
    first = json.loads(log.read_text().splitlines()[0])
    assert first["outcome"] == "activated"
    assert read_peft(Path(first["place"]))[0].ranks.max() == 8
    assert Path(first["place"]).parent == published / "sst2" / "adapter"
    assert "active: version 1" in call.ok("edge", "status", "--folder", str(published / "sst2"))
    refresh = moved(started_by(DEPLOY / "rankcast-refresh.service"), {
        "/etc/rankcast/online-keys": published / "online-keys", "/srv/rankcast": published,
    })  # fmt: skip
    assert "timestamp" in call.ok(*refresh)


def test_lines_for_root_are_understood() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8").replace("\\\n", " ")
    found = re.findall(rf"^sudo -u rankcast {INSTALLED} (.+)$", text, re.MULTILINE)
    assert len(found) == 4
    databases = set()
    for line in found:
        command = parse(shlex.split(line))
        databases |= {getattr(command, "database", None)} - {None}
    where = unit(DEPLOY / "rankcast.service")["Service"]["WorkingDirectory"]
    assert databases == {f"sqlite:///{where}/rankcast.db"}


def test_the_image_has_no_keys_and_no_root() -> None:
    found = instructions()
    stages = [n for n, (word, _) in enumerate(found) if word == "FROM"]
    last = dict(found[stages[-1] :])
    assert int(last["USER"]) > 0
    assert [word for word, _ in found[stages[-1] :]].index("USER") < len(found[stages[-1] :]) - 1
    assert "/readyz" in last["HEALTHCHECK"]
    assert json.loads(last["VOLUME"]) == [last["WORKDIR"]]
    assert "ADD" not in dict(found)
    copied = [rest.split() for word, rest in found if word == "COPY"]
    taken = {name for *names, _ in copied for name in names if not names[0].startswith("--from")}
    assert taken == {"pyproject.toml", "README.md", "LICENSE", "src"}
    kept_out, *let_in = [
        line for line in (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]  # fmt: skip
    assert kept_out == "*"
    assert {line[1:] for line in let_in if line.startswith("!")} == taken
    assert json.loads(last["ENTRYPOINT"]) == ["rankcast"]
    assert isinstance(parse(json.loads(last["CMD"])), Serve)


def test_what_is_copied_is_enough_to_build(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel"], cwd=tmp_path,
        check=True, capture_output=True,
    )  # fmt: skip
    assert list((tmp_path / "dist").glob("rankcast-*.whl"))


def test_the_containers_are_locked_down() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["image"] == "rankcast"
    server = services["server"]
    context = (DEPLOY / server["build"]["context"]).resolve()
    assert (context / server["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    volumes = dict(v.rsplit(":", 1) if v.endswith(":ro") else (v, "") for v in server["volumes"])
    assert sorted(volumes.values()) == ["", "ro"]  # the database, and the store
    assert "keys" not in json.dumps(server)
    assert [v for v in services["refresh"]["volumes"] if "KEYS" in v and v.endswith(":ro")]
    assert services["refresh"]["network_mode"] == "none"
    assert int(server["stop_grace_period"].removesuffix("s")) > Serve.grace_s
    assert {v.split(":")[0] for v in server["volumes"]} & set(COMPOSE["volumes"])
    assert server["ports"] == ["127.0.0.1:8080:8080"]


def test_the_commands_of_the_containers_run(published: Path, call: Call) -> None:
    server, refresh = COMPOSE["services"]["server"], COMPOSE["services"]["refresh"]
    folders = {"/srv/rankcast": published, "/run/keys": published / "online-keys"}
    words = moved(server["command"], folders)
    check = json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])
    assert check[0] == "python"
    running = ServerProcess([*words[1:], "--port", "0"], published / "log")
    try:
        healthy = [word.replace(":8080/", f":{running.port}/") for word in check[1:]]
        assert healthy != check[1:]
        asked = [sys.executable, *healthy]
        wait_until(lambda: subprocess.run(asked, check=False).returncode == 0)  # noqa: S603
        assert call.ok("devices", "add", "pi-1").startswith("rc_")  # as `exec server` does
    finally:
        running.kill()
    assert subprocess.run(asked, check=False, capture_output=True).returncode != 0  # noqa: S603
    (script,) = refresh["command"]
    (line,) = re.findall(r"rankcast (keys refresh [^;]+);", script)
    before = (published / "store" / "metadata" / "timestamp.json").read_bytes()
    call.ok(*moved(shlex.split(line), folders))
    assert (published / "store" / "metadata" / "timestamp.json").read_bytes() != before


def test_operating_a_store_goes_as_it_is_written(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the page but those that need a broker, a language model or its server."""
    monkeypatch.chdir(folder)
    follow("operate.md", "The key ceremony", folder, call)
    (folder / "online-keys").mkdir()
    for role in ("snapshot", "timestamp"):
        for path in (folder / "keys").glob(f"{role}-*"):
            shutil.copy(path, folder / "online-keys")
    roots = sorted((folder / "keys").glob("root-*"))
    for n, path in enumerate(roots, 1):
        medium = folder / "media" / f"root-{n}"
        medium.mkdir(parents=True)
        shutil.move(path, medium)
    assert "timestamp" in "".join(follow("operate.md", "Every day", folder, call))

    write_next_adapter(folder / "my-peft-lora", folder / "next-lora", 2)
    fingerprint = base_fingerprint_of_folder(folder / "models" / "minilm", "CAUSAL_LM")
    save_run(folder / "next-lora", folder / "runs" / "next", fingerprint)
    for name, quality in (("fine", "good"), ("small", "small")):
        options = ("-o", f"{name}.rcast", "--quality", quality, "--base-model", "models/minilm")
        call.ok("pack", "my-peft-lora", *options)
    printed = "".join(follow("operate.md", "Publishing", folder, call))
    assert "sst2 version 2 is active" in printed
    assert "devices with an older version need" in printed

    replaced = roots[0].stem.removeprefix("root-")
    printed = "".join(
        follow("operate.md", "Replacing keys", folder, call, {" 1f0c": f" {replaced}"})
    )
    assert f"Destroy root-{replaced}.pem" in printed
    assert "Destroy timestamp-" in printed
