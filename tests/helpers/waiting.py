"""Waits for what other threads and processes do, with one guard against deadlocks.

No test waits for the guard: it is far longer than anything here takes on the slowest machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from socketserver import BaseServer

DEADLOCK_S = 600.0


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread or process does."""
    end_s = time.monotonic() + DEADLOCK_S
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.005)


def at_once(*calls: Callable[[], object]) -> None:
    """Call functions in a thread each and wait for all; raise what the first failing one raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result(DEADLOCK_S)


@contextmanager
def in_background(server: BaseServer) -> Iterator[None]:
    """Let a server of the standard library serve in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
