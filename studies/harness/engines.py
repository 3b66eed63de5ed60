"""Where jobs run: worker processes on this machine, or a Ray cluster."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from typing import Any, Protocol, Self

from rankcast.errors import ConfigError
from studies.harness.spec import Row
from studies.harness.worker import OUTPUT_FILE, THREADS, Failure, Task, one_thread_each, run_job

Finished = tuple[Task, Row | Failure]

GRACE_S = 3.0
"""How long a worker that is told to end may take to leave its job [s]."""

_DIED = (
    "its process died: out of memory, killed, or a crash in compiled code; its last output is in "
    f"{OUTPUT_FILE}"
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
        """Wait until a task has ended; return those that have."""
        ...


class LocalEngine:
    """Worker processes on this machine, one thread each; one that dies costs its own job only.

    Args:
        workers: processes.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {workers}.")
        self.capacity = workers
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, Task] = {}
        self._environment = ExitStack()

    def __enter__(self) -> Self:
        """Prepare the environment that workers inherit; each starts when there is a task for it."""
        self._environment.enter_context(one_thread_each())
        return self

    def __exit__(self, *error: object) -> None:
        """End the workers; a job at work is told to leave."""
        for worker in self._busy:
            worker.process.terminate()
        everyone = [*self._idle, *self._busy]
        for worker in everyone:
            worker.pipe.close()
        for worker in everyone:
            worker.process.join(GRACE_S)
            worker.process.kill()
            worker.process.join()
        self._idle.clear()
        self._busy.clear()
        self._environment.close()

    def submit(self, task: Task) -> None:
        """Give a task to a worker that has nothing to do, or to a new one."""
        while self._idle:
            worker = self._idle.pop()
            if worker.takes(task):
                self._busy[worker] = task
                return
        worker = _Worker()
        worker.takes(task)
        self._busy[worker] = task

    def finished(self) -> list[Finished]:
        """Wait until a task has ended; return those that have."""
        connection.wait([part for w in self._busy for part in (w.pipe, w.process.sentinel)])
        finished: list[Finished] = []
        for worker in [worker for worker in self._busy if worker.has_ended_its_task]:
            task, outcome = self._busy.pop(worker), worker.outcome()
            if outcome is not None:
                self._idle.append(worker)
            finished.append((task, outcome or Failure(_DIED)))
        return finished


class _Worker:
    """A worker process, and our end of the pipe to it."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,))
        with _interrupts_held():
            self.process.start()
        theirs.close()  # the process has its own; so our end notices when it dies

    def takes(self, task: Task) -> bool:
        """Give it a task; return whether it is there to take it."""
        try:
            self.pipe.send(task)
        except OSError:
            return False
        return True

    @property
    def has_ended_its_task(self) -> bool:
        """Whether there is an outcome to read, or none can come any more."""
        return self.pipe.poll() or not self.process.is_alive()

    def outcome(self) -> Row | Failure | None:
        """Return what came of the task, or None if the process has died."""
        try:
            return self.pipe.recv() if self.pipe.poll() else None
        except (EOFError, OSError):
            return None


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start; it is raised afterwards.

    Workers inherit the block. Otherwise Ctrl-C would end a worker that does not ignore it yet with
    a traceback.
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


def _work(pipe: connection.Connection) -> None:
    """Run the tasks that come through a pipe until it closes; the main function of a worker.

    Ctrl-C reaches a terminal's whole process group: what it means is the parent's decision.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    faulthandler.enable()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # nobody is at the other end any more
        while True:
            pipe.send(_run_quietly(pipe.recv()))


def _end_with_parent() -> None:
    """End this worker when its parent ends, however that comes about and whatever it does."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # a job that runs gets to its `finally`
    time.sleep(GRACE_S)
    os._exit(1)


def _run_quietly(task: Task) -> Row | Failure:
    """Run a job with all that it or its libraries print going to a file of its own."""
    task.context.scratch.mkdir(parents=True, exist_ok=True)
    with (task.context.scratch / OUTPUT_FILE).open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    outcome = run_job(task)
    sys.stdout.flush()
    sys.stderr.flush()
    return outcome


def _leave(number: int, frame: object) -> None:
    """Unwind the job at work and end, once."""
    del frame
    signal.signal(number, signal.SIG_IGN)
    sys.exit(1)


class RayEngine:
    """A Ray cluster: the one that `RAY_ADDRESS` names, or one on this machine.

    The folders of the studies, of their work and of the data have to be at the same paths on every
    node. At the paper's scale each job takes a GPU if the cluster has any.

    Args:
        workers: processors of a cluster made for this; one that is there has its own.

    Raises:
        ConfigError: Ray is not installed.
    """

    capacity = 1000  # Ray queues what does not fit, so that a cluster that grows finds work

    def __init__(self, workers: int = 2) -> None:
        try:
            import ray  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "--engine ray needs Ray: pip install 'rankcast[ray]', or leave the option out."
            ) from error
        self._ray: Any = ray
        self._workers = workers
        self._started_here = False
        self._tasks: dict[Any, Task] = {}

    def __enter__(self) -> Self:
        """Connect, or start a cluster."""
        ray = self._ray
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            address = os.environ.get("RAY_ADDRESS")
            options = (
                {"address": address, "runtime_env": {"env_vars": THREADS}}
                if address
                else {"address": "local", "num_cpus": self._workers, "include_dashboard": False}
            )
            with one_thread_each():
                ray.init(**options, log_to_driver=False, logging_level="warning")
            self._started_here = True
        self._gpus = ray.cluster_resources().get("GPU", 0)
        self._remote = ray.remote(max_retries=1)(run_job)
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what still runs, and leave the cluster."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks.clear()
        if self._started_here:
            self._ray.shutdown()

    def submit(self, task: Task) -> None:
        """Take a task."""
        gpus = 1 if self._gpus and task.context.scale == "paper" else 0
        remote = self._remote.options(name=task.title, num_cpus=1, num_gpus=gpus)
        self._tasks[remote.remote(task)] = task

    def finished(self) -> list[Finished]:
        """Wait until a task has ended; return those that have."""
        done, _ = self._ray.wait(list(self._tasks), num_returns=1)
        finished: list[Finished] = []
        for reference in done:
            task = self._tasks.pop(reference)
            try:
                outcome = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                outcome = Failure(f"Ray lost it: {type(error).__name__}", str(error))
            finished.append((task, outcome))
        return finished
