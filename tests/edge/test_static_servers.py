"""Whole syncs from plain web servers, CDNs and networks with habits of their own."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from helpers.edge import FakeTime, settings
from helpers.releases import BASE, Publisher, new_publisher
from helpers.sites import Answer, Asked, Site, site
from rankcast.edge.install import SyncResult
from rankcast.edge.state import read_state
from rankcast.edge.sync import EdgeClient, Runtime
from rankcast.errors import ConfigError, DeliveryError, TrustError, UnavailableError
from rankcast.release.verify import signed_source

TOKEN = "of-this-device"  # noqa: S105 nobody's


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    publisher = new_publisher(tmp_path)
    publisher.publish(1, now=datetime.now(UTC))
    return publisher


@pytest.fixture
def server(publisher: Publisher) -> Iterator[Site]:
    with site(publisher.store.root) as running:
        yield running


def sync(server: Site, folder: Path, token: str | None = None, url: str = "") -> SyncResult:
    """Sync a device, new or not, without waiting."""
    faked, url = FakeTime(), url or server.url
    source = signed_source(url, folder, token=token, root=server.folder / "metadata" / "root.json")
    runtime = Runtime(np.random.default_rng(0), faked.clock, faked.sleep)
    return EdgeClient(
        url, "sst2", BASE, folder, source, settings=settings(), token=token, runtime=runtime
    ).sync()


def is_active(folder: Path) -> bool:
    return (folder / "adapter" / "current" / "adapter_model.safetensors").is_file()


def paths(server: Site) -> list[str]:
    return [asked.path for asked in server.asked]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_everything_is_handed_out_elsewhere_on_the_same_host(
    status: int, server: Site, tmp_path: Path
) -> None:
    """Missing files are redirected, too, and are missing there."""

    def habit(asked: Asked) -> Answer | None:
        if not asked.path.startswith("/cdn"):
            return Answer(status, b"", {"Location": "/cdn" + asked.path})
        return server.file(asked, asked.path.removeprefix("/cdn"))

    server.habit = habit
    assert sync(server, tmp_path / "device", TOKEN).outcome == "activated"
    assert is_active(tmp_path / "device")
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {TOKEN}"}
    assert "/cdn/metadata/2.root.json" in paths(server)


def test_a_redirected_blob_is_resumed_where_it_was_cut(server: Site, tmp_path: Path) -> None:
    cut: set[str] = set()

    def habit(asked: Asked) -> Answer | None:
        if asked.path.startswith("/blobs/"):
            return Answer(307, b"", {"Location": f"{server.url}/cdn{asked.path}"})
        if not asked.path.startswith("/cdn"):
            return None
        answer = server.file(asked, asked.path.removeprefix("/cdn"))
        if asked.path in cut:
            return answer
        cut.add(asked.path)
        return replace(answer, n_sent=len(answer.body) // 2)

    server.habit = habit
    result = sync(server, tmp_path / "device")
    blobs = list((tmp_path / "device" / "blobs").iterdir())
    assert (result.outcome, len(blobs)) == ("activated", len(cut))
    assert result.n_bytes == sum(blob.stat().st_size for blob in blobs)  # none came twice
    resumed = {asked.path: asked.headers["range"] for asked in server.asked
               if asked.path.startswith("/cdn") and "range" in asked.headers}  # fmt: skip
    sizes = {f"/cdn/blobs/{b.name[:2]}/{b.name}": b.stat().st_size for b in blobs}
    assert resumed == {path: f"bytes={size // 2}-" for path, size in sizes.items()}


@pytest.mark.parametrize("what", ["/metadata/", "/targets/", "/blobs/"])
@pytest.mark.parametrize("port_of", ["other", "localhost"])
def test_a_redirect_to_another_host_is_named_and_never_told_the_token(
    what: str, port_of: str, server: Site, publisher: Publisher, tmp_path: Path
) -> None:
    with site(publisher.store.root) as other:
        host = f"http://127.0.0.1:{other.port}" if port_of == "other" else (
            f"http://localhost:{other.port}"
        )  # fmt: skip

        def habit(asked: Asked) -> Answer | None:
            return Answer(302, b"", {"Location": host + asked.path}) if what in asked.path else None

        server.habit = habit
        with pytest.raises(DeliveryError, match=rf"another (host|port), {host}, .*--server"):
            sync(server, tmp_path / "device", TOKEN)
        assert other.asked == []
    state = read_state(tmp_path / "device")
    assert state is not None
    assert state.last_error is not None
    assert TOKEN not in str(state)
    server.habit = lambda _: None
    assert sync(server, tmp_path / "device", TOKEN).outcome == "activated"


def test_calls_that_are_redirected_elsewhere_are_no_obstacle(server: Site, tmp_path: Path) -> None:
    away = Answer(302, b"", {"Location": "https://login.example/"})
    server.habit = lambda asked: away if asked.method == "POST" else None
    result = sync(server, tmp_path / "device")
    assert (result.outcome, result.planned_by) == ("activated", "device")
    assert {"/v1/plan", "/v1/report"} <= set(paths(server))


@pytest.mark.parametrize("absent", [403, 404, 410])
def test_a_store_may_say_403_of_files_that_it_lacks(
    absent: int, server: Site, publisher: Publisher, tmp_path: Path
) -> None:
    def habit(asked: Asked) -> Answer | None:
        answer = server.file(asked)
        xml = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
        return Answer(absent, xml) if answer.status == 404 else answer

    server.habit = habit
    folder = tmp_path / "device"
    assert sync(server, folder, TOKEN).outcome == "activated"
    publisher.publish(2, now=datetime.now(UTC))
    for blob in (server.folder / "blobs").glob("??/*"):
        blob.unlink()
    words = "the file is not there" if absent == 403 else "lacks the file"
    with pytest.raises(DeliveryError, match=rf"refused with status {absent}: .*{words}"):
        sync(server, folder, TOKEN)
    (server.folder / "metadata" / "timestamp.json").unlink()
    with pytest.raises(DeliveryError, match=rf"timestamp\.json .*{absent}.*{words}"):
        sync(server, folder, TOKEN)


@pytest.mark.parametrize(("status", "headers"), [(401, {}), (401, {"WWW-Authenticate": "Bearer"}),
                                                 (403, {"WWW-Authenticate": "Basic"})])  # fmt: skip
@pytest.mark.parametrize("guarded", ["/metadata/2.root.json", "/metadata/timestamp.json",
                                     "/metadata/2.snapshot.json", "/metadata/2.targets.json",
                                     "/targets/", "/blobs/", "/"])  # fmt: skip
def test_a_wrong_or_missing_token_is_said_to_be_one(
    status: int, headers: dict[str, str], guarded: str, server: Site, tmp_path: Path
) -> None:
    def habit(asked: Asked) -> Answer | None:
        is_known = asked.headers.get("authorization") == f"Bearer {TOKEN}"
        is_open = not asked.path.startswith(guarded) or is_known
        return None if is_open else Answer(status, b"{}", headers)

    server.habit = habit
    with pytest.raises(DeliveryError, match="asks for a token: give the device's own") as none:
        sync(server, tmp_path / "device")
    with pytest.raises(DeliveryError, match="does not accept this device's token") as wrong:
        sync(server, tmp_path / "device", "another-one")
    for refused in (none, wrong):
        assert not isinstance(refused.value, TrustError | UnavailableError)
        assert "another-one" not in str(refused.value)
    assert sync(server, tmp_path / "device", TOKEN).outcome == "activated"


def test_a_guard_that_says_403_of_everything_is_not_taken_for_lacking_a_root(
    server: Site, tmp_path: Path
) -> None:
    server.habit = lambda _: Answer(403, b"Forbidden")
    with pytest.raises(DeliveryError, match=r"timestamp\.json .*403.*asks for a token, or"):
        sync(server, tmp_path / "device")
    with pytest.raises(DeliveryError, match=r"timestamp\.json .*403.*token does not allow it, or"):
        sync(server, tmp_path / "device", TOKEN)


PAGE = Answer(200, b"\n<!DOCTYPE html><html>Please log in</html>", {"Content-Type": "text/html"})


@pytest.mark.parametrize("what", ["/metadata/2.root.json", "/metadata/timestamp.json", "/targets/",
                                  "/blobs/"])  # fmt: skip
def test_a_page_to_log_in_is_no_file(what: str, server: Site, tmp_path: Path) -> None:
    server.habit = lambda asked: PAGE if asked.path.startswith(what) else None
    with pytest.raises(UnavailableError, match=r"A web page came instead of .*wants a login first"):
        sync(server, tmp_path / "device")
    server.habit = lambda _: None
    assert sync(server, tmp_path / "device").outcome == "activated"


@pytest.mark.parametrize("what", ["/metadata/timestamp.json", "/targets/", "/blobs/"])
@pytest.mark.parametrize("encoding", ["gzip", "GZip, br"])
def test_a_server_that_compresses_is_told_so(
    what: str, encoding: str, server: Site, tmp_path: Path
) -> None:
    def habit(asked: Asked) -> Answer | None:
        packed = gzip.compress(server.file(asked).body)
        about = {"Content-Encoding": encoding}
        return Answer(200, packed, about) if asked.path.startswith(what) else None

    server.habit = habit
    with pytest.raises(DeliveryError, match=r"came compressed \(gzip\).*compress nothing"):
        sync(server, tmp_path / "device")
    assert {asked.headers.get("accept-encoding") for asked in server.asked
            if asked.method == "GET"} == {"identity"}  # fmt: skip


def test_an_encoding_that_changes_no_byte_is_no_obstacle(server: Site, tmp_path: Path) -> None:
    def habit(asked: Asked) -> Answer | None:
        answer = server.file(asked)
        about = {**answer.headers, "Content-Encoding": "aws-chunked"}
        return replace(answer, headers=about)

    server.habit = habit
    assert sync(server, tmp_path / "device").outcome == "activated"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(status: int, server: Site, tmp_path: Path) -> None:
    refused: list[str] = []

    def habit(asked: Asked) -> Answer | None:
        if asked.method == "POST" or refused.count(asked.path) or "root" in asked.path:
            return None
        refused.append(asked.path)
        return Answer(status, b"", {"Retry-After": "1"})

    server.habit = habit
    assert sync(server, tmp_path / "device").outcome == "activated"
    kinds = [path.split("/")[1] for path in refused[:6]]
    assert kinds == [*["metadata"] * 3, "targets", "v1", "blobs"]


@pytest.mark.parametrize("status", [429, 502])
def test_a_server_that_stays_busy_is_left_alone(status: int, server: Site, tmp_path: Path) -> None:
    server.habit = lambda asked: Answer(status) if "timestamp" in asked.path else None
    with pytest.raises(UnavailableError, match=f"{status}: it is busy or broken just now"):
        sync(server, tmp_path / "device")
    assert paths(server).count("/metadata/timestamp.json") == 3


def test_a_server_that_fails_here_and_there_is_left_alone_in_the_end(
    server: Site, tmp_path: Path
) -> None:
    def habit(asked: Asked) -> Answer | None:
        n = len(server.asked)
        wanted = "timestamp" if n % 3 else "2.root"
        return Answer(503) if wanted in asked.path else None

    server.habit = habit
    with pytest.raises(UnavailableError, match="503"):
        sync(server, tmp_path / "device")
    assert paths(server).count("/metadata/2.root.json") <= 6


def test_a_web_server_that_asks_for_a_password(server: Site, tmp_path: Path) -> None:
    """Where it redirects to its whole address, it is told the password there, too."""
    known = "Basic " + b64encode(b"me:p@ss/w\xc3\xb6rd").decode()

    def habit(asked: Asked) -> Answer | None:
        if asked.headers.get("authorization") != known:
            return Answer(401, b"", {"WWW-Authenticate": 'Basic realm="store"'})
        path = asked.path.removeprefix("/cdn")
        if path == asked.path:
            return Answer(302, b"", {"Location": f"http://127.0.0.1:{server.port}/cdn{path}"})
        return server.file(asked, path)

    server.habit = habit
    url = server.url.replace("http://", "http://me:p%40ss%2Fw%C3%B6rd@")
    assert sync(server, tmp_path / "device", url=url).outcome == "activated"
    with pytest.raises(DeliveryError, match="does not accept the user and the password") as wrong:
        sync(server, tmp_path / "device", url=server.url.replace("//", "//me:secret@"))
    with pytest.raises(DeliveryError, match="or a user and a password: https://USER"):
        sync(server, tmp_path / "device")
    with pytest.raises(ConfigError, match="a token, or a user and a password"):
        sync(server, tmp_path / "device", TOKEN, url)
    files = [path for path in (tmp_path / "device").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"secret" in path.read_bytes()]
    assert "secret" not in str(wrong.value)


def test_a_store_below_a_path_and_an_address_with_a_password(server: Site, tmp_path: Path) -> None:
    server.habit = lambda asked: (
        server.file(asked, asked.path.removeprefix("/a/store")) if asked.path.startswith("/a/store")
        else Answer(404)
    )  # fmt: skip
    assert sync(server, tmp_path / "one", url=f"{server.url}/a/store/").outcome == "activated"
    url = server.url.replace("http://", "http://me:secret@")
    with pytest.raises(DeliveryError) as refused:
        sync(server, tmp_path / "two", url=url)
    assert "secret" not in str(refused.value)
    assert "secret" not in str(read_state(tmp_path / "two"))


def test_what_cannot_be_an_address_or_a_token_is_said_before_anything_is_done(
    server: Site, tmp_path: Path
) -> None:
    for url in ("adapters.example", "http://[::1", "ftp://a.example"):
        with pytest.raises(ConfigError, match="no address of a server"):
            sync(server, tmp_path / "device", url=url)
    with pytest.raises(ConfigError, match="one word"):
        sync(server, tmp_path / "device", "to ken")
    assert (server.asked, (tmp_path / "device").exists()) == ([], False)
