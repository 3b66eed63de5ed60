"""llama.cpp's own server for tests; see `studies.shared.llama_cpp`.

A test that needs it skips without the wheel, or fails where all should be.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.programs import lacks
from studies.shared import llama_cpp
from studies.shared.llama_cpp import LlamaServer, NotServed

__all__ = ["LlamaServer", "NotServed", "llama_server", "needs_llama_cpp"]


def needs_llama_cpp() -> None:
    """Skip the test, or fail, without the wheel."""
    if importlib.util.find_spec("xllamacpp") is None:
        lacks("llama.cpp is not installed (pip install xllamacpp)")


@contextmanager
def llama_server(
    model: Path, adapters: Sequence[Path] = (), *, log: Path, scale: float = 1.0, **settings: Any
) -> Iterator[LlamaServer]:
    """Serve a model; see `studies.shared.llama_cpp.llama_server`."""
    needs_llama_cpp()
    with llama_cpp.llama_server(model, adapters, log=log, scale=scale, **settings) as server:
        yield server
