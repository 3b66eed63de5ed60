"""`rankcast edge`, and vLLM as the place of adapters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Call
from helpers.edge import BASE, EdgeServer, FileSource, client_of, release_of
from helpers.waiting import in_background
from rankcast.cli.common import LogFormat
from rankcast.cli.edge import EdgeWatch
from rankcast.codec.formats.peft import read_peft
from rankcast.edge.engines.vllm import VllmEndpoint
from rankcast.errors import UnavailableError
from rankcast.release import verify as signed


@pytest.fixture
def server(server: EdgeServer, monkeypatch: pytest.MonkeyPatch) -> EdgeServer:
    """Trust what the server says, without signatures."""
    source = FileSource(server.manifest_file)
    monkeypatch.setattr(signed, "signed_source", lambda *_, **__: source)
    return server


def options(server: EdgeServer, folder: Path) -> list[str]:
    return ["--server", server.url, "--adapter", "demo", "--folder", str(folder),
            "--base-fingerprint", BASE]  # fmt: skip


def test_sync_and_status(server: EdgeServer, tmp_path: Path, call: Call) -> None:
    folder, token = tmp_path / "device", tmp_path / "token"
    token.write_bytes(b"\xef\xbb\xbfof-this-device\r\n")  # as editors of Windows write it
    assert "no device's folder" in call.refused("edge", "status", "--folder", str(folder))
    server.publish(release_of(1, measured=True))
    args = ["edge", "sync", *options(server, folder), "--token-file", str(token)]
    out = call.ok(*args, "--json")
    assert json.loads(out)["outcome"] == "activated"
    assert server.tokens == {"Bearer of-this-device"}
    assert read_peft(folder / "adapter" / "current")[0].ranks.max() > 1
    assert call.ok(*args).startswith("up-to-date")
    server.publish(release_of(2), version=2)
    status, out, _ = call(*args, "--hook", "false")
    assert (status, "status 1" in out) == (1, True)
    out = call.ok("edge", "status", "--folder", str(folder))
    assert "active: version 1" in out
    assert "rolled-back" in out
    out = call.ok("edge", "status", "--folder", str(folder), "--json")
    assert json.loads(out)["active"]["version"] == 1


def test_damaged_files_and_another_format_are_written_anew(
    server: EdgeServer, tmp_path: Path, call: Call
) -> None:
    server.publish(release_of(1))
    log, current = tmp_path / "log", tmp_path / "device" / "adapter" / "current"
    args = ["edge", "sync", *options(server, tmp_path / "device")]
    args += ["--hook", f"{sys.executable} -c \"open(r'{log}', 'a').write('x')\""]
    call.ok(*args)
    weights = current / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(bytes(len(whole)))
    assert call.ok(*args).startswith("up-to-date")
    assert weights.read_bytes() == whole
    call.ok(*args, "--format", "rcast")
    assert sorted(path.name for path in current.iterdir()) == [
        "adapter.rcast", "rankcast_release.json"
    ]  # fmt: skip
    call.ok(*args, "--format", "rcast")
    assert log.read_text() == "xxx"  # the last one found nothing to do


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--snr-db", "3"], "--bandwidth-hz"),
        (["--token", "a", "--token-file", "b"], "not both"),
        (["--token-file", "/nowhere"], "cannot be read"),
        (["--token-file", sys.executable], "it is not text"),
        (["--hook", "true", "--vllm-url", "http://localhost"], "not both"),
        (["--format", "gguf", "--base-model", "/nowhere"], "config.json"),
        (["--hook", "echo 'a"], "--hook cannot be read"),
        (["--deadline-s", "0"], "positive"),
        (["--max-bps", "-1"], "positive"),
        (["--adapter", "../x"], "lower-case"),
    ],
)
def test_options_that_make_no_sense(
    more: list[str], words: str, server: EdgeServer, tmp_path: Path, call: Call
) -> None:
    server.publish(release_of(1))
    args = ["edge", "sync", *options(server, tmp_path / "device"), *more]
    assert words in call.refused(*args)


@pytest.mark.parametrize("log_format", ["text", "auto"])
def test_watching_goes_on_after_errors_and_says_each_thing_once(
    log_format: LogFormat, server: EdgeServer, tmp_path: Path, capsys: Any
) -> None:
    where = {"server": server.url, "adapter": "demo", "folder": tmp_path}
    command = EdgeWatch(**where, every_s=0.1, log_format=log_format)
    client = client_of(server, tmp_path)
    rounds = iter([None, None, lambda: server.publish(release_of(1)), None, None])

    def sleep(seconds: float) -> None:
        assert 0.05 <= seconds <= 0.1
        then = next(rounds)
        if then is not None:
            then()

    def stopping() -> bool:
        return not rounds.__length_hint__()

    command.watch(client, stopping, command.show, sleep)
    out, err = capsys.readouterr()
    assert err.count("No release of demo") == 1
    outcomes = ["activated", "up-to-date"]
    if log_format == "text":
        assert [line.split(":")[0] for line in out.splitlines()] == outcomes
        assert err.startswith("rankcast: ")
    else:  # nobody reads this at a terminal
        assert [json.loads(line)["outcome"] for line in out.splitlines()] == outcomes
        assert json.loads(err.splitlines()[0])["level"] == "error"


class Vllm(ThreadingHTTPServer):
    """As much of vLLM as an adapter meets.

    Attributes:
        loaded: path by name.
        inplace: whether `load_inplace` is understood.
        refused: part of paths that cannot be loaded.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _VllmHandler)
        self.loaded: dict[str, str] = {}
        self.inplace, self.refused = True, "?"
        self.posts: list[str] = []


