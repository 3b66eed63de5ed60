"""Define a study: jobs that leave rows, and a presentation made from the rows alone.

A study is a folder with a `study.py` that defines `STUDY`. Its jobs do not depend on one another,
so they can run in any order, on any engine, and be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rankcast.records import FloatArray

Scale = Literal["quick", "default", "paper"]
"""`quick`: seconds, to see that it runs; `default`: what is reported; `paper`: a GPU and a hub."""

Verdict = Literal[
    "reproduced",
    "smaller than claimed",
    "opposite sign",
    "not met",
    "not distinguishable",
    "not testable here",
    "measured",
    "not run",
]
"""What our number says of a claim; `VERDICTS` has each in a sentence."""

VERDICTS: Mapping[Verdict, str] = {
    "reproduced": "our interval shows what is claimed",
    "smaller than claimed": "our interval lies below the size that is claimed",
    "opposite sign": "our interval lies on the other side of zero",
    "not met": "a limit, a margin or a count that the claim names does not hold",
    "not distinguishable": "our interval holds both the claim and its opposite, or there is none",
    "not testable here": "it needs what is not here, such as a GPU",
    "measured": "a question of ours, without a number of the paper to compare with",
    "not run": "no job of the study has finished yet",
}

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Job:
    """One independent piece of work.

    Attributes:
        name: unique within the study; also the name of its file.
        seed: of everything random in it.
        settings: what distinguishes it, as JSON values.
    """

    name: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of a finished job.

    Attributes:
        job: the job.
        values: its results, as JSON values.
        wall_s: wall-clock time [s], summed over interruptions where the job keeps count.
        cpu_s: processor time [s].
        device: what it ran on.
        versions: of the packages that matter.
    """

    job: Job
    values: Mapping[str, Any]
    wall_s: float
    cpu_s: float
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """All rows of a study at one scale.

    Attributes:
        study: its name.
        scale: at which it ran.
        command: what a person types to get it again.
        rows: in the order of the jobs.
        missing: names of jobs that have no row yet.
    """

    study: str
    scale: Scale
    command: str
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that occur, in order."""
        return tuple(sorted({row.job.seed for row in self.rows}))

    def select(self, **settings: Any) -> tuple[Row, ...]:
        """Return the rows whose settings have these values."""
        return tuple(
            row
            for row in self.rows
            if all(row.job.settings.get(name) == value for name, value in settings.items())
        )


@dataclass(frozen=True, slots=True)
class RunContext:
    """The folders, inputs and data that a job can use.

    Attributes:
        scratch: a folder of its own that survives interruptions; checkpoints go there.
        scale: at which it runs.
        inputs: results of the studies that it needs, by name.
        input_scratch: folders of the scratch folders of those studies, by name; a job's is
            `input_scratch[name] / job.name`. Absent on another machine.
        data: folder of the data sets (`sst2`, `agnews`), or None.
    """

    scratch: Path
    scale: Scale
    inputs: Mapping[str, Result]
    input_scratch: Mapping[str, Path]
    data: Path | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the scoreboard.

    Attributes:
        claim: what is claimed, as a sentence.
        paper: the paper's number with its unit; empty for questions of ours.
        ours: our number with its unit.
        interval: 95 % interval of our number, or None where there is nothing to resample.
        verdict: what follows from it.
        seeds: behind our number.
        note: what a reader has to know to judge it.
    """

    claim: str
    paper: str
    ours: str
    interval: Interval | None
    verdict: Verdict
    seeds: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under headings; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart; `low` and `high` are the ends of its 95 % interval."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class LineChart:
    """Lines with bands over a common axis; with `markers`, points joined by lines.

    Error rates go on a logarithmic axis: `log_y`.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    markers: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A matrix as shades, such as mean ranks: layers across, kinds of projection down."""

    title: str
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    values: FloatArray
    unit: str
    note: str = ""


Chart = LineChart | HeatMap


@dataclass(frozen=True, slots=True)
class Presentation:
    """A study as a reader sees it.

    Attributes:
        claims: what is claimed, with verdicts.
        tables: the numbers.
        charts: the same as pictures.
        text: what to know first, in sentences.
        summary: a small table right below the text, where sentences would be a list of numbers.
    """

    claims: tuple[Claim, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    text: str = ""
    summary: Table | None = None


def _no_jobs(scale: Scale) -> Sequence[Job]:
    del scale
    return ()


def _never_run(job: Job, context: RunContext) -> Mapping[str, Any]:
    raise AssertionError(f"{job.name} belongs to a study without jobs ({context.scale}).")


@dataclass(frozen=True, slots=True)
class Study:
    """One claim of the paper's, or a question of ours.

    Attributes:
        name: of the folder.
        title: a few words.
        question: what it asks, as a sentence.
        source: where the paper makes the claim (`Table III`, `Fig. 4`), or `ours`.
        present: makes claims, tables and charts from the rows, which may be incomplete.
        jobs: what is to be run at a scale, the most important first. A study without jobs presents
            the rows of others.
        run: runs one job and returns its values, as JSON values; called in a worker process.
        needs: studies whose results its jobs use, so that these must be there first.
        also_shows: studies whose rows its presentation shows, as far as they have run; its jobs do
            not wait for them.
        needs_data: whether its jobs train on data sets, which do not come with the project; without
            them the quick scale leaves it out.
    """

    name: str
    title: str
    question: str
    source: str
    present: Callable[[Result, Mapping[str, Result]], Presentation]
    jobs: Callable[[Scale], Sequence[Job]] = _no_jobs
    run: Callable[[Job, RunContext], Mapping[str, Any]] = _never_run
    needs: tuple[str, ...] = ()
    also_shows: tuple[str, ...] = ()
    needs_data: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The studies whose results its presentation is given."""
        return (*self.needs, *self.also_shows)
