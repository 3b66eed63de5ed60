"""SIGKILL at a moment of `rankcast edge sync`: of the sync itself, or of llama.cpp's server.

A moment is what a sync does then, and how often it did so before: it puts a file in its place, or
a server was asked and has not answered. Imported by a process that forks one child for each sync,
so that a child starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rankcast.codec.formats.gguf
import rankcast.edge.engines.llama_server
import rankcast.edge.sync
import rankcast.packaging.export
import rankcast.release.verify  # noqa: F401 imported before any child is forked
from rankcast.cli.main import main
from rankcast.codec.formats.gguf_architecture import library

library()
_DIGEST, _SLOT = re.compile(r"[0-9a-f]{16,}"), re.compile(r"-[ab]\.gguf$")
_HEAD = re.compile(rb"(GET|POST) (\S+) HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Moment:
    """When to kill.

    Attributes:
        what: `put FILE` before a file of the device's folder is replaced, `asked METHOD PATH` once
            a request has gone out; digests are stars, and so is the slot.
        count: the how manieth time, from 1.
    """

    what: str
    count: int = 1


@dataclass
class _Watch:
    """Writes down what a sync does, and kills at its moment.

    Attributes:
        folder: of the device.
        notes: file for what was done, one a line.
        due: says whether to kill now.
        victim: process to kill; this one for None.
    """

    folder: str
    notes: int
    due: Callable[[str, int, int], bool]
    victim: int | None
    done: dict[str, int] = field(default_factory=dict)
    posting: str = ""

    def did(self, what: str) -> None:
        what = _SLOT.sub("-*.gguf", _DIGEST.sub("*", what))
        number, self.done[what] = sum(self.done.values()), self.done.get(what, 0) + 1
        os.write(self.notes, f"{what}\n".encode())
        if self.due(what, self.done[what], number):
            os.kill(self.victim or os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: Any) -> None:
        if event in ("os.rename", "os.symlink") and str(args[1]).startswith(self.folder):
            name = str(args[1])[len(self.folder) + 1 :]
            if not Path(name).name.startswith("."):
                self.did(f"put {name}")

    def sent(self, data: bytes) -> None:
        head = _HEAD.match(data)
        if head is None:  # the body
            self.did(self.posting)
            return
        method, path = (part.decode() for part in head.groups())
        self.posting = f"asked {method} {path}"
        if method == "GET":
            self.did(self.posting)


def sync_and_die(
    words: Sequence[str], folder: Path, notes: Path, at: Moment | int | None, victim: int | None
) -> None:
    """Do as `rankcast` does; at a moment, or as the n-th thing (from 0), kill a process."""

    def due(what: str, count: int, number: int) -> bool:
        return number == at if isinstance(at, int) else at == Moment(what, count)

    with notes.open("wb", buffering=0) as file:
        watch = _Watch(str(folder), file.fileno(), due, victim)
        sys.addaudithook(watch.audit)
        for name in ("send", "sendall"):
            setattr(socket.socket, name, _telling(getattr(socket.socket, name), watch.sent))
        with notes.with_suffix(".out").open("w") as out, contextlib.redirect_stdout(out):
            main(words)


def _telling(send: Any, sent: Callable[[bytes], None]) -> Any:
    def sends(self: socket.socket, data: Any, *more: Any) -> Any:
        result = send(self, data, *more)
        sent(bytes(data))
        return result

    return sends
