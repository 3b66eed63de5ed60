"""How files get to where they belong: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file, then put it in the place of `path` in one step."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def put_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write bytes so that they last: a power cut leaves the old file or the new one, whole.

    Args:
        path: the file; its folder exists.
        data: what it is to hold.
        mode: permissions, before the umask; nobody else can open it even for a moment.
    """

    def write(partial: Path) -> None:
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    replace_file(path, write)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names, so that a rename in it lasts."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
