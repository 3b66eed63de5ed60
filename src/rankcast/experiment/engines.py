"""Where jobs run: the protocol of engines, and worker processes on this machine."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Protocol, Self

from rankcast.errors import ConfigError
from rankcast.experiment.spec import Row
from rankcast.experiment.worker import OUTPUT_FILE, Failure, Task, one_thread_each, run_job

Finished = tuple[Task, Row | Failure]

GRACE_S = 3.0
"""How long a worker that is told to stop may take to leave its job [s]."""

_DIED = (
    "its process died: out of memory, killed, or a crash in compiled code; "
    f"its last words are in {OUTPUT_FILE}"
)


class Engine(Protocol):
    """Runs tasks; a context manager that leaves no process behind.

    Attributes:
        capacity: how many tasks it makes use of at once.
    """

    capacity: int

    def __enter__(self) -> Self:
        """Be ready to run."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stop whatever still runs."""
        ...

    def submit(self, task: Task) -> None:
        """Take a task."""
        ...

    def finished(self) -> list[Finished]:
        """Wait until a task has ended; return those that have, which may be none."""
        ...


class LocalEngine:
    """Worker processes on this machine, one thread each.

    A worker that dies takes down its pool; whatever ran beside it is then run again alone, so that
    one job which cannot live costs nobody else a result.

    Args:
        workers: processes.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {workers}.")
        self.capacity = workers
        self._waiting: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        self._alone = False  # what runs now is a suspect
        self._running: dict[Future[Row | Failure], Task] = {}
        self._pool: ProcessPoolExecutor | None = None
        self._leash: Connection | None = None
        self._inherited = ExitStack()

    def __enter__(self) -> Self:
        """Prepare the environment that workers inherit; they start with the first task."""
        self._inherited.enter_context(one_thread_each())
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers."""
        self._close()
        self._inherited.close()

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._waiting.append(task)
        self._feed()

    def finished(self) -> list[Finished]:
        """Wait until a task has ended; return those that have, which may be none."""
        self._feed()
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            done, _ = wait(self._running)  # all end with the pool
        found: list[Finished] = []
        lost: list[Task] = []
        for future in done:
            task, error = self._running.pop(future), future.exception()
            if isinstance(error, BrokenProcessPool):
                lost.append(task)
            else:
                found.append((task, _failure(error) if error else future.result()))
        if lost:
            self._close()
            if len(lost) == 1:
                found.append((lost[0], Failure(_DIED)))
            else:
                self._suspects.extend(lost)
        self._alone = self._alone and bool(self._running)
        return found

    def _feed(self) -> None:
        """Give the pool what it has workers for; after a crash, one suspect at a time."""
        while self._suspects or self._waiting:
            alone = self._alone or bool(self._suspects)
            if len(self._running) >= (1 if alone else self.capacity):
                return
            queue = self._suspects or self._waiting
            try:
                with _interrupts_held():
                    future = self._open().submit(_run_quietly, queue[0])
            except BrokenProcessPool:
                if self._running:
                    return  # `finished` finds out who did it
                self._close()  # an idle worker was killed
                continue
            self._alone = queue is self._suspects
            self._running[future] = queue.popleft()

    def _open(self) -> ProcessPoolExecutor:
        """Return the pool; make it if there is none."""
        if self._pool is None:
            context = get_context("spawn")
            theirs, self._leash = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.capacity, mp_context=context, initializer=_hold_leash, initargs=(theirs,)
            )
        return self._pool

    def _close(self) -> None:
        """End the workers: those at work by letting go of the leash."""
        pool, leash = self._pool, self._leash
        self._pool = self._leash = None
        if leash is not None and self._running:
            leash.close()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        if leash is not None:
            leash.close()
        self._running.clear()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit that, and we hear of it afterwards.

    Otherwise one that reaches a worker before `_hold_leash` does ends it with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415 - does not exist on Windows

    resource_tracker.ensure_running()  # started by the first worker, it would lift our block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hold_leash(leash: Connection) -> None:
    """End this worker when the other end of the pipe closes, however that comes about.

    It closes when the engine stops and when its process dies. Ctrl-C reaches a terminal's whole
    process group; what it means is the parent's decision.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _vanish)
    faulthandler.enable()

    def watch() -> None:
        leash.poll(None)  # returns at the end of the file: nothing is ever written
        os.kill(os.getpid(), signal.SIGTERM)  # a job that runs gets to its `finally`
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _vanish(number: int, frame: object) -> None:
    """Leave without a word: no job is in hand, so there is nothing to unwind."""
    del number, frame
    os._exit(1)


def _leave(number: int, frame: object) -> None:
    """Unwind the job in hand, once."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    sys.exit(1)


def _failure(error: BaseException) -> Failure:
    """Word what came of a task instead of a row."""
    words = f"{type(error).__name__}: {error}"
    return Failure(words, "".join(traceback.format_exception(error)))


def _run_quietly(task: Task) -> Row | Failure:
    """Run a job with all that it or its libraries print going to a file of its own."""
    signal.signal(signal.SIGTERM, _leave)
    task.context.scratch.mkdir(parents=True, exist_ok=True)
    with (task.context.scratch / OUTPUT_FILE).open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    found = run_job(task)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, _vanish)
    return found