class _VllmHandler(BaseHTTPRequestHandler):
    server: Vllm

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        cards = [{"id": name, "root": path} for name, path in self.server.loaded.items()]
        self._answer(200, {"data": [{"id": "base", "root": "base"}, *cards]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, server = body["lora_name"], self.server
        server.posts.append(self.path.rpartition("/")[2])
        if self.path == "/v1/unload_lora_adapter":
            path = server.loaded.pop(name, None)
            self._answer(404 if path is None else 200, {})
            return
        again = name in server.loaded and not (server.inplace and body.get("load_inplace"))
        if again or server.refused in body["lora_path"] or not Path(body["lora_path"]).is_dir():
            self._answer(400, {"error": "no"})
            return
        server.loaded[name] = body["lora_path"]
        self._answer(200, {})

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    server = Vllm()
    with in_background(server):
        yield server


@pytest.mark.parametrize("inplace", [True, False])
def test_vllm_gets_new_adapters_and_keeps_the_old_one_if_it_refuses(
    inplace: bool, vllm: Vllm, server: EdgeServer, tmp_path: Path
) -> None:
    vllm.inplace = inplace
    url = f"http://127.0.0.1:{vllm.server_address[1]}"
    endpoint = VllmEndpoint(url, "demo", tmp_path / "adapter")
    for version in (1, 2):
        server.publish(release_of(version), version=version)
        assert client_of(server, tmp_path, activator=endpoint).sync().outcome == "activated"
        assert f"-v{version}-" in vllm.loaded["demo"]
    assert vllm.posts.count("unload_lora_adapter") == (0 if inplace else 1)
    vllm.refused = "-v3-"
    server.publish(release_of(3), version=3)
    result = client_of(server, tmp_path, activator=endpoint).sync()
    assert (result.outcome, "refused" in result.message) == ("rolled-back", True)
    assert "-v2-" in vllm.loaded["demo"]
    vllm.loaded.clear()  # it was restarted
    client_of(server, tmp_path, activator=endpoint).resume()
    assert "-v2-" in vllm.loaded["demo"]
    endpoint.deactivate()
    assert vllm.loaded == {}
    nobody = VllmEndpoint("http://127.0.0.1:1", "demo", tmp_path / "adapter")
    other = tmp_path / "other"
    with pytest.raises(UnavailableError, match="Is it running"):
        client_of(server, other, activator=nobody).sync()
    vllm.refused = "?"
    assert client_of(server, other, activator=endpoint).sync().outcome == "activated"
