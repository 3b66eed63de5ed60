"""The fast path gives the same answers as the ordinary way, or leaves them to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.stores import chunk, store_with

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from rankcast.rate_limit import Rate
from rankcast.release.store import Store
from rankcast.server import fast_path
from rankcast.server.app import create_app
from rankcast.server.fast_path import FastPath
from rankcast.server.files import PIECE
from rankcast.server.registry import Registry
from rankcast.server.settings import ServerSettings


@dataclass
class Served:
    """A server, its store, a device's token, and how often the ordinary way was gone."""

    client: TestClient
    store: Store
    registry: Registry
    headers: dict[str, str]
    passed_on: list[str]

    def get(self, data: bytes, **headers: str) -> Any:
        sha256 = self.store.put(data).sha256
        return self.client.get(f"/blobs/{sha256[:2]}/{sha256}", headers=self.headers | headers)


def serve(root: Path, **changes: Any) -> Iterator[Served]:
    store, database = store_with(root / "store"), f"sqlite:///{root}/devices.db"
    app, passed_on = create_app(store, ServerSettings(database=database, **changes)), []
    with closing(Registry(database)) as registry, TestClient(app) as client:
        inner: Any = app.middleware_stack
        while not isinstance(inner, FastPath):
            inner = inner._app if hasattr(inner, "_app") else inner.app
        ordinary = inner._app

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            passed_on.append(scope["path"])
            await ordinary(scope, receive, send)

        inner._app = counted
        token = registry.add("pi-1")
        yield Served(client, store, registry, {"Authorization": f"Bearer {token}"}, passed_on)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path)


@pytest.mark.parametrize("n_bytes", [1, PIECE, PIECE + 1, 5 * PIECE])
def test_both_ways_answer_alike(served: Served, n_bytes: int) -> None:
    data = chunk("x", n_bytes)
    fast = served.get(data)
    assert served.passed_on == []
    ordinary = served.get(data, **{"If-None-Match": '"other"'})
    assert len(served.passed_on) == 1
    assert fast.content == ordinary.content == data
    assert (fast.status_code, dict(fast.headers)) == (200, dict(ordinary.headers))


def test_it_is_counted_like_any_other(served: Served) -> None:
    served.get(b"data")
    text = served.client.get("/metrics").text
    labels = 'method="GET",route="/blobs/{prefix}/{sha256}",status="200"'
    assert f"rankcast_requests_total{{{labels}}} 1.0" in text
    assert 'rankcast_sent_bytes_total{route="/blobs/{prefix}/{sha256}"} 4.0' in text


def test_what_is_not_plain_goes_the_ordinary_way(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served.get(b"data", Range="bytes=1-2").content == b"at"
    assert served.get(b"data", Authorization="Bearer none").status_code == 401
    assert served.get(b"data", Authorization="Basic x").status_code == 401
    absent = "/blobs/ab/ab" + "0" * 62
    assert served.client.get(absent, headers=served.headers).status_code == 404
    monkeypatch.setattr(fast_path, "LARGEST_KEPT", 3)
    assert served.get(b"large").content == b"large"
    assert len(served.passed_on) == 5


def test_a_blob_is_kept_only_if_it_is_right(served: Served) -> None:
    sha256 = served.store.put(b"right").sha256
    served.store.blob_path(sha256).write_bytes(b"wrong")
    url = f"/blobs/{sha256[:2]}/{sha256}"
    assert served.client.get(url, headers=served.headers).content == b"wrong"
    assert served.passed_on == [url]
    assert served.get(b"right").content == b"right"
    served.store.blob_path(sha256).unlink()
    assert served.client.get(url, headers=served.headers).content == b"right"
    assert served.passed_on == [url]


@pytest.mark.parametrize(("keep_s", "status"), [(3600.0, 200), (0.0, 401)])
def test_a_revoked_device_is_remembered_for_some_seconds(
    tmp_path: Path, keep_s: float, status: int
) -> None:
    for served in serve(tmp_path, keep_token_s=keep_s):
        assert served.get(b"data").status_code == 200
        served.registry.revoke("pi-1")
        assert served.get(b"data").status_code == status
        assert served.client.get("/v1/adapters", headers=served.headers).status_code == 401


def test_a_proxy_is_told_at_once_who_is_let_in(served: Served) -> None:
    answer = served.client.get("/v1/allowed", headers=served.headers)
    assert (answer.status_code, answer.content, served.passed_on) == (204, b"", [])
    assert 'route="/v1/allowed",status="204"' in served.client.get("/metrics").text
    served.registry.revoke("pi-1")
    assert served.client.get("/v1/allowed", headers=served.headers).status_code == 401
    assert served.client.get("/v1/allowed").status_code == 401


def test_who_asks_too_often_is_told_so(tmp_path: Path) -> None:
    for served in serve(tmp_path, files=Rate(1e-6, 3)):
        assert [served.get(b"data").status_code for _ in range(5)] == [200] * 3 + [429] * 2
