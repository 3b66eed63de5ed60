"""Ask a server for files as a device does: stay with its host, take files as they lie there.

Tokens and passwords go to the host that the device was told, and nowhere else: redirects are
followed within it, or from HTTP to HTTPS of it. Any other is refused by name, and so are answers
that are no file of a store: a page to log in, or bytes that somebody compressed on the way.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from rankcast.errors import ConfigError, DeliveryError, UnavailableError

CHUNK = 2**16
"""Bytes read at a time: at most so many beyond the length that was allowed. Whoever reads stops at
that length, however long a server goes on."""
LONGEST_SILENCE_S = 30.0
MOST_REDIRECTS = 5
AS_IT_LIES = {"Accept-Encoding": "identity"}
"""Headers of a request for a file: nothing grows while it is unpacked."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN = frozenset({408, 416, 425, 429})
_COMPRESSING = frozenset({"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd"})
"""Others, such as the `aws-chunked` that some stores keep, say nothing of the bytes."""
_PAGES = (b"<!doctype", b"<html")
_PORTS = {"http": 80, "https": 443}
_BASIC = "Basic"


class StayingClient(httpx2.Client):
    """Follows redirects within the host that was asked, with every header, `Range` included."""

    def send(
        self, request: httpx2.Request, *, stream: bool = False, **more: Any
    ) -> httpx2.Response:
        """Send a request, and again to wherever the same host says.

        Raises:
            DeliveryError: a redirect to elsewhere, in a circle, or one too many.
        """
        seen = [request.url]
        more["follow_redirects"] = False  # httpx would follow to anywhere
        while True:
            response = super().send(request, stream=True, **more)
            try:
                target = _redirected(response, seen)
                if target is None:
                    if not stream:
                        response.read()
                    return response
                _drain(response)
            except BaseException:
                response.close()
                raise
            response.close()
            seen.append(target)
            request = httpx2.Request(
                request.method, target, headers=request.headers, stream=request.stream,
                extensions=request.extensions,
            )  # fmt: skip


def http_client(
    token: str | None = None,
    base_url: str = "",
    transport: httpx2.BaseTransport | None = None,
) -> StayingClient:
    """Return a client for a device.

    A slow link may take as long as it needs: what is bounded is the time without a single byte.

    Args:
        token: of the device; None for open servers.
        base_url: of the server, for requests that name a path; with a user and a password where
            a web server asks for them.
        transport: of the connection; None for the network.

    Raises:
        ConfigError: a token or an address that cannot be one, both a token and a password, or a
            proxy or certificates of the environment that cannot be used.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {checked_token(token)}"}
    server = checked_server(base_url) if base_url else ""
    url = httpx2.URL(base_url)
    if url.userinfo:
        if headers:
            raise ConfigError(
                "One request carries a token, or a user and a password: give a token, or write "
                "the other two into the address."
            )
        user = b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers = {"Authorization": f"{_BASIC} {user}"}
    try:
        return StayingClient(
            base_url=server, headers=headers, transport=transport, timeout=LONGEST_SILENCE_S
        )
    except (ImportError, OSError, ValueError) as error:
        raise ConfigError(
            f"The environment names a proxy or certificates that cannot be used ({error}); see "
            f"HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
        ) from error


def checked_token(token: str) -> str:
    """Return a token that can be sent.

    Raises:
        ConfigError: it is empty, or has characters that no token has; it is not repeated.
    """
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "A token is one word of plain letters, digits and signs, as rankcast devices add "
            "printed it; this one is empty, or has a space or another character."
        )
    return token


def checked_server(url: str) -> str:
    """Return the address of a server with a slash at its end, without user and password.

    Raises:
        ConfigError: no address of the web, or one that no path can be added to.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in _PORTS or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigError(
            f"{url.rpartition('@')[2]!r} is no address of a server: it begins with https:// or "
            f"http:// and a host, such as https://adapters.example, and has no ? and no #."
        )
    return str(parsed.copy_with(userinfo=b"")).rstrip("/") + "/"


def shown(url: httpx2.URL) -> str:
    """Return an address for a message, without what may be secret in it."""
    return str(url.copy_with(username="", password="", query=None, fragment=None))


def why_refused(response: httpx2.Response) -> str:
    """Return what an answer other than a file means, and what to do.

    A store of objects says 403 of a file that it lacks, so that 403 alone says nothing of tokens.
    """
    status, sent = response.status_code, response.request.headers.get("Authorization", "")
    if may_pass(status):
        return "it is busy or broken just now"
    if is_about_tokens(response):
        return _why_unauthorized(sent, response.headers.get("WWW-Authenticate", ""))
    if status == HTTPStatus.FORBIDDEN:
        may_not = "this device's token does not allow it" if sent else "it asks for a token"
        return f"{may_not}, or the file is not there, of which stores such as S3 say the same"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return "it lacks the file: check the address, or ask whoever published to publish again"
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "a proxy on the way asks for a user and a password: name them in HTTPS_PROXY"
    return "it is no server of adapters, or its address is another"


def _why_unauthorized(sent: str, wanted: str) -> str:
    if sent.startswith(_BASIC):
        return "it does not accept the user and the password in its address"
    if sent:
        return (
            "it does not accept this device's token, which is mistyped, revoked or of another "
            "server: ask for another (rankcast devices add NAME)"
        )
    or_user = ", or a user and a password: https://USER:PASSWORD@HOST"
    asks = "it asks for a token: give the device's own with --token-file"
    return asks + (or_user if wanted.startswith(_BASIC) else "")


