"""Running experiments: in order of need, skipping what is finished, resuming what is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rankcast.experiment.catalogue import Catalogue
from rankcast.experiment.engines import Engine
from rankcast.experiment.spec import Experiment, Job, Result, Row, RunContext
from rankcast.experiment.store import Store, jobs_of, write_result
from rankcast.experiment.worker import ERROR_FILE, Failure, Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        results: of the experiments asked for and of those that they need.
        failures: the jobs that failed.
        waiting: experiments whose needs have rows missing, so that they could not run.
        left_out: experiments that the quick scale left out for want of data.
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
            result.missing for result in self.results if result.experiment not in self.left_out
        )


class Observer:
    """Is told what happens; this one takes no notice."""

    def on_plan(self, finished: int, total: int) -> None:
        """Hear how many jobs there are and how many of them have a row."""

    def on_start(self, task: Task) -> None:
        """Hear that a job starts."""

    def on_end(self, task: Task, outcome: Row | Failure) -> None:
        """Hear what came of a job."""


@dataclass
class _Part:
    """One experiment of a run, and what is left of it."""

    experiment: Experiment
    asked: bool
    jobs: tuple[Job, ...]
    pending: deque[Job] = field(default_factory=deque)
    in_flight: int = 0
    stand_in: Result | None = None
    spared: bool = False

    @property
    def name(self) -> str:
        return self.experiment.name


def run_experiments(
    catalogue: Catalogue,
    names: Sequence[str],
    store: Store,
    engine: Engine,
    *,
    data: Path | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """Run what is unfinished of some experiments and of what they need, and collect the rows.

    An experiment asked for by name is finished when this machine has all its rows; one that is
    only needed also when the collected result has them. At the quick scale the committed result of
    the default scale serves whatever needs it: it is better than what a quick run would give.

    Args:
        catalogue: of experiments.
        names: of those asked for.
        store: for rows and results; its scale is run.
        engine: runs the jobs; entered and left here.
        data: the folder of data sets.
        observer: is told what happens.

    Raises:
        ConfigError: experiments or results that are not as they should be, or another process
            runs the same.
    """
    with ExitStack() as locks:
        parts: list[_Part] = []
        left_out: list[str] = []
        for experiment in catalogue.in_order(names):
            if experiment.live and data is None and store.scale == "quick":
                left_out.append(experiment.name)
            part = _Part(experiment, experiment.name in names, jobs_of(experiment, store.scale))
            part.stand_in = store.stand_in(experiment.name)
            part.spared = part.stand_in is not None and (
                not part.asked or experiment.name in left_out
            )
            if experiment.name not in left_out and _unfinished(part, store):
                locks.enter_context(store.lock(experiment.name))
                part.pending.extend(_unfinished(part, store))
            parts.append(part)
        run = _Run(parts, store, data, observer or Observer())
        run.observer.on_plan(
            sum(len(p.jobs) - len(p.pending) for p in parts), sum(len(p.jobs) for p in parts)
        )
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
    missing = store.collect(part.experiment).missing
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
        self._touched: set[str] = set()

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
        """Collect the rows of an experiment, once."""
        if part.name in self.results:
            return
        result = part.stand_in if part.spared else None
        result = result or self.store.collect(part.experiment)
        self.results[part.name] = result
        changed = not part.spared and (part.asked or part.name in self._touched)
        if changed and (result.rows or not result.missing):
            write_result(self.store.result_file(part.name), result)

    def _next(self) -> Task | None:
        """Return the next job whose experiment has what it needs."""
        for part in self.parts.values():
            if part.pending and self._ready(part.experiment):
                part.in_flight += 1
                self._touched.add(part.name)
                return self._task(part.experiment, part.pending.popleft())
        return None

    def _ready(self, experiment: Experiment) -> bool:
        for need in experiment.needs:
            result, part = self.results.get(need), self.parts[need]
            if result is None or (result.missing and part.stand_in is None):
                return False
        return True

    def _task(self, experiment: Experiment, job: Job) -> Task:
        context = RunContext(
            scratch=self.store.scratch(experiment.name, job.name),
            scale=self.store.scale,
            inputs={
                need: self.parts[need].stand_in or self.results[need] for need in experiment.needs
            },
            input_scratch={need: self.store.scratch(need) for need in experiment.needs},
            data=self.data,
        )
        return Task(self.store.experiments, experiment.name, job, context)

    def _take(self, task: Task, outcome: Row | Failure) -> None:
        """Keep a row, or the reason why there is none."""
        self.parts[task.experiment].in_flight -= 1
        error = task.context.scratch / ERROR_FILE
        if isinstance(outcome, Row):
            self.store.write_row(task.experiment, outcome)
            error.unlink(missing_ok=True)
        else:
            error.parent.mkdir(parents=True, exist_ok=True)
            error.write_text(f"{outcome.message}\n\n{outcome.details}", "utf-8")
            self.failures.append((task, outcome))
        self.observer.on_end(task, outcome)
