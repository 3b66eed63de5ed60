"""Plain web servers that hand out a folder, each with habits of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers.waiting import in_background


@dataclass(frozen=True)
class Asked:
    """A request; the names of its headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """An answer, of whose body only `n_sent` bytes are sent before the connection ends."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    n_sent: int | None = None


Habit = Callable[[Asked], Answer | None]
"""Answers a request, or leaves it to the server, which looks for a file."""


def plain(asked: Asked) -> None:
    """Leave every request to the server."""
    del asked


class Site(ThreadingHTTPServer):
    """Hands out the files of a folder, ranges included.

    Attributes:
        folder: that it hands out.
        habit: answers first.
        asked: every request, in order.
    """

    daemon_threads = True

    def __init__(self, folder: Path, habit: Habit) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.habit = folder, habit
        self.asked: list[Asked] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests hang up on purpose."""

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def file(self, asked: Asked, path: str | None = None) -> Answer:
        """Return a file as asked for; another path may be given."""
        file = self.folder / (asked.path if path is None else path).lstrip("/")
        if asked.method != "GET" or not file.is_file():
            return Answer(404, b"no")
        data = file.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        if part is None:
            return Answer(200, data)
        start = int(part[1])
        about = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Answer(206, data[start:], about)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, body)
        self.server.asked.append(asked)
        answer = self.server.habit(asked) or self.server.file(asked)
        self.send_response(answer.status)
        length = {"Content-Length": str(len(answer.body))}
        for name, value in (length | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.n_sent])
        self.close_connection = self.close_connection or answer.n_sent is not None

    do_POST = do_HEAD = do_GET  # noqa: N815 the standard library calls them so


@contextmanager
def site(folder: Path, habit: Habit = plain) -> Iterator[Site]:
    """Run a server."""
    server = Site(folder, habit)
    with in_background(server):
        yield server