def is_about_tokens(response: httpx2.Response) -> bool:
    """Return whether a refusal is of the token, or of its lack, beyond doubt."""
    status = response.status_code
    asks = status == HTTPStatus.FORBIDDEN and "WWW-Authenticate" in response.headers
    return status == HTTPStatus.UNAUTHORIZED or asks


def may_pass(status: int) -> bool:
    """Return whether the same request may be answered later."""
    return status in _TRY_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def check_encoding(response: httpx2.Response) -> None:
    """Refuse a file that was compressed on the way, although nobody asked for it.

    Raises:
        DeliveryError: names the encoding.
    """
    named = response.headers.get("Content-Encoding", "")
    for encoding in (word.strip().lower() for word in named.split(",")):
        if encoding in _COMPRESSING:
            raise DeliveryError(
                f"{shown(response.url)} came compressed ({encoding}), although the device asked "
                f"for it as it lies there. Ask the server's operator to compress nothing of the "
                f"store."
            )


def check_no_page(response: httpx2.Response, beginning: bytes) -> None:
    """Refuse a web page where a file was asked for.

    Raises:
        UnavailableError: the answer begins as pages do.
    """
    if beginning.lstrip()[:16].lower().startswith(_PAGES):
        raise UnavailableError(
            f"A web page came instead of {shown(response.url)}. Either this network wants a login "
            f"first, or the address is not that of a store."
        )


@dataclass(frozen=True, eq=False)
class HttpFetcher(FetcherInterface):
    """Files of a web server.

    Attributes:
        client: with timeouts, tokens and certificates as the device needs them.
    """

    client: httpx2.Client

    def _fetch(self, url: str) -> Iterator[bytes]:
        where = shown(httpx2.URL(url))
        try:
            with self.client.stream("GET", url, headers=AS_IT_LIES) as response:
                status = response.status_code
                if status != HTTPStatus.OK:
                    # The Update Framework takes 403 and 404 for the absence of a further root
                    if is_about_tokens(response):
                        status = HTTPStatus.UNAUTHORIZED
                    elif status == HTTPStatus.GONE:
                        status = HTTPStatus.NOT_FOUND
                    words = f"HTTP status {response.status_code}: {why_refused(response)}"
                    raise DownloadHTTPError(f"{where}: {words}", status)
                check_encoding(response)
                for number, data in enumerate(response.iter_raw(CHUNK)):
                    if not number:
                        check_no_page(response, data)
                    yield data
        except httpx2.TimeoutException as error:
            raise SlowRetrievalError(f"{where}{_by_proxy(url)}: no answer in time") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise DownloadError(f"{where}{_by_proxy(url)}: {error}") from error


def _by_proxy(url: str) -> str:
    """Say whether requests take a way that the environment names."""
    parsed, proxies = httpx2.URL(url), getproxies()
    is_proxied = parsed.scheme in proxies or "all" in proxies
    return (
        " by the proxy of the environment" if is_proxied and not proxy_bypass(parsed.host) else ""
    )


def _redirected(response: httpx2.Response, seen: list[httpx2.URL]) -> httpx2.URL | None:
    """Return where an answer sends its request; None if it is to be taken as it is.

    Raises:
        DeliveryError: to elsewhere, in a circle, or once too often.
    """
    request, location = response.request, response.headers.get("Location")
    if response.status_code not in _REDIRECTS or location is None:
        return None
    if response.status_code == HTTPStatus.SEE_OTHER and request.method not in ("GET", "HEAD"):
        return None  # the answer to what was sent lies elsewhere, and nobody needs it
    start = shown(seen[0])
    try:
        target = request.url.join(location).copy_with(userinfo=b"")
    except httpx2.InvalidURL as error:
        raise DeliveryError(f"{start} redirects to what is no address ({error}).") from error
    if not _is_home(request.url, target):
        raise DeliveryError(f"{start} redirects to {_elsewhere(request.url, target)}.")
    if target in seen:
        raise DeliveryError(f"{start} redirects in a circle; tell the server's operator.")
    if len(seen) > MOST_REDIRECTS:
        raise DeliveryError(
            f"{start} redirects more than {MOST_REDIRECTS} times; tell the server's operator."
        )
    return target


def _is_home(url: httpx2.URL, target: httpx2.URL) -> bool:
    """Return whether a target is of the same scheme, host and port, or HTTPS instead of HTTP."""
    if url.host != target.host:
        return False
    ports = _port(url), _port(target)
    if url.scheme == target.scheme:
        return ports[0] == ports[1]
    return (url.scheme, target.scheme, *ports) == ("http", "https", 80, 443)


def _port(url: httpx2.URL) -> int | None:
    return url.port or _PORTS.get(url.scheme)


def _elsewhere(url: httpx2.URL, target: httpx2.URL) -> str:
    """Say in which way a target is elsewhere."""
    address = f"{target.scheme}://{target.netloc.decode('ascii')}"
    if url.host == target.host and (url.scheme, target.scheme) == ("https", "http"):
        return f"{address}, which is not encrypted; a device does not go there by itself"
    what = "port" if url.host == target.host else "host"
    return (
        f"another {what}, {address}, and a device does not go there by itself. If the store has "
        f"moved there, name that address with --server; a network that wants a login first "
        f"redirects so, too"
    )


def _drain(response: httpx2.Response) -> None:
    """Read the short body of a redirect, so that the connection can be used again."""
    n_bytes = 0
    for data in () if response.is_stream_consumed else response.iter_raw():
        n_bytes += len(data)
        if n_bytes > CHUNK:
            return
