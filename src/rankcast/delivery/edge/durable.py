"""Files that survive a loss of power: written, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from rankcast.errors import UnavailableError
from rankcast.files import put_file

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_durably(path: Path, data: bytes) -> None:
    """Put bytes in the place of a file; after a loss of power the old or the new ones are there.

    Raises:
        UnavailableError: the disk is full, or does not take the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        put_file(path, data)
    except OSError as error:
        raise disk_error(path, error) from error


def flush_file(path: Path) -> None:
    """Wait until the disk has a file's bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def disk_error(path: Path, error: OSError) -> UnavailableError:
    """Return the error of a disk in words."""
    if error.errno in _FULL:
        return UnavailableError(
            f"The disk is full, so {path} could not be written. Nothing that was complete is lost; "
            f"free some space and sync again: it goes on where it stopped."
        )
    return UnavailableError(f"{path} could not be written: {error.strerror or error}.")
