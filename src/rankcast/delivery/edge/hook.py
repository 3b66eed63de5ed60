"""The owner's own command that makes a new adapter take effect and checks it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from rankcast.errors import DeliveryError

_TAIL = 500
"""Bytes of what a hook said that an error repeats."""


def run_hook(command: Sequence[str], told: Mapping[str, str], timeout_s: float) -> None:
    """Run a program to its end, or end it and what it started.

    Args:
        command: program and arguments; no shell reads them.
        told: environment variables that it gets beside ours.
        timeout_s: after which it is ended [s].

    Raises:
        DeliveryError: it cannot be started, took too long, or left with another status than 0.
    """
    words = shlex.join(command)
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603 the owner's own command, without a shell
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **told}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DeliveryError(f"The hook {words} cannot be run: {error.strerror}.") from error
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise DeliveryError(
                f"The hook {words} took longer than {timeout_s:g} s and was ended."
            ) from error
        except BaseException:
            _end(process)
            raise
        if status:
            output.seek(0)
            said = output.read()[-_TAIL:].decode("utf-8", "replace").strip()
            raise DeliveryError(f"The hook {words} left with status {status}: {said or 'silent'}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
