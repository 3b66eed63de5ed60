"""llama.cpp's own server in a process of its own, from the wheel `xllamacpp`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_START = """
import json, sys
import xllamacpp
given = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = given["model"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
loras = []
for path in given["adapters"]:
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = path, given["scale"]
    loras.append(lora)
params.lora_adapters = loras
for name, value in given["settings"].items():
    setattr(params, name, value)
server = xllamacpp.Server(params)
print("listening at", server.listening_address, flush=True)
sys.stdin.read()
"""
_READY = b"listening at "


class NotServed(Exception):  # noqa: N818 what happened
    """The server ended before it listened; holds its log."""


@dataclass
class LlamaServer:
    """A running server.

    Attributes:
        address: `http://127.0.0.1:PORT`.
        process: ends with its standard input, or when it is killed.
        log: of its standard error.
    """

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the answer to a request: GET without a body, POST with one."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers)  # noqa: S310 our own
        with urllib.request.urlopen(request) as answer:  # noqa: S310 our own
            return json.load(answer)

    def log_probabilities(
        self,
        prompt: Sequence[int],
        n_words: int,
        *,
        n_best: int | None = None,
        adapters: Sequence[Mapping[str, Any]] = (),
        keep: bool = False,
        say: int | None = None,
    ) -> NDArray[np.float64]:
        """Return the logarithm of the probability of every next token.

        What is said has to be a whole text: for a part of a letter the server keeps them.

        Args:
            prompt: ids of tokens.
            n_words: of the vocabulary.
            n_best: the likeliest words only, and minus infinity for all others.
            adapters: `{"id": …, "scale": …}` of this request; those that are set without it.
            keep: what was computed of the prompt, for the next request.
            say: this word, which changes no probability; the likeliest for None.
        """
        body: dict[str, Any] = {
            "prompt": list(prompt), "n_predict": 1, "n_probs": n_best or n_words,
            "temperature": 0.0, "cache_prompt": keep, "ignore_eos": True,
        }  # fmt: skip
        if say is not None:
            body["logit_bias"] = [[say, 1e4]]
        if adapters:
            body["lora"] = list(adapters)
        answer = self.ask("/completion", body)
        found = np.full(n_words, -np.inf)
        for word in answer["completion_probabilities"][0]["top_logprobs"]:
            found[word["id"]] = word["logprob"]
        return found


@contextmanager
def llama_server(
    model: Path,
    adapters: Sequence[Path] = (),
    *,
    log: Path,
    scale: float = 1.0,
    **settings: Any,
) -> Iterator[LlamaServer]:
    """Serve a model; it answers before this yields.

    Args:
        model: GGUF.
        adapters: GGUF LoRAs.
        log: file for what the server says.
        scale: of all of them.
        settings: of `xllamacpp.CommonParams`, such as `port` or `sleep_idle_seconds`. Without
            `port` a free one is taken.

    Raises:
        NotServed: the server refused the model or an adapter.
    """
    known = {"n_ctx": 256, "n_parallel": 1, "port": 0, "warmup": False, "fit_params": False}
    given = {
        "model": str(model), "adapters": [str(path) for path in adapters], "scale": scale,
        "settings": {**known, **settings},
    }  # fmt: skip
    command = [sys.executable, "-c", _START, json.dumps(given)]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 our own words, no shell
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        assert process.stdout is not None
        address = _address(process)
        if address is None:
            raise NotServed(log.read_text("utf-8", "replace"))
        yield LlamaServer(address, process, log)
    finally:
        process.kill()
        process.communicate()


def _address(process: subprocess.Popen[bytes]) -> str | None:
    """Return where a server listens; None if it ended without."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_READY):
            return line[len(_READY) :].decode().strip()
    return None
