"""What the dashboard is made of, and what it asks the server: docs/delivery-api.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.codec import packed, random_adapter
from helpers.stores import FINGERPRINT, lay_out, put_release, store_with

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from rankcast.codec.chunks import Decoder, plan_of_chunk
from rankcast.codec.header import BaseModel, header_bytes
from rankcast.codec.layout import Layout
from rankcast.errors import CodecError
from rankcast.release.manifest import File, Manifest
from rankcast.release.store import Store
from rankcast.server import contents as contents_module
from rankcast.server.app import create_app
from rankcast.server.contents import contents_of
from rankcast.server.registry import Registry
from rankcast.server.settings import ServerSettings, ServerState

CONTAINER = packed(random_adapter(3, ((24, 16), (16, 48), (32, 32)), (4, 3, 5)), n_steps=3)


def real_release(store: Store) -> Manifest:
    """Keep a file that can be decoded."""
    store.put(header_bytes(CONTAINER.header))
    for piece in CONTAINER.chunks:
        store.put(piece)
    base = BaseModel("tiny", FINGERPRINT)
    return Manifest("sst2", 1, base, (File.of(CONTAINER),), {})


@contextmanager
def serving(root: Path, **changes: Any) -> Iterator[TestClient]:
    store = Store(root / "store")
    lay_out(store, [real_release(store), put_release(store, "opaque")])
    settings = ServerSettings(
        **{"database": f"sqlite:///{root}/devices.db", "needs_token": False, **changes}
    )
    with TestClient(create_app(store, settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def registry_of(client: TestClient) -> Registry:
    return client.app.state.server.registry  # pyright: ignore[reportFunctionMemberAccess]


def ask(client: TestClient, held: list[str], n_bytes: float = 1e5) -> Any:
    return client.post("/v1/plan", json={
        "adapter": "sst2", "base_fingerprint": FINGERPRINT, "deadline_s": 8.0 * n_bytes,
        "link": {"throughput_bps": 1.0}, "held": held,
    }).json()  # fmt: skip


REPORT: dict[str, Any] = {
    "adapter": "sst2", "version": 1, "ladder": 0, "n_rungs": 2, "event": "rolled-back",
}  # fmt: skip


# Files


def test_the_page_and_its_files_need_no_token_and_say_what_they_may(tmp_path: Path) -> None:
    with serving(tmp_path, needs_token=True) as client:
        assert client.get("/v1/devices").status_code == 401
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        names = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text)
        assert {"dashboard/app.js", "dashboard/style.css", "dashboard/icon.svg"} <= set(names)
        for path in ("/", *(f"/{name}" for name in names)):
            answer = client.get(path)
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"].split("; ")
            assert policy[0] == "default-src 'none'"
            assert {"script-src 'self'", "style-src 'self'", "connect-src 'self'",
                    "frame-ancestors 'none'", "form-action 'none'"} <= set(policy)  # fmt: skip
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert client.head(path).headers["content-length"] == str(len(answer.content))


def test_files_that_have_not_changed_are_not_sent_again(client: TestClient) -> None:
    first = client.get("/dashboard/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/dashboard/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize("name", ["nothing.js", "index.py", "..%2fpages.py", "%2e%2e/pages.py"])
def test_nothing_else_is_handed_out(client: TestClient, name: str) -> None:
    assert client.get(f"/dashboard/{name}").status_code == 404


def test_no_file_names_another_server_or_makes_html_of_text() -> None:
    folder = files("rankcast.server") / "dashboard"
    entries = list(folder.iterdir())
    assert len(entries) > 10
    for entry in entries:
        text = entry.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text), entry.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(",
                             text), entry.name  # fmt: skip
        assert not re.search(r"<script(?! type=\"module\" src)|<style| style=| on[a-z]+=\"",
                             text), entry.name  # fmt: skip


# What an adapter consists of


def test_ranks_by_chunk_are_those_of_the_first_symbols(client: TestClient) -> None:
    answer = client.get("/v1/adapters/sst2")
    adapter = answer.json()
    assert (adapter["name"], adapter["version"], adapter["n_rungs"]) == ("sst2", 1, [9])
    (file,) = adapter["ladders"]
    assert file["header_bytes"] == len(header_bytes(CONTAINER.header))
    assert [p["rank"] for p in file["projections"]] == [4, 3, 5]
    assert [(p["layer"], p["kind"]) for p in file["projections"]] == [(0, "q"), (1, "q"),
                                                                        (2, "q")]  # fmt: skip
    decoder = Decoder(CONTAINER.header)
    arrived = np.zeros(3, dtype=int)
    for piece, chunk in zip(CONTAINER.chunks, file["rungs"], strict=True):
        arrived = np.maximum(arrived, decoder.add(piece).counts)
        assert chunk["n_bytes"] == len(piece)
        assert chunk["ranks"] == arrived.tolist()
        # Components whose weights all round to zero have arrived and count for nothing.
        assert (decoder.tensors().ranks <= arrived).all()
    tag = {"If-None-Match": answer.headers["etag"]}
    assert client.get("/v1/adapters/sst2", headers=tag).status_code == 304
    assert client.head("/v1/adapters/sst2").content == b""


def test_a_file_that_is_none_of_ours_has_no_ranks(client: TestClient) -> None:
    (file,) = client.get("/v1/adapters/opaque").json()["ladders"]
    assert file["projections"] == []
    assert [(r["n_bytes"], r["ranks"]) for r in file["rungs"]] == [
        (200, None), (300, None), (400, None),
    ]  # fmt: skip
    missing = client.get("/v1/adapters/sst3")
    assert missing.status_code == 404
    assert "did you mean 'sst2'?" in missing.json()["error"]["message"]


def test_large_or_missing_files_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    (file,) = real_release(store).files
    assert contents_of(store, file) is not None
    for limit, value in (("MOST_NUMBERS", 26), ("LARGEST_FILE", 100)):
        with monkeypatch.context() as patched:
            patched.setattr(contents_module, limit, value)
            assert contents_of(store, file) is None
    settings = ServerSettings(database=f"sqlite:///{tmp_path}/devices.db")
    remembering = ServerState.of(store, settings).contents_of
    contents = remembering(file)
    store.blob_path(file.chunks[0].blob.sha256).unlink()
    assert remembering(file) is contents
    assert contents_of(store, file) is None


def test_a_chunk_says_its_plan_before_it_is_decoded() -> None:
    header = CONTAINER.header
    layout = Layout.of(header)
    decoder = Decoder(header)
    for piece in CONTAINER.chunks:
        assert plan_of_chunk(layout, piece) == decoder.add(piece)
    for bad in (b"", b"a", b"\0\0\0\1", b"\1\xff"):
        with pytest.raises(CodecError):
            plan_of_chunk(layout, bad)


# Devices and events


def test_a_plan_says_how_much_of_its_file_is_held(client: TestClient) -> None:
    blobs = [blob["sha256"] for blob in ask(client, [])["blobs"]]
    for held, n in ((blobs[:4], 3), (blobs[1:4], 0), ([blobs[0], blobs[2]], 0), (blobs, 9)):
        ask(client, held)
        event = registry_of(client).events_after(0)[-1]
        assert event.body["n_held_rungs"] == n


def test_devices_come_with_their_last_plan_and_report(client: TestClient) -> None:
    ask(client, [])
    ask(client, [], 5e4)
    forged = {**REPORT, "event": "failed", "message": '"event": "rolled-back"'}
    for report in (REPORT, REPORT, forged):
        assert client.post("/v1/report", json=report).status_code == 204
    registry_of(client).add("silent")
    registry_of(client).add("desk", "operator")
    answer = client.get("/v1/devices").json()
    assert (answer["caller"], answer["sees_all"], answer["sequence"]) == ("testclient", True, 5)
    silent, device = answer["devices"]
    assert silent == {"name": "silent", "is_revoked": False, "last_s": None, "plan": None,
                      "report": None, "n_rolled_back": 0}  # fmt: skip
    assert (device["plan"]["sequence"], device["report"]["sequence"]) == (2, 5)
    assert device["plan"]["deadline_s"] == 4e5
    assert (device["report"]["event"], device["n_rolled_back"]) == ("failed", 2)
    assert device["last_s"] == device["report"]["at_s"]


def test_only_recent_events_are_looked_at(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankcast.server.registry.MOST_RECENT", 3)
    registry = registry_of(client)
    for i in range(6):
        registry.record(f"pi-{i // 2}", "report", {"event": "rolled-back"})
    rolled_back = [(x.device, x.n_rolled_back) for x in registry.activity()]
    assert rolled_back == [("pi-1", 1), ("pi-2", 2)]
    assert [x.device for x in registry.activity("pi-2")] == ["pi-2"]


def test_a_device_sees_itself_and_an_operator_sees_all(tmp_path: Path) -> None:
    with (
        closing(Registry(f"sqlite:///{tmp_path}/devices.db")) as registry,
        serving(tmp_path, needs_token=True) as client,
    ):
        one, desk = registry.add("pi-1"), registry.add("desk", "operator")
        registry.add("pi-2")
        registry.revoke("pi-2")
        for name in ("pi-1", "pi-2"):
            registry.record(name, "report", REPORT)

        def seen(token: str) -> dict[str, Any]:
            headers = {"Authorization": f"Bearer {token}"}
            return client.get("/v1/devices", headers=headers).json()

        mine, all_ = seen(one), seen(desk)
        assert [x["name"] for x in mine["devices"]] == ["pi-1"]
        assert (mine["sees_all"], all_["sees_all"]) == (False, True)
        revoked = {x["name"]: x["is_revoked"] for x in all_["devices"]}
        assert revoked == {"pi-1": False, "pi-2": True}
        for path in ("/v1/devices", "/v1/adapters/sst2", "/v1/events?last=5&follow=false"):
            assert client.get(path).status_code == 401
        headers = {"Authorization": f"Bearer {one}"}
        text = client.get("/v1/events?last=5&follow=false", headers=headers).text
        assert re.findall(r"^id: (\d+)", text, re.MULTILINE) == ["1"]
        other = client.get("/v1/events?last=5&follow=false&device=pi-2", headers=headers)
        assert other.status_code == 403


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("last=2", [5, 6]),
        ("last=99", [1, 2, 3, 4, 5, 6]),
        ("last=0", []),
        ("", []),
        ("last=2&device=pi-0", [3, 5]),
        ("after=4&last=1", [5, 6]),
    ],
)
def test_the_newest_events_come_first_or_alone(
    client: TestClient, query: str, expected: list[int]
) -> None:
    for i in range(6):
        registry_of(client).record(f"pi-{i % 2}", "plan", {"i": i})
    text = client.get(f"/v1/events?follow=false&{query}").text
    data = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    assert [json.loads(line)["sequence"] for line in data] == expected


def test_an_empty_store_has_no_devices(tmp_path: Path) -> None:
    settings = ServerSettings(database=f"sqlite:///{tmp_path}/devices.db", needs_token=False)
    with TestClient(create_app(store_with(tmp_path / "store"), settings)) as client:
        assert client.get("/v1/devices").json()["devices"] == []
        assert client.get("/v1/events?last=5001").status_code == 422
