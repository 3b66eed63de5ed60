"""Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a command that was asked to stop."""


@contextmanager
def stop_on_signal(after: str = "this episode") -> Iterator[Callable[[], bool]]:
    """Yield a question "should we stop?" that the first Ctrl-C or SIGTERM answers with yes.

    A second one interrupts at once.

    Args:
        after: what comes to its end first, for people.
    """
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print(  # noqa: T201
            f"rankcast: stopping after {after}; once more to stop at once.", file=sys.stderr
        )

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
