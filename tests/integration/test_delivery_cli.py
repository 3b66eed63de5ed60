"""keys and publish, from an adapter's folder over a web server to a device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save_file

from codec_data import random_adapter
from command_line import call
from rankcast.codec.lora_files import write_peft
from rankcast.codec.native_files import DESCRIPTION, WEIGHTS
from rankcast.delivery.downloads import CHUNK, HttpFetcher, http_client
from rankcast.delivery.trust import LARGEST_TIMESTAMP, TufSource, fetch_blob, trust_root
from rankcast.errors import DeliveryError, TrustError
from release_data import container


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Server(SimpleHTTPRequestHandler):
    """Hands out a store; timestamps without end below /endless/."""

    sent = 0

    def do_GET(self) -> None:
        if not self.path.startswith("/endless/metadata/timestamp"):
            self.path = self.path.removeprefix("/endless")
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # the device hangs up
            while True:
                type(self).sent += self.wfile.write(b" " * CHUNK)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "store"
    folder.mkdir()
    handler = functools.partial(Server, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    return ["--keys", str(tmp_path / "keys"), "--store", str(tmp_path / "store")]


def test_from_keys_to_a_device_over_http(
    server: str, where: list[str], tmp_path: Path, capsys: Any
) -> None:
    status, out, _ = call("keys", "init", *where, "--json", capsys=capsys)
    assert status == 0
    ceremony = json.loads(out)
    file = tmp_path / "a.rcast"
    file.write_bytes(container(0).to_bytes())
    status, out, _ = call("publish", str(file), "--name", "sst2", *where, "--json", capsys=capsys)
    assert status == 0
    assert (json.loads(out)["version"], json.loads(out)["ladders"]) == (1, 1)

    state = tmp_path / "device"
    trust_root(state, Path(ceremony["root"]).read_bytes(), ceremony["sha256"])
    with http_client() as client:
        fetcher = HttpFetcher(client)
        source = TufSource(f"{server}/metadata", f"{server}/targets", state, fetcher)
        manifest = source.manifest("sst2")
        data = [fetch_blob(fetcher, f"{server}/blobs", blob) for blob in manifest.blobs]
        assert b"".join(data) == file.read_bytes()
        endless = TufSource(f"{server}/endless/metadata", f"{server}/targets", state, fetcher)
        with pytest.raises(TrustError, match="endless data"):
            endless.manifest("sst2")
        nobody = TufSource("http://127.0.0.1:9", "http://127.0.0.1:9", state, fetcher)
        with pytest.raises(DeliveryError, match="could not be fetched"):
            nobody.manifest("sst2")
    assert Server.sent < 2**24  # what sockets hold; far from for ever
    assert LARGEST_TIMESTAMP < CHUNK


def test_what_a_server_may_not_do(where: list[str], tmp_path: Path, capsys: Any) -> None:
    call("keys", "init", *where, capsys=capsys)
    root = (tmp_path / "store" / "metadata" / "root.json").read_bytes()
    trust_root(tmp_path / "device", root)
    seen: list[httpx2.Request] = []

    def answered(answer: Any) -> TufSource:
        def answers(request: httpx2.Request) -> httpx2.Response:
            seen.append(request)
            if "root" in request.url.path:
                return httpx2.Response(404)
            if isinstance(answer, Exception):
                raise answer
            return answer

        client = httpx2.Client(transport=httpx2.MockTransport(answers))
        url = "https://example.org"
        return TufSource(url, url, tmp_path / "device", HttpFetcher(client))

    bomb = gzip.compress(b" " * 2**24)
    for answer, words in (
        (httpx2.Response(302, headers={"Location": "https://elsewhere.org"}), "does not have"),
        (httpx2.Response(503), "cannot answer"),
        (
            httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=iter([bomb])),
            r"damaged|longer",
        ),
        (httpx2.ReadTimeout("30 s"), "fell silent"),
        (httpx2.ConnectError("refused"), "could not be fetched"),
    ):
        with pytest.raises(DeliveryError, match=words):
            answered(answer).manifest("sst2")
    assert {request.url.host for request in seen} == {"example.org"}
    assert {request.headers["Accept-Encoding"] for request in seen} == {"identity"}


def test_rotate_refresh_and_status(where: list[str], tmp_path: Path, capsys: Any) -> None:
    status, out, _ = call("keys", "init", *where, "--root-keys", "2", capsys=capsys)
    assert (status, out.count(".pem")) == (0, 5)
    assert "Take the root keys off this machine" in out
    status, out, _ = call("keys", "rotate", "timestamp", *where, "--json", capsys=capsys)
    rotated = json.loads(out)
    status, out, _ = call("keys", "status", *where, "--json", capsys=capsys)
    roles = {role["role"]: role for role in json.loads(out)["roles"]}
    assert roles["timestamp"]["keys"] == roles["timestamp"]["held"] == [rotated["added"]]
    assert (roles["root"]["version"], round(roles["timestamp"]["days_left"], 2)) == (2, 1.0)

    away = tmp_path / "away"
    away.mkdir()
    for path in (tmp_path / "keys").glob("root-*"):
        shutil.move(path, away)
    status, _, err = call("keys", "refresh", *where, "--root", capsys=capsys)
    assert (status, "Signing as root needs 1" in err) == (2, True)
    more = ["--more-keys", str(away)]
    assert call("keys", "refresh", *where, "--root", "--targets", *more, capsys=capsys)[0] == 0
    status, out, _ = call("keys", "status", *where, capsys=capsys)
    assert (status, "1 of 2" in out) == (0, True)
    status, _, err = call("keys", "rotate", "root", *where, *more, capsys=capsys)
    assert (status, "--replaced" in err) == (2, True)
    status, out, _ = call("keys", "rotate", "targets", *where, *more, capsys=capsys)
    assert (status, "Destroy targets-" in out) == (0, True)


def test_passphrases(
    where: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = call("keys", "init", *where, "--passphrase-env", "PASS", capsys=capsys)
    assert (status, "no such variable" in err) == (2, True)
    monkeypatch.setenv("PASS", "open sesame")
    both = ["--passphrase-env", "PASS", "--ask-passphrase"]
    assert call("keys", "init", *where, *both, capsys=capsys)[0] == 2
    typed = iter(["open sesame", "open seasme"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    status, _, err = call("keys", "init", *where, "--ask-passphrase", capsys=capsys)
    assert (status, "differ" in err) == (2, True)
    assert call("keys", "init", *where, *both[:2], capsys=capsys)[0] == 0
    assert call("keys", "refresh", *where, capsys=capsys)[0] == 2
    monkeypatch.setattr("getpass.getpass", lambda prompt: "open sesame")
    assert call("keys", "refresh", *where, "--ask-passphrase", capsys=capsys)[0] == 0


def test_what_cannot_be_published(where: list[str], tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "a.rcast"
    file.write_bytes(container(0).to_bytes())
    status, _, err = call("publish", str(file), "--name", "sst2", *where, capsys=capsys)
    assert (status, "rankcast keys init" in err) == (2, True)
    call("keys", "init", *where, capsys=capsys)
    lora = write_peft(random_adapter(0), tmp_path / "lora", base_model_name="tiny")
    for source, words in (
        ([str(lora)], "by fingerprint"),
        ([str(tmp_path)], "no adapter"),
        ([str(tmp_path / "none.rcast")], "cannot be read"),
        ([], "Name what to publish"),
    ):
        status, _, err = call("publish", *source, "--name", "sst2", *where, capsys=capsys)
        assert status == 2
        assert words in err
    status, out, _ = call("publish", str(file), "--name", "sst2", *where, capsys=capsys)
    assert (status, "sst2 version 1 is in force" in out) == (0, True)


def test_a_run_folder_is_packed(where: list[str], tmp_path: Path, capsys: Any) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    tensors, raw = random_adapter(0), {"alpha": 1.0, "r_max": 1, "base_fingerprint": "2" * 64}
    plain = [dataclasses.asdict(p) for p in tensors.projections]
    (adapter / DESCRIPTION).write_text(json.dumps({**raw, "projections": plain}))
    weights = {}
    for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
        ones = np.ones(factors.left.shape[1], np.float32)
        parts = {"P": factors.left, "lam": ones, "Q": factors.right}
        weights |= {f"{projection.name}.{part}": value for part, value in parts.items()}
    save_file(weights, adapter / WEIGHTS)
    call("keys", "init", *where, capsys=capsys)
    run = str(tmp_path / "run")
    status, out, _ = call("publish", run, "--name", "run", *where, "--json", capsys=capsys)
    assert (status, json.loads(out)["base_fingerprint"]) == (0, "2" * 64)
