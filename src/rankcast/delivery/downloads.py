"""How a device gets files: over HTTP, or from a folder where there is no network.

Nothing here is trusted, and the reader counts the bytes: `download_bytes` and `download_file` of
The Update Framework's interface stop at a length, however long a server goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx2
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

CHUNK = 2**16
"""Bytes read at a time: at most so many beyond the length that was allowed."""
LONGEST_SILENCE_S = 30.0


def http_client() -> httpx2.Client:
    """Return a client for a device.

    A slow link may take as long as it needs: what is bounded is the time without a single byte.
    """
    return httpx2.Client(timeout=httpx2.Timeout(LONGEST_SILENCE_S), follow_redirects=False)


@dataclass(frozen=True, eq=False)
class HttpFetcher(FetcherInterface):
    """Files of a web server.

    Attributes:
        client: with timeouts, tokens and certificates as the device needs them.
    """

    client: httpx2.Client

    def _fetch(self, url: str) -> Iterator[bytes]:
        plain = {"Accept-Encoding": "identity"}  # nothing grows while it is unpacked
        try:
            with self.client.stream("GET", url, headers=plain) as response:
                if response.status_code != HTTPStatus.OK:
                    raise DownloadHTTPError(
                        f"{url}: HTTP status {response.status_code}", response.status_code
                    )
                yield from response.iter_raw(CHUNK)
        except httpx2.TimeoutException as error:
            raise SlowRetrievalError(f"{url}: no answer in time") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise DownloadError(f"{url}: {error}") from error


@dataclass(frozen=True, eq=False)
class FolderFetcher(FetcherInterface):
    """Files of a folder, such as a store on a medium that was carried to the device.

    Attributes:
        root: the folder; nothing outside it is read.
    """

    root: Path

    def _fetch(self, url: str) -> Iterator[bytes]:
        parts = urlsplit(url)
        path = Path(url2pathname(parts.path)).resolve()
        if parts.scheme != "file" or not path.is_relative_to(self.root.resolve()):
            raise DownloadError(f"{url} is outside {self.root}")
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"{url}: no such file", HTTPStatus.NOT_FOUND) from error
        except OSError as error:
            raise DownloadError(f"{url}: {error.strerror}") from error
