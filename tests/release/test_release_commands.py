"""keys and publish, from an adapter's folder over a web server to a device."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.codec import random_adapter
from helpers.commands import Call
from helpers.releases import container
from helpers.servers import Files, files_over_http
from rankcast.codec.formats.native import DESCRIPTION, WEIGHTS, Description
from rankcast.codec.formats.peft import write_peft
from rankcast.errors import DeliveryError, TrustError
from rankcast.release.http import CHUNK, HttpFetcher, http_client
from rankcast.release.verify import LARGEST_TIMESTAMP, TufSource, trust_root


class EndlessFiles(Files):
    """Hands out a store; timestamps without end below /endless/."""

    sent = 0

    def do_GET(self) -> None:  # noqa: N802 - so does the standard library call it
        if not self.path.startswith("/endless/metadata/timestamp"):
            self.path = self.path.removeprefix("/endless")
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):  # the device hangs up
            while True:
                type(self).sent += self.wfile.write(b" " * CHUNK)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "store"
    folder.mkdir()
    with files_over_http(folder, EndlessFiles) as address:
        yield address


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    return ["--keys", str(tmp_path / "keys"), "--store", str(tmp_path / "store")]


def test_from_keys_to_a_device_over_http(
    server: str, where: list[str], tmp_path: Path, call: Call
) -> None:
    out = call.ok("keys", "init", *where, "--json")
    ceremony = json.loads(out)
    file = tmp_path / "a.rcast"
    file.write_bytes(container(0).to_bytes())
    out = call.ok("publish", str(file), "--name", "sst2", *where, "--json")
    assert (json.loads(out)["version"], json.loads(out)["ladders"]) == (1, 1)

    state = tmp_path / "device"
    trust_root(state, Path(ceremony["root"]).read_bytes(), ceremony["sha256"])
    with http_client() as client:
        fetcher = HttpFetcher(client)
        source = TufSource(f"{server}/metadata", f"{server}/targets", state, fetcher)
        manifest = source.manifest("sst2")
        urls = [f"{server}/blobs/{b.sha256[:2]}/{b.sha256}" for b in manifest.blobs]
        assert b"".join(client.get(url).content for url in urls) == file.read_bytes()
        endless = TufSource(f"{server}/endless/metadata", f"{server}/targets", state, fetcher)
        with pytest.raises(TrustError, match="endless data"):
            endless.manifest("sst2")
        nobody = TufSource("http://127.0.0.1:9", "http://127.0.0.1:9", state, fetcher)
        with pytest.raises(DeliveryError, match="could not be fetched"):
            nobody.manifest("sst2")
    assert EndlessFiles.sent < 2**24  # what sockets hold; far from endless
    assert LARGEST_TIMESTAMP < CHUNK


def test_what_a_server_may_not_do(where: list[str], tmp_path: Path, call: Call) -> None:
    call.ok("keys", "init", *where)
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

        client = http_client(transport=httpx2.MockTransport(answers))
        url = "https://example.org"
        return TufSource(url, url, tmp_path / "device", HttpFetcher(client))

    bomb = gzip.compress(b" " * 2**24)
    for answer, words in (
        (httpx2.Response(302, headers={"Location": "https://elsewhere.org"}), "another host"),
        (httpx2.Response(503), "cannot answer"),
        (
            httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=iter([bomb])),
            "compressed",
        ),
        (httpx2.ReadTimeout("30 s"), "fell silent"),
        (httpx2.ConnectError("refused"), "could not be fetched"),
    ):
        with pytest.raises(DeliveryError, match=words):
            answered(answer).manifest("sst2")
    assert {request.url.host for request in seen} == {"example.org"}
    assert {request.headers["Accept-Encoding"] for request in seen} == {"identity"}


def test_rotate_refresh_and_status(where: list[str], tmp_path: Path, call: Call) -> None:
    out = call.ok("keys", "init", *where, "--root-keys", "2")
    assert out.count(".pem") == 5
    assert "Take the root keys off this machine" in out
    rotated = json.loads(call.ok("keys", "rotate", "timestamp", *where, "--json"))
    status = json.loads(call.ok("keys", "status", *where, "--json"))
    roles = {role["role"]: role for role in status["roles"]}
    assert roles["timestamp"]["keys"] == roles["timestamp"]["held"] == [rotated["added"]]
    assert (roles["root"]["version"], round(roles["timestamp"]["days_left"], 2)) == (2, 1.0)

    away = tmp_path / "away"
    away.mkdir()
    for path in (tmp_path / "keys").glob("root-*"):
        shutil.move(path, away)
    assert "Signing as root needs 1" in call.refused("keys", "refresh", *where, "--root")
    more = ["--more-keys", str(away)]
    call.ok("keys", "refresh", *where, "--root", "--targets", *more)
    assert "1 of 2" in call.ok("keys", "status", *where)
    assert "--replaced" in call.refused("keys", "rotate", "root", *where, *more)
    assert "Destroy targets-" in call.ok("keys", "rotate", "targets", *where, *more)


def test_passphrases(
    where: list[str], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such variable" in call.refused("keys", "init", *where, "--passphrase-env", "PASS")
    monkeypatch.setenv("PASS", "open sesame")
    both = ["--passphrase-env", "PASS", "--ask-passphrase"]
    call.refused("keys", "init", *where, *both)
    typed = iter(["open sesame", "open seasme"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    assert "differ" in call.refused("keys", "init", *where, "--ask-passphrase")
    call.ok("keys", "init", *where, *both[:2])
    call.refused("keys", "refresh", *where)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "open sesame")
    call.ok("keys", "refresh", *where, "--ask-passphrase")


def test_what_cannot_be_published(where: list[str], tmp_path: Path, call: Call) -> None:
    file = tmp_path / "a.rcast"
    file.write_bytes(container(0).to_bytes())
    assert "rankcast keys init" in call.refused("publish", str(file), "--name", "sst2", *where)
    call.ok("keys", "init", *where)
    lora = write_peft(random_adapter(0), tmp_path / "lora", base_model_name="tiny")
    for source, words in (
        ([str(lora)], "by fingerprint"),
        ([str(tmp_path)], "no adapter"),
        ([str(tmp_path / "none.rcast")], "cannot be read"),
        ([], "Name what to publish"),
    ):
        err = call.refused("publish", *source, "--name", "sst2", *where)
        assert words in err
    assert "sst2 version 1 is active" in call.ok("publish", str(file), "--name", "sst2", *where)


def test_a_run_folder_is_packed(where: list[str], tmp_path: Path, call: Call) -> None:
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    tensors = random_adapter(0)
    description = Description(
        tensors.projections, 1, 1.0, 0.0, None, (), tensors.ranks.tolist(),
        base_fingerprint="2" * 64,
    )  # fmt: skip
    (adapter / DESCRIPTION).write_text(description.to_json())
    weights = {}
    for projection, factors in zip(tensors.projections, tensors.factors, strict=True):
        ones = np.ones(factors.left.shape[1], np.float32)
        parts = {"P": factors.left, "lam": ones, "Q": factors.right}
        weights |= {f"{projection.name}.{part}": value for part, value in parts.items()}
    save_file(weights, adapter / WEIGHTS)
    call.ok("keys", "init", *where)
    run = str(tmp_path / "run")
    out = call.ok("publish", run, "--name", "run", *where, "--json")
    assert json.loads(out)["base_fingerprint"] == "2" * 64
