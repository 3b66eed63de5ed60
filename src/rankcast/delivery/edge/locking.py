"""One process at a time in a folder; a lock that ends with the process that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankcast.errors import DeliveryError

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder's lock.

    Raises:
        DeliveryError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DeliveryError(
                    f"Another process syncs {folder} now. Wait for it, or give each adapter its "
                    f"own folder."
                ) from error
        yield
