"""As much of llama.cpp's server as an adapter meets, as measured on the real one.

It reads its adapter files when it loads its model, at its start and when a request wakes it, and
ends for good if one of them is missing or of another model. It falls asleep whenever it is asked
whether it sleeps, so that nobody waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rankcast.codec.formats.gguf_header import GgufHeader
from rankcast.errors import ModelError

N_LAYERS, WIDTH = 2, 64
TOKENS = (3, 4, 5, 6)


def write_small_base(path: Path, width: int = WIDTH, name: str = "llama") -> Path:
    """Write a GGUF with nothing but queries."""
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(N_LAYERS)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    for i in range(N_LAYERS):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.zeros((width, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def says(data: bytes | None) -> list[float]:
    """Return log-probabilities of `TOKENS`: one that follows from an adapter's file is likely.

    Args:
        data: the file; None for the base model alone, to which all are alike.
    """
    weights = np.full(len(TOKENS), 1.0)
    if data is not None:
        weights[hashlib.sha256(data).digest()[0] % len(TOKENS)] = 30.0
    return [round(float(x), 6) for x in np.log(weights / weights.sum())]


class FakeLlama(ThreadingHTTPServer):
    """The server.

    Attributes:
        paths: of its adapters.
        scales: of them.
        has_read: their bytes as they were when it loaded the model.
        is_busy: whether it never sleeps.
        has_ended: whether it read what it could not load, or was stopped.
        n_loads: of its model.
    """

    daemon_threads = True

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths, self.scales = list(paths), [0.0] * len(paths)
        self.has_read: list[bytes] = []
        self.is_sleeping = self.is_busy = self.has_ended = False
        self.n_loads = 0
        self.load()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of these tests die on purpose."""

    def load(self) -> None:
        """Load the model and its adapters."""
        self.is_sleeping = False
        self.n_loads += 1
        try:
            for path in self.paths:
                header = GgufHeader.open(path)
                widths = {t.shape for n, t in header.tensors.items() if n.endswith("lora_a")}
                if header.text("general.architecture") != "llama" or any(
                    shape[1] != WIDTH for shape in widths
                ):
                    self.has_ended = True
            self.has_read = [path.read_bytes() for path in self.paths]
        except (ModelError, OSError):
            self.has_ended = True

    def restart(self) -> None:
        """Start again, with the scales of the command line."""
        self.has_ended, self.scales = False, [0.0] * len(self.paths)
        self.load()

    def answering_with(self) -> list[bytes]:
        """Return the bytes of the adapters that count."""
        return [data for data, scale in zip(self.has_read, self.scales, strict=True) if scale]


class _Handler(BaseHTTPRequestHandler):
    server: FakeLlama

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        server = self.server
        if self.path == "/props" and not server.has_ended:
            server.is_sleeping = not server.is_busy
            self._answer({"is_sleeping": server.is_sleeping})
            return
        if self._is_up():
            self._answer([
                {"id": i, "path": str(path), "scale": server.scales[i]}
                for i, path in enumerate(server.paths)
            ])  # fmt: skip

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_up():
            return
        if self.path == "/lora-adapters":
            asked = {entry["id"]: entry["scale"] for entry in body}
            server.scales = [asked.get(i, 0.0) for i in range(len(server.paths))]
            self._answer({"success": True})
            return
        used = [server.has_read[x["id"]] for x in body["lora"] if x["scale"]]
        values = says(used[0] if used else None)
        words = [{"id": t, "logprob": v} for t, v in zip(TOKENS, values, strict=True)]
        self._answer({"completion_probabilities": [{"top_logprobs": words}]})

    def _is_up(self) -> bool:
        """Wake; hang up if the process has ended."""
        if self.server.is_sleeping and not self.server.has_ended:
            self.server.load()
        self.close_connection = True
        return not self.server.has_ended

    def _answer(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
