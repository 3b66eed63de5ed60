"""Run studies: in order of need, skipping what is finished, resuming what is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from studies.harness.catalogue import Catalogue
from studies.harness.engines import Engine
from studies.harness.spec import Job, Result, Row, RunContext, Study
from studies.harness.store import Store, jobs_of, write_result
from studies.harness.worker import ERROR_FILE, Failure, Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        results: of the studies asked for and of their inputs.
        failures: the jobs that failed.
        waiting: studies that could not run because their needs have rows missing.
        left_out: studies that the quick scale left out because there are no data sets.
        interrupted: whether a person stopped it.
    """

    results: tuple[Result, ...]
    failures: tuple[tuple[Task, Failure], ...]
    waiting: tuple[str, ...]
    left_out: tuple[str, ...]
    interrupted: bool

    @property
    def finished(self) -> bool:
        """Whether no row is missing."""
        return not any(
            result.missing for result in self.results if result.study not in self.left_out
        )


class Observer:
    """Is called as a run goes on; this one does nothing."""

    def on_plan(self, finished: int, total: int) -> None:
        """Take how many jobs there are and how many of them have a row."""

    def on_start(self, task: Task) -> None:
        """Take a job that starts."""

    def on_end(self, task: Task, outcome: Row | Failure) -> None:
        """Take what came of a job."""


@dataclass
class _Part:
    """One study of a run, and what is left of it."""

    study: Study
    asked: bool
    jobs: tuple[Job, ...]
    pending: deque[Job] = field(default_factory=deque)
    in_flight: int = 0
    started: bool = False
    stand_in: Result | None = None
    spared: bool = False
    """Not run, because the committed result serves instead."""

    @property
    def name(self) -> str:
        return self.study.name


def run_studies(
    catalogue: Catalogue,
    names: Sequence[str],
    store: Store,
    engine: Engine,
    *,
    data: Path | None = None,
    observer: Observer | None = None,
    jobs: str = "*",
) -> Outcome:
    """Run what is unfinished of some studies and of their inputs, and collect the rows.

    A study asked for by name is finished when this machine has all its rows; one that is only an
    input also when the collected result has them. At the quick scale the committed result of the
    default scale serves as an input: it is better than what a quick run would give.

    Args:
        catalogue: of studies.
        names: of those asked for.
        store: for rows and results; its scale is run.
        engine: runs the jobs; entered and left here.
        data: the folder of data sets.
        observer: is told what happens.
        jobs: pattern that names of jobs have to match, as of files in a shell; others are left
            for later.

    Raises:
        ConfigError: studies or results that are not as they should be.
        RankcastError: another process runs the same.
    """
    observer = observer or Observer()
    with ExitStack() as locks:
        parts: list[_Part] = []
        left_out: list[str] = []
        for study in catalogue.in_order(names):
            if study.needs_data and data is None and store.scale == "quick":
                left_out.append(study.name)
            part = _Part(study, study.name in names, jobs_of(study, store.scale))
            part.stand_in = store.stand_in(study.name)
            part.spared = part.stand_in is not None and (not part.asked or study.name in left_out)
            if study.name not in left_out and _unfinished(part, store):
                locks.enter_context(store.lock(study.name))
                unfinished = _unfinished(part, store)
                part.pending.extend(job for job in unfinished if fnmatchcase(job.name, jobs))
            parts.append(part)
        run = _Run(parts, store, data, observer)
        total = sum(len(part.jobs) for part in parts)
        observer.on_plan(total - sum(len(part.pending) for part in parts), total)
        interrupted = False
        try:
            with engine:
                run.drive(engine)
        except KeyboardInterrupt:
            interrupted = True
        for part in parts:
            run.close(part)
    waiting = () if interrupted else tuple(part.name for part in parts if part.pending)
    results, failures = tuple(run.results.values()), tuple(run.failures)
    return Outcome(results, failures, waiting, tuple(left_out), interrupted)


def _unfinished(part: _Part, store: Store) -> list[Job]:
    """Return the jobs that are to be run."""
    if part.spared:
        return []
    if part.asked:
        return [job for job in part.jobs if store.read_row(part.name, job) is None]
    missing = store.collect(part.study).missing
    return [job for job in part.jobs if job.name in missing]


class _Run:
    """The state of one run."""

    def __init__(
        self, parts: Sequence[_Part], store: Store, data: Path | None, observer: Observer
    ) -> None:
        self.parts = {part.name: part for part in parts}
        self.store = store
        self.data = data
        self.observer = observer
        self.results: dict[str, Result] = {}
        self.failures: list[tuple[Task, Failure]] = []

    def drive(self, engine: Engine) -> None:
        """Keep the engine busy until nothing is left that can run."""
        in_flight = 0
        while True:
            for part in self.parts.values():
                if not part.pending and not part.in_flight:
                    self.close(part)
            while in_flight < engine.capacity and (task := self._next()):
                self.observer.on_start(task)
                engine.submit(task)
                in_flight += 1
            if not in_flight:
                return
            for task, outcome in engine.finished():
                in_flight -= 1
                self._take(task, outcome)

    def close(self, part: _Part) -> None:
        """Collect the rows of a study, once."""
        if part.name in self.results:
            return
        result = part.stand_in if part.spared else None
        result = result or self.store.collect(part.study)
        self.results[part.name] = result
        changed = not part.spared and (part.asked or part.started)
        if changed and (result.rows or not result.missing):
            write_result(self.store.result_file(part.name), result)

    def _next(self) -> Task | None:
        """Return the next job whose study has what it needs."""
        for part in self.parts.values():
            if part.pending and self._ready(part.study):
                part.in_flight += 1
                part.started = True
                return self._task(part.study, part.pending.popleft())
        return None

    def _ready(self, study: Study) -> bool:
        for need in study.needs:
            result, part = self.results.get(need), self.parts[need]
            if result is None or (result.missing and part.stand_in is None):
                return False
        return True

    def _task(self, study: Study, job: Job) -> Task:
        context = RunContext(
            scratch=self.store.scratch(study.name, job.name),
            scale=self.store.scale,
            inputs={need: self.parts[need].stand_in or self.results[need] for need in study.needs},
            input_scratch={need: self.store.scratch(need) for need in study.needs},
            data=self.data,
        )
        return Task(self.store.studies, study.name, job, context)

    def _take(self, task: Task, outcome: Row | Failure) -> None:
        """Keep a row, or the reason why there is none."""
        self.parts[task.study].in_flight -= 1
        error = task.context.scratch / ERROR_FILE
        if isinstance(outcome, Row):
            self.store.write_row(task.study, outcome)
            error.unlink(missing_ok=True)
        else:
            error.parent.mkdir(parents=True, exist_ok=True)
            error.write_text(f"{outcome.message}\n\n{outcome.details}", "utf-8")
            self.failures.append((task, outcome))
        self.observer.on_end(task, outcome)
