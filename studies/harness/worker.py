"""Run one job in a worker process: load its study, run it, return what came out."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rankcast.errors import RankcastError
from rankcast.provenance import describe_device, package_versions
from studies.harness.catalogue import load_study
from studies.harness.spec import Job, Row, RunContext
from studies.harness.store import fingerprint, plain

THREADS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Read when torch and NumPy load. Workers share the cores among themselves."""

ERROR_FILE = "error.txt"
OUTPUT_FILE = "output.txt"
_SPENT_FILE = "spent.txt"
_OWNER_FILE = "settings.sha256"

_load = cache(load_study)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile inherit `THREADS`."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True, slots=True)
class Task:
    """A job with all that a worker has to know; plain enough for any queue.

    Attributes:
        studies: the folder of the studies; a worker elsewhere needs it at the same path.
        study: the name of the job's study.
        job: what to run.
        context: what the job can use.
    """

    studies: Path
    study: str
    job: Job
    context: RunContext

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.study}/{self.job.name}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that raised, or whose process died.

    Attributes:
        message: one line.
        details: the traceback.
    """

    message: str
    details: str = ""


def run_job(task: Task) -> Row | Failure:
    """Run one job and return its row, or how it failed."""
    clock: _Clock | None = None
    try:
        study = _load(task.studies, task.study)
        _claim(task.context.scratch, task.job)
        clock = _Clock(task.context.scratch)
        values = plain(study.run(task.job, task.context), "values")
    except Exception as error:  # noqa: BLE001 - studies are other people's code
        message = str(error) if isinstance(error, RankcastError) else _one_line(error)
        if clock:
            clock.keep()
        return Failure(message, traceback.format_exc())
    except BaseException:  # an interruption, which is not ours to swallow
        if clock:
            clock.keep()
        raise
    wall_s, cpu_s = clock.stop()
    return Row(task.job, values, wall_s, cpu_s, describe_device(), package_versions())


def _claim(scratch: Path, job: Job) -> None:
    """Clear the scratch folder of what a job left there that was defined differently."""
    scratch.mkdir(parents=True, exist_ok=True)
    if owned_by(scratch, job):
        return
    for path in scratch.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != OUTPUT_FILE:  # which is open
            path.unlink()
    (scratch / _OWNER_FILE).write_text(fingerprint(job.settings), "utf-8")


def owned_by(scratch: Path, job: Job) -> bool:
    """Return whether a job defined like this one left what lies in a scratch folder."""
    owner = scratch / _OWNER_FILE
    return owner.exists() and owner.read_text("utf-8") == fingerprint(job.settings)


def _one_line(error: Exception) -> str:
    """Summarise an error that is not one of ours."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


class _Clock:
    """Time spent on a job, with earlier attempts that left something to continue from."""

    def __init__(self, scratch: Path) -> None:
        self._file = scratch / _SPENT_FILE
        self._earlier = (0.0, 0.0)
        if self._file.exists() and self._something_kept():
            wall, cpu = self._file.read_text("utf-8").split()
            self._earlier = (float(wall), float(cpu))
        self._started = (time.perf_counter(), time.process_time())

    def _something_kept(self) -> bool:
        """Return whether the job left more than we do, such as a checkpoint."""
        ours = {_SPENT_FILE, _OWNER_FILE, ERROR_FILE, OUTPUT_FILE}
        return any(path.name not in ours for path in self._file.parent.iterdir())

    def _spent(self) -> tuple[float, float]:
        wall, cpu = self._started
        return (
            self._earlier[0] + time.perf_counter() - wall,
            self._earlier[1] + time.process_time() - cpu,
        )

    def keep(self) -> None:
        """Remember the time spent, for the next attempt."""
        self._file.write_text("{} {}\n".format(*self._spent()), "utf-8")

    def stop(self) -> tuple[float, float]:
        """Return wall-clock and processor time [s] of all attempts, and forget them."""
        self._file.unlink(missing_ok=True)
        return self._spent()
