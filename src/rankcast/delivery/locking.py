"""One writer at a time: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankcast.errors import DeliveryError


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for as long as the block runs.

    The file stays; what counts is the operating system's lock on it, which a crash releases.

    Args:
        path: the lock file; its folder is made if need be.
        what: what is being done, for the message to whoever comes second.

    Raises:
        DeliveryError: someone else holds it, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DeliveryError(
            f"{path} cannot be written: {error.strerror}. Check the folder's permissions."
        ) from error
    try:
        if not _locked(handle):
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace") if _POSIX else ""
            raise DeliveryError(
                f"Someone else is {what} ({holder or 'another process'}). Try again when they are "
                f"done; the lock on {path} ends with their process."
            )
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(handle)


_POSIX = os.name == "posix"

if sys.platform == "win32":
    import msvcrt

    def _locked(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _locked(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
