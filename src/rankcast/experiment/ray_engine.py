"""Jobs on a Ray cluster; Ray is imported when one is asked for."""

from __future__ import annotations

import os
from typing import Any, Self

from rankcast.errors import ConfigError
from rankcast.experiment.engines import Finished
from rankcast.experiment.worker import THREADS, Failure, Task, one_thread_each, run_job


class RayEngine:
    """A Ray cluster: the one that `RAY_ADDRESS` names, or one on this machine.

    The folders of the experiments, of their work and of the data have to be at the same paths on
    every node. At the paper's scale each job takes a GPU if the cluster has any.

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
        self._ours = False
        self._tasks: dict[Any, Task] = {}

    def __enter__(self) -> Self:
        """Connect, or start a cluster."""
        ray = self._ray
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            address = os.environ.get("RAY_ADDRESS")
            found = (
                {"address": address, "runtime_env": {"env_vars": THREADS}}
                if address
                else {"address": "local", "num_cpus": self._workers, "include_dashboard": False}
            )
            with one_thread_each():
                ray.init(**found, log_to_driver=False, logging_level="warning")
            self._ours = True
        self._gpus = ray.cluster_resources().get("GPU", 0)
        self._remote = ray.remote(max_retries=1)(run_job)
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel what still runs, and leave the cluster."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks.clear()
        if self._ours:
            self._ray.shutdown()

    def submit(self, task: Task) -> None:
        """Take a task."""
        gpus = 1 if self._gpus and task.context.scale == "paper" else 0
        remote = self._remote.options(name=task.title, num_cpus=1, num_gpus=gpus)
        self._tasks[remote.remote(task)] = task

    def finished(self) -> list[Finished]:
        """Wait until a task has ended; return those that have."""
        done, _ = self._ray.wait(list(self._tasks), num_returns=1)
        found: list[Finished] = []
        for reference in done:
            task = self._tasks.pop(reference)
            try:
                found.append((task, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                found.append((task, Failure(f"Ray lost it: {type(error).__name__}", str(error))))
        return found
