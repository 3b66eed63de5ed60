"""The configurations of docs/deploy in a real nginx, with TLS, a server behind it or none."""

from __future__ import annotations

import json
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from helpers.commands import Call
from helpers.releases import BASE, container
from helpers.servers import nginx, served
from rankcast.codec.container import Container
from rankcast.release.store import Store, read_releases


@pytest.fixture
def folder(tmp_path: Path, call: Call) -> Path:
    """Return a folder with a store, and a release in it."""
    arguments = ("--keys", str(tmp_path / "keys"), "--store", str(tmp_path / "store"))
    call.ok("keys", "init", *arguments)
    publish(tmp_path, container(), call)
    return tmp_path


def publish(folder: Path, release: Container, call: Call) -> None:
    (folder / "demo.rcast").write_bytes(release.to_bytes())
    arguments = ("--keys", str(folder / "keys"), "--store", str(folder / "store"))
    file = str(folder / "demo.rcast")
    call.ok("publish", file, "--name", "demo", *arguments)


class Site:
    """What nginx serves."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"https://127.0.0.1:{port}"
        self.tls = ssl.create_default_context(cafile=folder / "nginx" / "cert.pem")

    def get(self, path: str, token: str = "", **headers: str) -> tuple[int, Any, bytes]:
        request = urllib.request.Request(self.url + path, headers=headers)  # noqa: S310 our own
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, context=self.tls) as answer:  # noqa: S310
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def sync(self, call: Call, *more: str) -> tuple[int, str, str]:
        root = str(self.folder / "store" / "metadata" / "root.json")
        return call("edge", "sync", "--server", self.url, "--adapter", "demo", "--root", root,
                    "--folder", str(self.folder / "device"), "--base-fingerprint", BASE,
                    "--format", "rcast", "--json", *more)  # fmt: skip

    @property
    def log(self) -> str:
        return (self.folder / "nginx" / "access.log").read_text()


@contextmanager
def site(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, port: int = 0) -> Iterator[Site]:
    with nginx(folder / "nginx", name, folder / "store", port) as tls_port:
        monkeypatch.setenv("SSL_CERT_FILE", str(folder / "nginx" / "cert.pem"))
        yield Site(folder, tls_port)


def test_nginx_hands_out_files_to_devices_with_a_token(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = ("--database", f"sqlite:///{folder}/devices.db")
    token = call.ok("devices", "add", "pi-1", *database).strip()
    with (
        served(folder) as (_, port, log),
        site(folder, "nginx.conf", monkeypatch, port) as web,
    ):
        status, out, err = web.sync(call, "--token", token)
        assert status == 0, err
        assert (json.loads(out)["outcome"], json.loads(out)["planned_by"]) == (
            "activated", "server",
        )  # fmt: skip
        (release,) = read_releases(Store(folder / "store"), {}).values()
        blob = release.manifest.blobs[-1]
        path = f"/blobs/{blob.sha256[:2]}/{blob.sha256}"
        status, headers, data = web.get(path, token)
        assert (status, len(data)) == (200, blob.n_bytes)
        assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert headers["Content-Type"] == "application/octet-stream"
        assert web.get(path, token, Range="bytes=1-")[2] == data[1:]
        headers = web.get("/metadata/timestamp.json", token)[1]
        assert headers["Cache-Control"] == "public, max-age=10, must-revalidate"
        assert "immutable" in web.get("/metadata/1.root.json", token)[1]["Cache-Control"]
        assert web.get("/v1/adapters", token)[0] == 200
        for refused in ("", "rc_unknown"):
            for asked in (path, "/metadata/timestamp.json", "/v1/adapters"):
                assert web.get(asked, refused)[0] == 401
        for hidden in ("/metrics", "/healthz", "/allowed", "/demo.rcast", "/blobs/../keys"):
            assert web.get(hidden, token)[0] in (400, 404)
        served_by_python = [json.loads(x) for x in log.read_text().splitlines() if x[:1] == "{"]
        assert not [x for x in served_by_python if "blobs" in x.get("route", "")]


def test_files_alone_are_enough_and_give_nothing_away(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder / "store"
    with site(folder, "nginx-static.conf", monkeypatch) as web:
        status, out, err = web.sync(call)
        assert status == 0, err
        first = json.loads(out)
        assert (first["outcome"], first["planned_by"]) == ("activated", "device")
        shutil.copytree(store / "metadata", folder / "old")

        publish(folder, container(1), call)
        (release,) = read_releases(Store(store), {}).values()
        last = Store(store).blob_path(release.manifest.files[0].chunks[-1].blob.sha256)
        right = last.read_bytes()
        last.write_bytes(bytes(len(right)))
        status, _, err = web.sync(call)
        assert (status, "refused" in err or "tampered" in err or "other bytes" in err) == (2, True)
        last.write_bytes(right)
        assert json.loads(web.sync(call)[1])["release"]["version"] == 2

        shutil.rmtree(store / "metadata")
        shutil.copytree(folder / "old", store / "metadata")
        status, _, err = web.sync(call)
        assert (status, "roll" in err.lower()) == (2, True), err
    out = call.ok("edge", "status", "--folder", str(folder / "device"), "--json")
    assert json.loads(out)["active"]["version"] == 2


def test_what_was_cut_off_is_resumed_from_plain_files(
    folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = container(2)
    publish(folder, large, call)
    (release,) = read_releases(Store(folder / "store"), {}).values()
    blob = release.manifest.blobs[-1]
    data = Store(folder / "store").blob_path(blob.sha256).read_bytes()
    partial = folder / "device" / "blobs" / f"{blob.sha256}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data[: len(data) // 2])
    with site(folder, "nginx-static.conf", monkeypatch) as web:
        status, _, err = web.sync(call)
        assert status == 0, err
        (line,) = [x for x in web.log.splitlines() if blob.sha256 in x]
    assert f" 206 {len(data) - len(data) // 2} " in line
