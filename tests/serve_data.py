"""`rankcast serve` as a process of its own."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def served(root: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Yield a server's process, its port and its log."""
    log = root / "log"
    args = ["serve", "--store", str(root / "store"), "--port", "0", *options]
    database = ["--database", f"sqlite:///{root}/devices.db"]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own words, no shell
            [sys.executable, "-c", "from rankcast.cli import main; main()", *args, *database],
            stderr=file,
        )
    try:
        yield process, port_of(process, log), log
    finally:
        process.kill()
        process.wait()


def port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"running on http://127.0.0.1:(\d+)", log.read_text())
        if found and ask(int(found[1]), "GET", "/healthz")[0] == 200:
            return int(found[1])
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def ask(
    port: int, method: str, path: str, body: Any = None, token: str | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionRefusedError:
        return 0, b""
    finally:
        connection.close()
