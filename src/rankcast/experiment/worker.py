"""One job in a worker process: load its experiment, run it, say what came out."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rankcast.errors import RankcastError
from rankcast.experiment.catalogue import load_experiment
from rankcast.experiment.spec import Job, Row, RunContext
from rankcast.experiment.store import fingerprint, plain

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
_PACKAGES = (
    "sionna-no-rt",
    "rankcast",
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "gymnasium",
)

_load = cache(load_experiment)


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
        experiments: the folder of the experiments; a worker elsewhere needs it at the same path.
        experiment: the name of the job's.
        job: what to run.
        context: what the job finds around it.
    """

    experiments: Path
    experiment: str
    job: Job
    context: RunContext

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.experiment}/{self.job.name}"


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
        experiment = _load(task.experiments, task.experiment)
        _own(task.context.scratch, task.job)
        clock = _Clock(task.context.scratch)
        values = plain(experiment.run(task.job, task.context), "values")
    except Exception as error:  # noqa: BLE001 - experiments are other people's code
        words = str(error) if isinstance(error, RankcastError) else _one_line(error)
        if clock:
            clock.keep()
        return Failure(words, traceback.format_exc())
    except BaseException:  # an interruption, which is not ours to swallow
        if clock:
            clock.keep()
        raise
    wall_s, cpu_s = clock.stop()
    return Row(task.job, values, wall_s, cpu_s, _device(), _versions())


def _own(scratch: Path, job: Job) -> None:
    """Clear the scratch folder of what a job left there that was defined otherwise."""
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
    """Return whether what lies in a scratch folder was left there by a job defined like this."""
    owner = scratch / _OWNER_FILE
    return owner.exists() and owner.read_text("utf-8") == fingerprint(job.settings)


def _one_line(error: Exception) -> str:
    """Word an error that is not of ours."""
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
        """Whether the job left more than we do, such as a checkpoint."""
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


def _device() -> str:
    """Name what a job could run on; torch is asked only if the job has loaded it."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    return f"cpu ({platform.machine()}, {platform.system()})"


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
