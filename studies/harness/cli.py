"""`python3 dev.py study list|run|report`: options, help, and what each prints."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import traceback
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from rankcast.cli.common import INTERRUPTED
from rankcast.cli.parsing import group_help, parse_options
from rankcast.errors import ConfigError, RankcastError, nearest
from studies.harness.catalogue import Catalogue, find_data, find_studies
from studies.harness.engines import Engine, LocalEngine, RayEngine
from studies.harness.runner import Observer, Outcome, run_studies
from studies.harness.spec import Row, Scale, Study
from studies.harness.store import PROGRAM, Store, jobs_of
from studies.harness.worker import ERROR_FILE, Failure, Task
from studies.report import write_report
from studies.report.blocks import blocks_of, rendered_blocks, update_document
from studies.report.scoreboard import present_all, scoreboard


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options of every command."""

    quick: bool = False
    """The scale of seconds that only shows that it runs; short for --scale quick."""
    scale: Scale = "default"
    """Which scale; paper needs a GPU and the Hugging Face hub."""
    studies: Path | None = None
    """Folder of the studies; those of this checkout if left out."""
    work: Path | None = None
    """Folder of rows and checkpoints; runs/studies beside the studies if left out."""
    json: bool = False
    """Print JSON for machines."""

    def open(self) -> tuple[Catalogue, Store]:
        """Return the studies and the store of their rows.

        Raises:
            ConfigError: there are no studies, or the options contradict each other.
        """
        if self.quick and self.scale == "paper":
            raise ConfigError("--quick and --scale paper contradict each other; give one of them.")
        catalogue = find_studies(self.studies)
        work = self.work or catalogue.folder.parent / "runs" / "studies"
        return catalogue, Store(
            catalogue.folder, work.resolve(), "quick" if self.quick else self.scale
        )


@dataclass(frozen=True)
class List(_Options):
    """List the studies and how many of their rows there are.

    python3 dev.py study list --json
    """

    def run(self, argv: Sequence[str]) -> int:
        """Print them."""
        del argv
        catalogue, store = self.open()
        studies = [_status(study, store) for study in catalogue.load_all()]
        if self.json:
            print(json.dumps(studies, indent=2))
            return 0
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for name in ("name", "source", "rows", "of which here", "title"):
            table.add_column(name)
        for one in studies:
            rows = f"{one['finished']}/{one['jobs']}"
            table.add_row(one["name"], one["source"], rows, str(one["here"]), one["title"])
        Console(highlight=False).print(table)
        return 0


@dataclass(frozen=True)
class Run(_Options):
    """Run studies and what they need; finished jobs are skipped, so the same line resumes.

    python3 dev.py study run table3

    python3 dev.py study run --all --quick

    python3 dev.py study run rate_accuracy --engine ray --workers 16

    python3 dev.py study run byte_frontier --jobs 'sst2-lora-1-*'

    To run a finished job again, delete its row in WORK/SCALE/NAME/rows.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; see `python3 dev.py study list`."""
    all: bool = False
    """All of them."""
    workers: int = 2
    """Worker processes, each with one thread."""
    engine: Literal["local", "ray"] = "local"
    """Where jobs run; ray: on the cluster that RAY_ADDRESS names, else on a new one here."""
    data: Path | None = None
    """Folder of the data sets; RANKCAST_DATA or shared/data further up if left out."""
    jobs: str = "*"
    """Only jobs whose names match this pattern, such as 'sst2-lora-*'; others wait for later."""

    def run(self, argv: Sequence[str]) -> int:
        """Run them, show progress, and say what came of it."""
        catalogue, store = self.open()
        names = catalogue.names if self.all else self.names
        if not names or (self.all and self.names):
            raise ConfigError(
                f"Name the studies to run, or give --all: {', '.join(catalogue.names)}."
            )
        engine: Engine
        engine = RayEngine(self.workers) if self.engine == "ray" else LocalEngine(self.workers)
        data = find_data(catalogue.folder, self.data)
        with _sigterm_interrupts(), _LiveProgress() as progress:
            outcome = run_studies(
                catalogue, names, store, engine, data=data, observer=progress, jobs=self.jobs
            )
        _print_problems(outcome, f"{PROGRAM} {shlex.join(argv)}")
        if self.json:
            print(json.dumps(_plain(outcome, store), indent=2))
        else:
            for result in outcome.results:
                total = len(result.rows) + len(result.missing)
                file = store.result_file(result.study)
                print(f"{result.study}: {len(result.rows)}/{total} rows, {file}")
        if outcome.interrupted:
            return INTERRUPTED
        return 1 if outcome.failures or outcome.waiting else 0


