"""A device's way of asking: where redirects lead, what a refusal means, what is no file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tuf.api.exceptions import DownloadError

from helpers.sites import Answer, Asked, site
from rankcast.errors import ConfigError, DeliveryError
from rankcast.release.http import (
    CHUNK,
    MOST_REDIRECTS,
    HttpFetcher,
    checked_server,
    checked_token,
    http_client,
    shown,
    why_refused,
)

TOKEN = "of-this-device"  # noqa: S105 nobody's


def sending(status: int, location: str, path: str = "/old") -> Callable[[Asked], Answer | None]:
    """Return the habit of sending what asks for one path elsewhere."""

    def habit(asked: Asked) -> Answer | None:
        return Answer(status, b"go on", {"Location": location}) if asked.path == path else None

    return habit


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/a/new", "a/new", "./a/../a/new", "{url}/a/new", "{upper}"])
def test_redirects_within_a_host_are_followed_with_every_header(
    status: int, location: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "new").write_bytes(b"0123456789")
    with site(tmp_path) as server, http_client(TOKEN, server.url) as client:
        upper = f"HTTP://127.0.0.1:{server.port}/a/new"
        server.habit = sending(status, location.format(url=server.url, upper=upper))
        asked_for = {"Range": "bytes=4-", "Accept-Encoding": "identity"}
        answer = client.get("old", headers=asked_for)
    assert (answer.status_code, answer.content) == (206, b"456789")
    first, second = server.asked
    assert (first.path, second.path) == ("/old", "/a/new")
    assert second.headers == first.headers
    assert second.headers["range"] == "bytes=4-"
    assert second.headers["authorization"] == f"Bearer {TOKEN}"


def test_a_connection_is_used_again_after_a_redirect(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"x")
    connections = set()
    with site(tmp_path) as server, http_client(base_url=server.url) as client:
        server.habit = sending(302, "/new")
        for _ in range(3):
            with client.stream("GET", "old") as answer:
                stream = answer.extensions["network_stream"]
                connections.add(stream.get_extra_info("client_addr"))
                assert answer.read() == b"x"
    assert len(connections) == 1


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://localhost:{port}/new", "another host, http://localhost:"),
        ("//localhost:{port}/new", "another host, http://localhost:"),
        ("http://127.0.0.1:{other}/new", "another port, http://127.0.0.1:"),
        ("https://127.0.0.1/new", "another port, https://127.0.0.1,"),
        ("https://127.0.0.1:{port}/new", "another port, https://127.0.0.1:"),
        ("ftp://127.0.0.1/new", "another port, ftp://127.0.0.1"),
        ("http://user:secret@portal.example/new", "another host, http://portal.example,"),
        ("http://user:secret@127.0.0.1:{port}/old", "in a circle"),
        ("http://127.0.0.1.portal.example/new", "another host"),
        ("file:///etc/passwd", "another host"),
        ("http://[::1/new", "no address"),
        ("/old", "in a circle"),
        ("", "in a circle"),
    ],
)
def test_no_other_redirect_is_followed_and_no_token_leaves_the_host(
    location: str, words: str, tmp_path: Path
) -> None:
    with site(tmp_path) as other, site(tmp_path) as server:
        server.habit = sending(302, location.format(port=server.port, other=other.port))
        client = http_client(TOKEN, server.url)
        with client, pytest.raises(DeliveryError, match=r"/old redirects ") as refused:
            client.get("old")
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)
    assert other.asked == []
    assert [asked.path for asked in server.asked] == ["/old"]


def test_a_chain_of_redirects_has_an_end(tmp_path: Path) -> None:
    def on(asked: Asked) -> Answer | None:
        n = int(asked.path[1:])
        return Answer(302, b"", {"Location": f"/{n - 1}"}) if n else Answer(200, b"here")

    with site(tmp_path, on) as server, http_client(base_url=server.url) as client:
        assert client.get(f"{MOST_REDIRECTS}").content == b"here"
        n_before = len(server.asked)
        with pytest.raises(DeliveryError, match=f"more than {MOST_REDIRECTS} times"):
            client.get(f"{MOST_REDIRECTS + 1}")
        assert len(server.asked) == n_before + MOST_REDIRECTS + 1


def test_a_long_body_of_a_redirect_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"x")
    with site(tmp_path) as server, http_client(base_url=server.url) as client:
        long = Answer(302, bytes(2 * CHUNK), {"Location": "/new", "Content-Length": "999999999"})
        server.habit = lambda asked: long if asked.path == "/old" else None
        assert client.get("old").content == b"x"


@pytest.mark.parametrize(
    ("start", "location", "words"),
    [
        ("http://a.example/old", "https://a.example/new", None),
        ("http://a.example:80/old", "https://A.EXAMPLE:443/new", None),
        ("https://a.example/old", "https://a.example:443/new", None),
        ("https://a.example/old", "http://a.example/new", "not encrypted"),
        ("https://a.example/old", "https://a.example:8443/new", "another port"),
        ("http://a.example:8080/old", "https://a.example/new", "another port"),
        ("http://a.example/old", "https://www.a.example/new", "another host"),
        ("https://a.example/old", "http://b.example/new", "another host"),
    ],
)
def test_to_https_but_never_back(start: str, location: str, words: str | None) -> None:
    seen: list[httpx2.Request] = []

    def answers(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        if request.url.path == "/old":
            return httpx2.Response(301, headers={"Location": location})
        return httpx2.Response(200, content=b"here")

    with http_client(TOKEN, transport=httpx2.MockTransport(answers)) as client:
        if words is None:
            assert client.get(start).content == b"here"
            assert seen[1].url.scheme == "https"
            assert seen[1].headers["Authorization"] == f"Bearer {TOKEN}"
            assert seen[1].headers["Host"] == "a.example"
        else:
            with pytest.raises(DeliveryError, match=words):
                client.get(start)
            assert len(seen) == 1


@pytest.mark.parametrize(("status", "is_sent_on"), [(301, True), (302, True), (303, False),
                                                   (307, True), (308, True)])  # fmt: skip
def test_what_is_posted_is_posted_again(status: int, is_sent_on: bool, tmp_path: Path) -> None:
    def habit(asked: Asked) -> Answer | None:
        if asked.path == "/old":
            return Answer(status, b"", {"Location": "/new"})
        return Answer(200, asked.body)

    with site(tmp_path, habit) as server, http_client(base_url=server.url) as client:
        answer = client.post("old", json={"held": ["é"]})
    if is_sent_on:
        assert json.loads(answer.content) == {"held": ["é"]}
        assert [asked.method for asked in server.asked] == ["POST", "POST"]
    else:
        assert (answer.status_code, len(server.asked)) == (303, 1)


@pytest.mark.parametrize(
    ("status", "headers", "token", "words"),
    [
        (401, {}, TOKEN, "does not accept this device's token"),
        (401, {}, None, "asks for a token: give the device's own with --token-file"),
        (403, {"WWW-Authenticate": "Bearer"}, TOKEN, "does not accept this device's token"),
        (403, {"WWW-Authenticate": "Basic"}, None, "or a user and a password: https://USER"),
        (429, {}, None, "busy or broken"),
        (503, {}, TOKEN, "busy or broken"),
        (403, {}, TOKEN, "token does not allow it, or the file is not there"),
        (403, {}, None, "asks for a token, or the file is not there"),
        (404, {}, TOKEN, "lacks the file"),
        (410, {}, None, "lacks the file"),
        (407, {}, None, "a proxy on the way"),
        (400, {}, None, "no server of adapters"),
    ],
)
def test_what_a_refusal_means(
    status: int, headers: dict[str, str], token: str | None, words: str
) -> None:
    answer = httpx2.Response(status, headers=headers)
    transport = httpx2.MockTransport(lambda _: answer)
    with http_client(token, "https://a.example", transport) as client:
        assert words in why_refused(client.get("x"))


@pytest.mark.parametrize("token", ["", "two words", "tökén", "a\nb", "\ufeffabc", "a\x00"])
def test_a_token_that_cannot_be_one_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigError, match="one word") as refused:
        http_client(token)
    assert not token or token not in str(refused.value)
    assert checked_token("aZ09-._~+/=") == "aZ09-._~+/="


@pytest.mark.parametrize(
    "named",
    [{"HTTP_PROXY": "socks5://127.0.0.1:1"}, {"HTTPS_PROXY": "ftp://127.0.0.1"},
     {"SSL_CERT_FILE": "/no/such/file"}, {"SSL_CERT_FILE": __file__}],
)  # fmt: skip
def test_what_the_environment_names_and_nobody_can_use(
    named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=next(iter(named))):
        http_client(TOKEN, "http://a.example")


@pytest.mark.parametrize(("spared", "is_named"), [("", True), ("127.0.0.1", False), ("*", False)])
def test_a_proxy_that_does_not_answer_is_named(
    spared: str, is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(tmp_path) as closed:
        port = closed.port
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", spared)
    url = f"http://127.0.0.1:{port}/"
    with http_client(base_url=url) as client, pytest.raises(DownloadError) as failed:
        list(HttpFetcher(client).fetch(url + "x"))
    assert ("by the proxy of the environment" in str(failed.value)) is is_named
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("url", ["", "adapters.example", "ftp://a.example", "http://", "http://[::1",
                                 "http://a.example:port", "file:///srv/store",
                                 "https://a.example/?signature=x", "https://a.example/#x",
                                 "me:secret@a.example", "http://me:secret@a.example:port",
                                 "http://me:secret/x@a.example"])  # fmt: skip
def test_an_address_that_cannot_be_one(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of a server") as refused:
        checked_server(url)
    assert "secret" not in str(refused.value)


def test_an_address_is_shown_without_secrets() -> None:
    assert checked_server("http://me:secret@a.example/store") == "http://a.example/store/"
    assert checked_server("http://[::1]:80//") == "http://[::1]/"
    url = httpx2.URL("https://me:secret@a.example/x?signature=s#f")
    assert shown(url) == "https://a.example/x"
