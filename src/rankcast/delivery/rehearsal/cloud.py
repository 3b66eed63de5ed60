"""The cloud of a rehearsal: keys, a store, tokens, and `rankcast serve` as a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from rankcast.codec.container import Container
from rankcast.delivery.keyring import KeyFolder
from rankcast.delivery.manifest import Manifest
from rankcast.delivery.publishing import publish
from rankcast.delivery.signing import init_keys
from rankcast.delivery.store import Store
from rankcast.errors import DeliveryError

_LISTENING = re.compile(r"running on http://127\.0\.0\.1:(\d+)")
_START_S = 60.0
_END_S = 10.0
_STEP_S = 0.05
_START_LINE = "from rankcast.cli import main; main()"


class Cloud:
    """Publishes and serves in a folder.

    Args:
        folder: for keys, store, database and logs.
        adapter: name of what is published.
    """

    def __init__(self, folder: Path, adapter: str) -> None:
        self.folder, self.adapter = folder, adapter
        self.store, self._keys = Store(folder / "store"), KeyFolder(folder / "keys")
        self._database = f"sqlite:///{(folder / 'devices.db').resolve()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.port, self.n_starts = 0, 0
        init_keys(self._keys, self.store, datetime.now(UTC))

    @property
    def root(self) -> bytes:
        """Metadata that devices are installed with."""
        return (self.store.metadata / "root.json").read_bytes()

    @property
    def log(self) -> Path:
        """What the server said."""
        return self.folder / "server.log"

    def publish(self, files: Sequence[Container]) -> Manifest:
        """Put a release in force."""
        return publish(files, self.adapter, self.store, self._keys, datetime.now(UTC))

    def tokens(self, n_devices: int) -> list[str]:
        """Let devices in.

        Raises:
            ConfigError: the extra `serve` is missing.
        """
        from rankcast.delivery.registry import Registry  # noqa: PLC0415 needs the extra

        with closing(Registry(self._database)) as registry:
            return [registry.add(f"device-{n}", "device") for n in range(n_devices)]

    def start(self) -> int:
        """Start the server, at the port where it was before, and return that.

        Raises:
            DeliveryError: it does not come up.
        """
        said_before = self.log.stat().st_size if self.log.exists() else 0
        args = ["serve", "--store", str(self.store.root), "--database", self._database,
                "--port", str(self.port), "--grace-s", "1"]  # fmt: skip
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(  # noqa: S603 our own words, no shell
                [sys.executable, "-c", _START_LINE, *args], stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self.n_starts += 1
        self.port = self._listening_port(self._process, said_before)
        return self.port

    def kill(self) -> None:
        """End the server at once, as a loss of power would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the server in order."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def answers(self) -> Counter[int]:
        """Return how often the server answered with each status, by its log."""
        found: Counter[int] = Counter()
        for line in self.log.read_text("utf-8", "replace").splitlines():
            if '"status"' in line:
                try:
                    found[int(json.loads(line)["status"])] += 1
                except (ValueError, KeyError, TypeError):
                    continue  # cut off when it was killed
        return found

    def tracebacks(self) -> int:
        """Return how many tracebacks the server wrote."""
        return self.log.read_text("utf-8", "replace").count("Traceback (most recent call last)")

    def _listening_port(self, process: subprocess.Popen[bytes], said_before: int) -> int:
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and process.poll() is None:
            said = self.log.read_bytes()[said_before:].decode("utf-8", "replace")
            found = _LISTENING.search(said)
            if found and _is_alive(int(found[1])):
                return int(found[1])
            time.sleep(_STEP_S)
        self.stop()
        last = self.log.read_text("utf-8", "replace")[-500:]
        raise DeliveryError(f"The server did not start; the end of its log: {last}")


def _is_alive(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz", timeout=1.0).is_success
    except httpx2.HTTPError:
        return False