@dataclass(frozen=True)
class Report(_Options):
    """Write a page with every claim, table and chart, from the results alone.

    python3 dev.py study report --open

    python3 dev.py study report table3 --json

    python3 dev.py study report --update README.md docs/*.md studies/*/README.md
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; all of them if left out."""
    output: Path | None = None
    """Folder to write; WORK/report if left out."""
    update: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE …")] = ()
    """Documents whose result blocks are renewed, such as README.md; no page is written then."""
    open_page: Annotated[bool, tyro.conf.arg(name="open")] = False
    """Show the page in a browser."""

    def run(self, argv: Sequence[str]) -> int:
        """Write the report, renew documents, or print the scoreboard as JSON."""
        del argv
        catalogue, store = self.open()
        presented = present_all(catalogue, catalogue.select(self.names), store)
        if self.json:
            print(json.dumps(scoreboard(presented), indent=2, ensure_ascii=False))
            return 0
        if self.update:
            blocks = blocks_of(presented) | rendered_blocks(catalogue.folder)
            for document in self.update:
                renewed = update_document(document, blocks)
                print(f"{document}: {', '.join(renewed) or 'nothing to renew'}")
            return 0
        page = write_report(self.output or store.work / "report", presented)
        print(page)
        if self.open_page:
            webbrowser.open(page.resolve().as_uri())
        return 0


class _Command(Protocol):
    def run(self, argv: Sequence[str]) -> int:
        """Do what was asked and return the exit status."""
        ...


class Studies:
    """Test the paper's claims and our own: list studies, run them, report what came out.

    python3 dev.py study list

    python3 dev.py study run table3 --quick

    python3 dev.py study report --open
    """

    COMMANDS: ClassVar[dict[str, type[_Command]]] = {"list": List, "run": Run, "report": Report}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; leave with 2 after an error of ours, 130 after an interruption."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        status = _dispatch([arg for arg in args if arg != "--debug"])
    except (RankcastError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"study: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("study: interrupted.", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


def _dispatch(args: list[str]) -> int:
    help_wanted = not args or args[0] in ("-h", "--help")
    if help_wanted:
        print(group_help(Studies, PROGRAM))
        return 0 if args else 2
    name, *options = args
    if name not in Studies.COMMANDS:
        hint = nearest(name, Studies.COMMANDS) or f"; there are {', '.join(Studies.COMMANDS)}."
        raise ConfigError(f"{PROGRAM} has no command {name!r}{hint}")
    return parse_options(Studies.COMMANDS[name], options, f"{PROGRAM} {name}").run(args)


def _status(study: Study, store: Store) -> dict[str, Any]:
    """Return what `list` says of a study."""
    jobs, file = jobs_of(study, store.scale), store.result_file(study.name)
    return {
        "name": study.name,
        "source": study.source,
        "title": study.title,
        "needs": [*study.inputs],
        "scale": store.scale,
        "jobs": len(jobs),
        "finished": len(store.collect(study).rows),
        "here": sum(store.read_row(study.name, job) is not None for job in jobs),
        "result": str(file) if file.exists() else None,
    }


def _print_problems(outcome: Outcome, typed: str) -> None:
    """Print on standard error what failed, what waits, and how to go on."""
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
    for line in lines:
        print(f"study: {line}", file=sys.stderr)


def _plain(outcome: Outcome, store: Store) -> dict[str, object]:
    """Return an outcome for `--json`."""
    return {
        "scale": store.scale,
        "interrupted": outcome.interrupted,
        "studies": [
            {
                "name": result.study,
                "rows": len(result.rows),
                "missing": list(result.missing),
                "wall_s": round(sum(row.wall_s for row in result.rows), 1),
                "result": str(store.result_file(result.study)),
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

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
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
        how = f"{outcome.wall_s:.1f} s" if isinstance(outcome, Row) else "failed"
        self._bar.console.print(
            f"{self._done}/{self._total} {task.title}: {how}", markup=False, soft_wrap=True
        )
        self._show()

    def _show(self) -> None:
        names = ", ".join(self._running[:4]) + (" …" if len(self._running) > 4 else "")
        self._bar.update(self._task, completed=self._done, total=self._total, description=names)
