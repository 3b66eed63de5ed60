"""Many devices in one process: each with its token and one connection that it keeps.

Each asks for a plan, fetches what the plan names, checks every digest, reports, and waits for a
time drawn by chance. Prints JSON. Called by `test_serve_load.py`. Where `beside` names a file of
another server, each also has a connection there, and asks for it before each plan or after it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """What happened to all devices together."""

    plan_s: list[float] = field(default_factory=list)
    file_s: list[float] = field(default_factory=list)
    n_blobs: int = 0
    n_bytes: int = 0
    n_reports: int = 0
    errors: list[str] = field(default_factory=list)


class Connection:
    """HTTP/1.1 as far as it is needed, so that the client costs little."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Return the answer's status and body; a connection that idled too long is made anew."""
        if self._reader.at_eof():
            self._writer.close()
            await self.open()
        data = b"" if body is None else json.dumps(body).encode()
        lines = (f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self._token}",
                 "Content-Type: application/json", f"Content-Length: {len(data)}")  # fmt: skip
        self._writer.write("\r\n".join((*lines, "", "")).encode() + data)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status, length = int(answer[9:12]), 0
        for line in answer.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return status, await self._reader.readexactly(length)


async def device(number: int, given: dict[str, Any], end_s: float, seen: Seen) -> None:
    chance = random.Random(f"{given['seed']}-{number}")  # noqa: S311 no secret
    token, beside = given["tokens"][number], given.get("beside")
    connection, other, path = Connection(given["port"], token), None, ""
    try:
        if beside is not None:  # all are connected before the first of them asks
            other, path = Connection(beside["port"], token), beside["path"]
            await asyncio.gather(connection.open(), other.open())
        await asyncio.sleep(chance.uniform(0.0, given["pause_s"]))
        if other is None:
            await connection.open()
        while time.perf_counter() < end_s:
            is_first = chance.random() < 0.5
            if other is not None and is_first:
                await fetch(other, path, seen)
            await sync(connection, chance, given["base"], seen)
            if other is not None and not is_first:
                await fetch(other, path, seen)
            pause_s = chance.expovariate(1.0 / given["pause_s"])
            await asyncio.sleep(min(pause_s, max(0.0, end_s - time.perf_counter())))
    except (OSError, EOFError, ValueError) as error:
        seen.errors.append(repr(error))


async def fetch(connection: Connection, path: str, seen: Seen) -> None:
    began = time.perf_counter()
    status, _ = await connection.ask("GET", path)
    seen.file_s.append(time.perf_counter() - began)
    if status != 200:
        seen.errors.append(f"file: {status}")


async def sync(connection: Connection, chance: random.Random, base: str, seen: Seen) -> None:
    rate_bps = 10.0 ** chance.uniform(5.0, 7.0)
    asked = {"adapter": "sst2", "base_fingerprint": base, "deadline_s": 1.0, "held": [],
             "link": {"throughput_bps": rate_bps}}  # fmt: skip
    began = time.perf_counter()
    status, body = await connection.ask("POST", "/v1/plan", asked)
    seen.plan_s.append(time.perf_counter() - began)
    if status != 200:
        seen.errors.append(f"plan: {status}")
        return
    plan = json.loads(body)
    for blob in plan["blobs"]:
        sha256 = blob["sha256"]
        status, data = await connection.ask("GET", f"/blobs/{sha256[:2]}/{sha256}")
        if status != 200 or hashlib.sha256(data).hexdigest() != sha256:
            seen.errors.append(f"blob: {status}")
        seen.n_blobs, seen.n_bytes = seen.n_blobs + 1, seen.n_bytes + len(data)
    told = {key: plan[key] for key in ("adapter", "version", "ladder", "n_rungs")}
    status, _ = await connection.ask("POST", "/v1/report", {**told, "event": "activated"})
    seen.n_reports += status == 204
    if status != 204:
        seen.errors.append(f"report: {status}")


async def everyone(given: dict[str, Any]) -> Seen:
    seen, end_s = Seen(), time.perf_counter() + given["seconds"]
    await asyncio.gather(*(device(n, given, end_s, seen) for n in range(len(given["tokens"]))))
    return seen


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(everyone(json.loads(Path(sys.argv[1]).read_text()))))))
