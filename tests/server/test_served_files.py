"""Files over HTTP are slices of what lies in the store, and nothing else can be had."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.stores import store_with

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from rankcast.rate_limit import Rate
from rankcast.release.store import Store
from rankcast.server.app import create_app
from rankcast.server.errors import RefusalError
from rankcast.server.files import is_unchanged, requested_part
from rankcast.server.settings import ServerSettings

DATA = bytes(range(256)) * 600  # more than one piece
SECRET = b"nobody's business"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root: Path = tmp_path_factory.mktemp("served")
    store = store_with(root / "store")
    for path in (root / "secret.json", store.root / "secret.json", store.targets / "secret.json",
                 store.root / "blobs" / "secret.json"):  # fmt: skip
        path.write_bytes(SECRET)
    settings = ServerSettings(
        database=f"sqlite:///{root}/devices.db", needs_token=False, files=Rate(1e6, 10**6)
    )
    with TestClient(create_app(store, settings)) as client:
        yield client


@pytest.fixture(scope="module")
def url(client: TestClient) -> str:
    store: Store = client.app.state.server.store  # pyright: ignore[reportFunctionMemberAccess]
    sha256 = store.put(DATA).sha256
    return f"/blobs/{sha256[:2]}/{sha256}"


def tag_of(url: str) -> str:
    return f'"{url.rpartition("/")[2]}"'


def test_a_whole_blob_may_be_kept_forever(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == tag_of(url)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(DATA))


numbers = st.integers(0, len(DATA) + 5) | st.integers(0, 10**17)


@settings(max_examples=60)
@given(first=st.none() | numbers, last=st.none() | numbers, head=st.booleans())
def test_ranges_are_slices(
    client: TestClient, url: str, first: int | None, last: int | None, head: bool
) -> None:
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    answer = client.request("HEAD" if head else "GET", url, headers={"Range": text})
    if first is None and last is None:
        wanted, status = DATA, 200
    elif first is None:
        assert last is not None
        wanted = DATA[-last:] if last else b""
        status, first = (206 if last else 416), max(0, len(DATA) - last)
    elif last is not None and last < first:
        wanted, status = DATA, 200  # no range at all: ignored
    else:
        wanted = DATA[first : None if last is None else last + 1]
        status = 206 if wanted else 416
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(DATA)}"
        return
    assert answer.content == (b"" if head else wanted)
    assert answer.headers["content-length"] == str(len(wanted))
    if status == 206:
        assert first is not None
        end = first + len(wanted) - 1
        assert answer.headers["content-range"] == f"bytes {first}-{end}/{len(DATA)}"


@given(st.text(string.printable, max_size=30) | st.from_regex(r"bytes=[0-9,\- ]*"))
def test_no_header_leads_outside_the_file(text: str) -> None:
    part, status = None, 200
    try:
        part = requested_part(100, '"x"', text)
    except RefusalError as error:
        status = error.status
    assert status in (200, 416)
    assert part is None or 0 <= part.start < part.stop <= 100


@pytest.mark.parametrize(
    "text", ["bytes=0-1,5-6", "lines=1-2", "bytes=a-b", "bytes 0-1", "bytes=-", "", "bytes=１-２"]
)
def test_headers_that_are_no_single_range_are_ignored(text: str) -> None:
    assert requested_part(100, '"x"', text) is None


@given(start=st.integers(0, 99), tag=st.sampled_from(['"x"', '"y"', 'W/"x"', "Sat, 01 Jan 2000"]))
def test_a_range_is_of_the_bytes_that_the_client_has(start: int, tag: str) -> None:
    part = requested_part(100, '"x"', f"bytes={start}-", if_range=tag)
    assert part == (slice(start, 100) if tag == '"x"' else None)


@given(others=st.lists(st.from_regex(r'(W/)?"[a-z]{2,5}"', fullmatch=True)), weak=st.booleans())
def test_a_tag_among_others_is_known(others: list[str], weak: bool) -> None:
    assert not is_unchanged('"x"', ", ".join(others))
    assert is_unchanged('"x"', ", ".join([*others, 'W/"x"' if weak else '"x"']))


def test_what_the_client_has_is_not_sent_again(client: TestClient, url: str) -> None:
    for given_tag, status in ((tag_of(url), 304), ("*", 304), ('"other"', 200)):
        headers = {"If-None-Match": given_tag}
        assert client.head(url, headers=headers).status_code == status
        answer = client.get(url, headers=headers)
        assert answer.status_code == status
        assert answer.headers["etag"] == tag_of(url)
        assert answer.content == (b"" if status == 304 else DATA)
    both = {"If-None-Match": tag_of(url), "Range": "bytes=0-1"}
    assert client.get(url, headers=both).status_code == 304
    stale = {"If-Range": '"other"', "Range": "bytes=0-1"}
    assert client.get(url, headers=stale).content == DATA


def test_metadata_hold_for_as_long_as_their_names_say(client: TestClient) -> None:
    now, numbered = (client.get(f"/metadata/{x}") for x in ("timestamp.json", "1.targets.json"))
    assert now.headers["cache-control"] == "public, max-age=10, must-revalidate"
    assert "immutable" in numbered.headers["cache-control"]
    for answer in (now, numbered):
        assert answer.headers["content-type"] == "application/json"
        assert "signed" in answer.json()
        again = client.get(str(answer.url), headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        part = client.get(str(answer.url), headers={"Range": "bytes=2-7"})
        assert part.content == answer.content[2:8]
    assert client.get("/metadata/2.root.json").status_code == 404


STEPS = ["..", ".", "%2e%2e", "%2E.", "..%2f", "%2f", "%5c..", "..\\", "%00", "secret.json",
         "blobs", "metadata", "targets", "adapters", "ab", "ab" * 32, "timestamp.json%00",
         "%252e%252e",
         "/etc/passwd", "timestamp.json%0a", "%c0%ae%c0%ae"]  # fmt: skip


@settings(max_examples=150)
@given(
    root=st.sampled_from(["/blobs", "/blobs/ab", "/metadata", "/targets/adapters", "/targets", ""]),
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=5),
)
def test_no_path_leads_out(client: TestClient, root: str, steps: list[str]) -> None:
    answer = ask_raw(client, f"{root}/{'/'.join(steps)}")
    assert SECRET not in answer.content
    assert b"root:" not in answer.content
    is_dashboard = answer.request.url.path == "/"  # which holds nothing of anyone's
    assert is_dashboard or answer.status_code in (404, 405)


def ask_raw(client: TestClient, path: str) -> Any:
    """Ask for a path as it stands: no `..` is taken away before it is sent."""
    request = client.build_request("GET", "/")
    raw = path.encode()
    request.url = request.url.copy_with(raw_path=raw if raw.startswith(b"/") else b"/" + raw)
    return client.send(request)


def test_the_secret_would_be_found_if_a_path_led_to_it(client: TestClient) -> None:
    store: Store = client.app.state.server.store  # pyright: ignore[reportFunctionMemberAccess]
    (store.metadata / "secret.json").write_bytes(SECRET)
    assert ask_raw(client, "/metadata/secret.json").content == SECRET
    (store.metadata / "secret.json").unlink()
    assert ask_raw(client, "/metadata/../secret.json").status_code == 404
