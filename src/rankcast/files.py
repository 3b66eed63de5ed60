"""Write files so that they are whole or not there at all, and keep two writers apart."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from rankcast.errors import DeliveryError, UnavailableError

T = TypeVar("T")
_FULL = (errno.ENOSPC, errno.EDQUOT)


_TEMPORARY = ".rankcast-{}.tmp"
"""Names of what is being written; no two writers share one."""
_ABANDONED_S = 3600.0
"""A temporary that nobody has touched for so long was left by a process that was killed [s]."""


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Yield a name in a folder that nobody else uses, and remove what is left under it.

    What killed processes have left in the folder is removed, too.
    """
    for old in folder.glob(_TEMPORARY.format("*")):
        with contextlib.suppress(OSError):  # another process removes the same, or has just ended
            touched = max(path.lstat().st_mtime for path in (old, *old.glob("*")))
            if abs(time.time() - touched) > _ABANDONED_S:
                _remove(old)
    partial = folder / _TEMPORARY.format(uuid4().hex)
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_file(path: Path, write: Callable[[Path], T]) -> T:
    """Let `write` fill a new file, then put it in the place of `path` in one step."""
    with _temporary(path.parent) as partial:
        result = write(partial)
        partial.replace(path)
        return result


def put_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write bytes so that they last: a power cut leaves the old file or the new one, whole.

    Args:
        path: the file; its folder is made if it does not exist.
        data: what it is to hold.
        mode: permissions, before the umask; nobody else can open it even for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path.parent) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    flush_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; its files appear in `target` if the block succeeds.

    A target that does not exist appears in one step. In one that does, files are replaced one by
    one and the others stay.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target.parent) as partial:
        partial.mkdir()
        yield partial
        if not target.exists():
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else somebody made it in this moment
                    raise
            else:
                return
        for path in sorted(partial.iterdir()):
            path.replace(target / path.name)


def flush_file(path: Path) -> None:
    """Wait until the disk has a file's bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names, so that a rename in it lasts."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Explain an error of the disk while `path` is written.

    Raises:
        UnavailableError: the disk is full, or does not take the file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UnavailableError(
                f"The disk is full, so {path} could not be written. Nothing that was complete is "
                f"lost. Free some space and try again; it continues where it stopped."
            ) from error
        raise UnavailableError(
            f"{path} could not be written: {error.strerror or error}. Check the folder's "
            f"permissions, or name another."
        ) from error


@contextmanager
def only_one(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file for as long as the block runs.

    The file stays; what counts is the operating system's lock on it, which ends with the process.

    Args:
        path: the lock file; its folder is made if it does not exist.
        what: what is being done, for the message to whoever comes second.
        wait: wait for whoever comes first, where that takes moments (10 s at most on Windows).

    Raises:
        DeliveryError: another process holds it, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DeliveryError(
            f"{path} cannot be written: {error.strerror}. Check the folder's permissions."
        ) from error
    try:
        if not _locked(handle, wait=wait):
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

    def _locked(handle: int, *, wait: bool) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _locked(handle: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            return False
        return True
