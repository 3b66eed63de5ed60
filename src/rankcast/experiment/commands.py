"""`rankcast experiment list|run|report`: what the commands do and print."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rankcast.errors import ConfigError
from rankcast.experiment.catalogue import Catalogue, find_data, find_experiments
from rankcast.experiment.engines import Engine, LocalEngine
from rankcast.experiment.ray_engine import RayEngine
from rankcast.experiment.runner import Observer, Outcome, run_experiments
from rankcast.experiment.scoreboard import Presented, present_all, scoreboard
from rankcast.experiment.spec import Row, Scale
from rankcast.experiment.store import Store, jobs_of
from rankcast.experiment.worker import ERROR_FILE, Failure, Task
from rankcast.run.options import ExperimentList, ExperimentReport, ExperimentRun
from rankcast.run.signals import INTERRUPTED


def dispatch(command: ExperimentList | ExperimentRun | ExperimentReport, typed: list[str]) -> int:
    """Do what a command says and return the exit status."""
    match command:
        case ExperimentList():
            return list_experiments(command)
        case ExperimentRun():
            return run(command, typed)
        case ExperimentReport():
            return report(command)


def list_experiments(command: ExperimentList) -> int:
    """Print what experiments there are and how far they are."""
    catalogue, store = _open(command)
    found = [
        {
            "name": experiment.name,
            "source": experiment.source,
            "title": experiment.title,
            "needs": [*experiment.needs, *experiment.beside],
            "scale": store.scale,
            "jobs": len(jobs),
            "finished": len(store.collect(experiment).rows),
            "here": sum(store.read_row(experiment.name, job) is not None for job in jobs),
            "result": str(file) if (file := store.result_file(experiment.name)).exists() else None,
        }
        for experiment in catalogue.load_all()
        for jobs in (jobs_of(experiment, store.scale),)
    ]
    if command.json:
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for name in ("name", "source", "rows", "of which here", "title"):
        table.add_column(name)
    for one in found:
        rows = f"{one['finished']}/{one['jobs']}"
        table.add_row(one["name"], one["source"], rows, str(one["here"]), one["title"])
    Console(highlight=False).print(table)
    return 0


def run(command: ExperimentRun, typed: Sequence[str]) -> int:
    """Run experiments, show progress, and say what came of it."""
    catalogue, store = _open(command)
    names = catalogue.names if command.all else command.names
    if not names or (command.all and command.names):
        raise ConfigError(
            f"Name the experiments to run, or give --all: {', '.join(catalogue.names)}."
        )
    engine: Engine
    engine = RayEngine(command.workers) if command.engine == "ray" else LocalEngine(command.workers)
    console = Console(stderr=True, highlight=False)
    data = find_data(catalogue.folder, command.data)
    with _sigterm_interrupts(), _LiveProgress(console) as progress:
        outcome = run_experiments(catalogue, names, store, engine, data=data, observer=progress)
    _say(outcome, shlex.join(typed))
    if command.json:
        print(json.dumps(_plain(outcome, store), indent=2))  # noqa: T201
    else:
        for result in outcome.results:
            total = len(result.rows) + len(result.missing)
            file = store.result_file(result.experiment)
            print(f"{result.experiment}: {len(result.rows)}/{total} rows, {file}")  # noqa: T201
    if outcome.interrupted:
        return INTERRUPTED
    return 1 if outcome.failures or outcome.waiting else 0


def report(command: ExperimentReport) -> int:
    """Write the report, or print the scoreboard as JSON."""
    catalogue, store = _open(command)
    presented = present_all(catalogue, catalogue.select(command.names), store)
    if command.json:
        print(json.dumps(scoreboard(presented), indent=2, ensure_ascii=False))  # noqa: T201
        return 0
    if command.update:
        return _renew(command.update, presented)
    from rankcast.experiment.report import write_report  # noqa: PLC0415 - draws

    page = write_report(command.output or store.work / "report", presented)
    print(page)  # noqa: T201
    if command.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def _renew(documents: Sequence[Path], presented: Sequence[Presented]) -> int:
    """Renew the blocks of documents and name those that were stale."""
    from rankcast.experiment.report.blocks import blocks_of, update_document  # noqa: PLC0415

    blocks = blocks_of(presented)
    for document in documents:
        renewed = update_document(document, blocks)
        print(f"{document}: {', '.join(renewed) or 'nothing to renew'}")  # noqa: T201
    return 0


def _open(command: ExperimentList | ExperimentRun | ExperimentReport) -> tuple[Catalogue, Store]:
    """Find the experiments and where their rows lie."""
    if command.quick and command.scale == "paper":
        raise ConfigError("--quick and --scale paper contradict each other; give one of them.")
    scale: Scale = "quick" if command.quick else command.scale
    catalogue = find_experiments(command.experiments)
    work = command.work or catalogue.folder.parent / "runs" / "experiments"
    return catalogue, Store(catalogue.folder, work.resolve(), scale)


def _say(outcome: Outcome, typed: str) -> None:
    """Say on standard error what failed, what waits, and how to go on."""
    lines: list[str] = []
    for task, failure in outcome.failures:
        lines.append(f"{task.title} failed: {failure.message}")
        lines.append(f"  {task.context.scratch / ERROR_FILE}")
    lines += [f"{name} did not run: what it needs has rows missing." for name in outcome.waiting]
    lines += [f"{name} was left out: it needs data (--data)." for name in outcome.left_out]
    if outcome.interrupted:
        lines.append("interrupted; finished rows are kept.")
    if outcome.interrupted or outcome.failures or outcome.waiting:
        again = "Go on with" if outcome.interrupted else "Try what is missing again with"
        lines += [f"{again}\n  {typed}"]
    print("\n".join(f"rankcast: {line}" for line in lines), end="\n" * bool(lines), file=sys.stderr)  # noqa: T201


def _plain(outcome: Outcome, store: Store) -> dict[str, object]:
    """Return an outcome for `--json`."""
    return {
        "scale": store.scale,
        "interrupted": outcome.interrupted,
        "experiments": [
            {
                "name": result.experiment,
                "rows": len(result.rows),
                "missing": list(result.missing),
                "wall_s": round(sum(row.wall_s for row in result.rows), 1),
                "result": str(store.result_file(result.experiment)),
            }
            for result in outcome.results
        ],
        "failures": [
            {"job": task.title, "message": f.message, "log": str(task.context.scratch)}
            for task, f in outcome.failures
        ],
    }


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that it too ends the workers and keeps the rows."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _LiveProgress(Observer):
    """A line for each finished job, and in a terminal a bar with the jobs at work."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("")
        self._running: list[str] = []
        self._done = self._total = 0

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self._bar.stop()

    def on_plan(self, finished: int, total: int) -> None:
        """Show how far it is."""
        self._done, self._total = finished, total
        self._show()

    def on_start(self, task: Task) -> None:
        """Show what is at work."""
        self._running.append(task.title)
        self._show()

    def on_end(self, task: Task, outcome: Row | Failure) -> None:
        """Leave a line for a job."""
        self._running.remove(task.title)
        self._done += 1
        words = f"{outcome.wall_s:.1f} s" if isinstance(outcome, Row) else "failed"
        self._bar.console.print(
            f"{self._done}/{self._total} {task.title}: {words}", markup=False, soft_wrap=True
        )
        self._show()

    def _show(self) -> None:
        names = ", ".join(self._running[:4]) + (" …" if len(self._running) > 4 else "")
        self._bar.update(self._task, completed=self._done, total=self._total, description=names)
