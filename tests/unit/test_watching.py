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

from codec_data import packed, random_adapter
from delivery_data import FINGERPRINT, lay_out, put_release, store_with

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from rankcast.codec.chunks import plan_of_chunk
from rankcast.codec.container import header_bytes
from rankcast.codec.header import BaseModel
from rankcast.codec.stream import Decoder
from rankcast.codec.tensors import group_shapes
from rankcast.delivery import inspecting
from rankcast.delivery.inspecting import Inspector, contents_of
from rankcast.delivery.manifest import Ladder, Manifest
from rankcast.delivery.registry import Registry
from rankcast.delivery.server import create_app
from rankcast.delivery.serving.settings import ServerSettings
from rankcast.delivery.store import Store
from rankcast.errors import CodecError

CONTAINER = packed(random_adapter(3, ((24, 16), (16, 48), (32, 32)), (4, 3, 5)), n_rungs=3)


def real_release(store: Store) -> Manifest:
    """Keep a file that can be decoded."""
    store.put(header_bytes(CONTAINER.header))
    for piece in CONTAINER.chunks:
        store.put(piece)
    base = BaseModel("tiny", FINGERPRINT)
    return Manifest("sst2", 1, base, (Ladder.of(CONTAINER),), {})


@contextmanager
def serving(root: Path, **changes: Any) -> Iterator[TestClient]:
    store = Store(root / "store")
    lay_out(store, [real_release(store), put_release(store, "opaque")])
    database = f"sqlite:///{root}/devices.db"
    settings = ServerSettings(**{"database": database, "is_open": True, "poll_s": 0.01, **changes})
    with TestClient(create_app(store, settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as found:
        yield found


def registry_of(client: TestClient) -> Registry:
    return client.app.state.serving.registry  # pyright: ignore[reportFunctionMemberAccess]


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
    with serving(tmp_path, is_open=False) as client:
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
    folder = files("rankcast.delivery.serving") / "dashboard"
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
    found = answer.json()
    assert (found["name"], found["version"], found["n_rungs"]) == ("sst2", 1, [9])
    (ladder,) = found["ladders"]
    assert ladder["header_bytes"] == len(header_bytes(CONTAINER.header))
    assert [p["rank"] for p in ladder["projections"]] == [4, 3, 5]
    assert [(p["layer"], p["kind"]) for p in ladder["projections"]] == [(0, "q"), (1, "q"),
                                                                        (2, "q")]  # fmt: skip
    decoder = Decoder(CONTAINER.header)
    arrived = np.zeros(3, dtype=int)
    for piece, rung in zip(CONTAINER.chunks, ladder["rungs"], strict=True):
        arrived = np.maximum(arrived, decoder.add(piece).counts)
        assert rung["n_bytes"] == len(piece)
        assert rung["ranks"] == arrived.tolist()
        # Components whose weights all round to zero have arrived and count for nothing.
        assert (decoder.tensors().ranks <= arrived).all()
    tag = {"If-None-Match": answer.headers["etag"]}
    assert client.get("/v1/adapters/sst2", headers=tag).status_code == 304
    assert client.head("/v1/adapters/sst2").content == b""


def test_a_ladder_that_is_no_file_of_ours_has_no_ranks(client: TestClient) -> None:
    (ladder,) = client.get("/v1/adapters/opaque").json()["ladders"]
    assert ladder["projections"] == []
    assert [(r["n_bytes"], r["ranks"]) for r in ladder["rungs"]] == [
        (200, None), (300, None), (400, None),
    ]  # fmt: skip
    missing = client.get("/v1/adapters/sst3")
    assert missing.status_code == 404
    assert "did you mean 'sst2'?" in missing.json()["error"]["message"]


def test_large_or_missing_ladders_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    (ladder,) = real_release(store).ladders
    assert contents_of(store, ladder) is not None
    for limit, value in (("MOST_NUMBERS", 26), ("LARGEST_LADDER", 100)):
        with monkeypatch.context() as patched:
            patched.setattr(inspecting, limit, value)
            assert contents_of(store, ladder) is None
    inspector = Inspector(store)
    (found,) = inspector.contents([ladder])
    store.blob_path(ladder.rungs[0].blob.sha256).unlink()
    assert inspector.contents([ladder]) == [found]
    assert contents_of(store, ladder) is None


def test_a_chunk_says_its_plan_before_it_is_decoded() -> None:
    header = CONTAINER.header
    shapes = group_shapes(header.projections, header.ranks, [])
    decoder = Decoder(header)
    for piece in CONTAINER.chunks:
        assert plan_of_chunk(shapes, piece) == decoder.add(piece)
    for bad in (b"", b"ab", CONTAINER.chunks[0][:-1]):
        with pytest.raises(CodecError):
            plan_of_chunk(shapes, bad)


# Devices and events


def test_a_plan_tells_how_much_of_its_ladder_is_held(client: TestClient) -> None:
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
    found = client.get("/v1/devices").json()
    assert (found["caller"], found["sees_all"], found["sequence"]) == ("testclient", True, 5)
    silent, device = found["devices"]
    assert silent == {"name": "silent", "is_revoked": False, "last_s": None, "plan": None,
                      "report": None, "n_rolled_back": 0}  # fmt: skip
    assert (device["plan"]["sequence"], device["report"]["sequence"]) == (2, 5)
    assert device["plan"]["deadline_s"] == 4e5
    assert (device["report"]["event"], device["n_rolled_back"]) == ("failed", 2)
    assert device["last_s"] == device["report"]["at_s"]


def test_only_recent_events_are_looked_at(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankcast.delivery.registry.MOST_RECENT", 3)
    registry = registry_of(client)
    for i in range(6):
        registry.record(f"pi-{i // 2}", "report", {"event": "rolled-back"})
    found = [(x.device, x.n_rolled_back) for x in registry.activity()]
    assert found == [("pi-1", 1), ("pi-2", 2)]
    assert [x.device for x in registry.activity("pi-2")] == ["pi-2"]


def test_a_device_sees_itself_and_an_operator_sees_all(tmp_path: Path) -> None:
    with (
        closing(Registry(f"sqlite:///{tmp_path}/devices.db")) as registry,
        serving(tmp_path, is_open=False) as client,
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
    found = [json.loads(x)["sequence"] for x in re.findall(r"^data: (.*)$", text, re.MULTILINE)]
    assert found == expected


def test_an_empty_store_has_no_devices(tmp_path: Path) -> None:
    settings = ServerSettings(database=f"sqlite:///{tmp_path}/devices.db", is_open=True)
    with TestClient(create_app(store_with(tmp_path / "store"), settings)) as client:
        assert client.get("/v1/devices").json()["devices"] == []
        assert client.get("/v1/events?last=5001").status_code == 422
