"""The cloud of a simulation: keys, a store, tokens, and `rankcast serve` in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rankcast.codec.container import Container
from rankcast.errors import DeliveryError
from rankcast.release.ceremony import init_keys
from rankcast.release.keys import KeyFolder
from rankcast.release.manifest import Manifest
from rankcast.release.publish import publish
from rankcast.release.store import Store

_LISTENING = re.compile(rb"Listening on http://[0-9.]+:(\d+)")
_END_S = 10.0


class ServerProcess:
    """`rankcast serve` as a process of its own; made when it listens.

    Args:
        options: of the command.
        log: file to which its log is appended.

    Attributes:
        port: where it listens.

    Raises:
        DeliveryError: it ended before it listened; says what its log says.
    """

    def __init__(self, options: Sequence[str], log: Path) -> None:
        command = [sys.executable, "-m", "rankcast", "serve", "--log-format", "json", *options]
        self.process = subprocess.Popen(  # noqa: S603 our own words, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        listening: Future[int] = Future()
        self._reader = threading.Thread(
            target=_copy_log, args=(self.process.stderr, log, listening), daemon=True
        )
        self._reader.start()
        try:
            self.port = listening.result()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it and its workers at once, as a loss of power would."""
        if self.process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Wait until it has ended and its log is whole; return its exit status."""
        status = self.process.wait()
        self._reader.join()
        return status

    def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        self.kill()


def _copy_log(stream: IO[bytes], log: Path, listening: Future[int]) -> None:
    """Write what a server logs to a file, and find out where it listens."""
    last = b""
    with stream, log.open("ab", buffering=0) as file:
        for line in stream:
            file.write(line)
            last = line
            match = _LISTENING.search(line)
            if match and not listening.done():
                listening.set_result(int(match[1]))
    if not listening.done():
        said = last.decode("utf-8", "replace").strip()
        listening.set_exception(DeliveryError(f"The server did not start: {said}"))


class Cloud:
    """Publishes and serves in a folder.

    Args:
        folder: for keys, store, database and logs.
        adapter: name of what is published.

    Attributes:
        port: where the server listens; 0 before it was started.
        n_starts: how often it was started.
    """

    def __init__(self, folder: Path, adapter: str) -> None:
        self.folder, self.adapter = folder, adapter
        self.store, self._keys = Store(folder / "store"), KeyFolder(folder / "keys")
        self._database = f"sqlite:///{(folder / 'devices.db').resolve()}"
        self._server: ServerProcess | None = None
        self.port, self.n_starts = 0, 0
        init_keys(self._keys, self.store, datetime.now(UTC))

    @property
    def root(self) -> bytes:
        """Metadata that devices are installed with."""
        return (self.store.metadata / "root.json").read_bytes()

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "server.log"

    def publish(self, files: Sequence[Container]) -> Manifest:
        """Publish a release."""
        return publish(files, self.adapter, self.store, self._keys, datetime.now(UTC))

    def add_devices(self, n_devices: int) -> list[str]:
        """Let devices in and return their tokens."""
        from rankcast.server.registry import Registry  # noqa: PLC0415 needs the extra

        with closing(Registry(self._database)) as registry:
            return [registry.add(f"device-{n}", "device") for n in range(n_devices)]

    def start(self) -> None:
        """Start the server, at any port that is free.

        Raises:
            DeliveryError: it does not come up.
        """
        options = ["--store", str(self.store.root), "--database", self._database,
                   "--port", "0", "--grace-s", "1"]  # fmt: skip
        self._server = ServerProcess(options, self.log)
        self.port = self._server.port
        self.n_starts += 1

    def restart(self) -> None:
        """Kill the server and start it again.

        Raises:
            DeliveryError: it does not come up.
        """
        if self._server is not None:
            self._server.kill()
        self.start()

    def stop(self) -> None:
        """End the server in order."""
        if self._server is not None:
            self._server.stop()

    def answers(self) -> Counter[int]:
        """Return how often the server answered with each status, by its log."""
        counts: Counter[int] = Counter()
        for line in self.log.read_text("utf-8", "replace").splitlines():
            if '"status"' in line:
                try:
                    counts[int(json.loads(line)["status"])] += 1
                except (ValueError, KeyError, TypeError):
                    continue  # cut off when it was killed
        return counts

    def tracebacks(self) -> int:
        """Return how many tracebacks the server wrote."""
        return self.log.read_text("utf-8", "replace").count("Traceback (most recent call last)")
