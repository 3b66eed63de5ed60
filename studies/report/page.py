"""Compose the report before it is laid out: HTML and Markdown show the same page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankcast.errors import ConfigError
from studies.harness.spec import (
    VERDICTS,
    Chart,
    Claim,
    Interval,
    LineChart,
    Result,
    Table,
    Verdict,
)
from studies.report.charts import chart_svg
from studies.report.scoreboard import Presented

_ORDER = ("Table", "Fig.", "baseline")
"""How the sources of the paper's sections begin, in the order of the page; ours come after."""
MOST_NAMED = 3
"""Missing jobs that are named; of more there is the number."""
MOST_ROWS = 5
"""Of a table on a page of several studies; a page of one study has all."""
MOST_CHARTS, MOST_TABLES = 2, 2
"""Likewise, of a study of ours. Those of the paper's figures and tables are whole."""

CLAIM_COLUMNS = ("Claim", "Paper", "Ours (95 % interval)", "Verdict", "Seeds", "Note")


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart that is drawn.

    Attributes:
        title: what it shows.
        note: what a reader has to know.
        alt: the same for who cannot see it.
        name: unique in the page; of letters, digits and dashes.
        document: the SVG.
        wide: whether it needs the page's whole width.
    """

    title: str
    note: str
    alt: str
    name: str
    document: str
    wide: bool = False

    @property
    def file(self) -> str:
        """Path beside the Markdown."""
        return f"images/{self.name}.svg"


@dataclass(frozen=True, slots=True)
class Section:
    """One study of the page."""

    name: str
    title: str
    question: str
    source: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    text: tuple[str, ...]
    summary: Table | None
    facts: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]

    @property
    def is_papers(self) -> bool:
        """Whether the paper makes its claims."""
        return self.source.startswith(_ORDER)

    @property
    def verdicts(self) -> tuple[tuple[Verdict, int], ...]:
        """How many of its claims have each verdict."""
        counted = Counter(claim.verdict for claim in self.claims)
        return tuple((verdict, counted[verdict]) for verdict in VERDICTS if counted[verdict])

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes on its claims, each once."""
        return tuple(dict.fromkeys(claim.note for claim in self.claims if claim.note))

    def note_number(self, claim: Claim) -> str:
        """Return which of the notes a claim has: `1` for the first."""
        return str(self.notes.index(claim.note) + 1) if claim.note else ""


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report."""

    title: str
    sections: tuple[Section, ...]
    effort: str

    @property
    def groups(self) -> tuple[tuple[str, tuple[Section, ...]], ...]:
        """The sections under two headings, the paper's before ours; none is empty."""
        papers = tuple(s for s in self.sections if s.is_papers)
        ours = tuple(s for s in self.sections if not s.is_papers)
        both = (("The paper's claims", papers), ("Questions of ours", ours))
        return tuple((heading, sections) for heading, sections in both if sections)

    @property
    def tally(self) -> Table:
        """How many claims have each verdict, the paper's and ours."""
        sides = [
            Counter(
                claim.verdict for s in self.sections if s.is_papers is papers for claim in s.claims
            )
            for papers in (True, False)
        ]
        rows = tuple(
            (verdict, VERDICTS[verdict], *(str(side[verdict]) for side in sides))
            for verdict in VERDICTS
            if any(side[verdict] for side in sides)
        )
        return Table("Verdicts", ("verdict", "it says that", "paper's", "ours"), rows)


def make_page(presented: Sequence[Presented]) -> Page:
    """Draw the charts and word the facts; the paper's tables and figures come first.

    Raises:
        ConfigError: two studies of one name; a chart that cannot be drawn.
    """
    names = [one.study.name for one in presented]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(f"The report was given {', '.join(twice)} more than once.")
    ordered = sorted(presented, key=lambda one: _rank(one.study.source))
    sections = tuple(_section(one, short=len(ordered) > 1) for one in ordered)
    return Page("rankcast: the scoreboard", sections, _effort(ordered))


def _rank(source: str) -> int:
    """Return where the sections of a source stand: the paper's tables, its figures, then ours."""
    return next((i for i, start in enumerate(_ORDER) if source.startswith(start)), len(_ORDER))


def _effort(presented: Sequence[Presented]) -> str:
    """Return how long everything on the page took; nothing before the first row."""
    rows = [row for one in presented for row in one.result.rows]
    missing = sum(len(one.result.missing) for one in presented)
    if not rows:
        return ""
    total = duration(sum(row.cpu_s for row in rows))
    left = f" {missing} more jobs have not been run." if missing else ""
    return f"All of this took {total} of processor time in {len(rows)} jobs.{left}"


def _section(one: Presented, *, short: bool) -> Section:
    study, presentation = one.study, one.presentation
    fewer = short and study.source == "ours"
    charts = presentation.charts[: MOST_CHARTS if fewer else None]
    figures = tuple(
        _figure(chart, f"{slug(study.name)}-{number}") for number, chart in enumerate(charts, 1)
    )
    left = len(presentation.charts) - len(figures)
    if left:
        where = f"{left} more {'chart' if left == 1 else 'charts'}: {_whole(study.name)}"
        figures = (*figures[:-1], replace(figures[-1], note=f"{figures[-1].note} {where}".strip()))
    tables = tuple(presentation.tables)
    if short:
        tables = tuple(_shortened(table, study.name) for table in tables)
    if fewer and len(tables) > MOST_TABLES:
        note = f"{len(tables) - MOST_TABLES} more tables: {_whole(study.name)}"
        tables = (
            *tables[: MOST_TABLES - 1],
            replace(tables[MOST_TABLES - 1], note=f"{tables[MOST_TABLES - 1].note} {note}".strip()),
        )
    return Section(
        study.name,
        study.title,
        study.question,
        study.source,
        presentation.claims,
        tables,
        figures,
        paragraphs(presentation.text),
        presentation.summary,
        _facts(one.result),
        one.result.missing,
    )


def _shortened(table: Table, study: str) -> Table:
    """Return a table of at most `MOST_ROWS`, which says where the others are."""
    left = len(table.rows) - MOST_ROWS
    if left <= 0:
        return table
    note = f"{table.note} {left} more rows: {_whole(study)}".strip()
    return replace(table, rows=table.rows[:MOST_ROWS], note=note)


def _whole(study: str) -> str:
    """Return where all of a study is."""
    return f"`python3 dev.py study report {study}`."


def _figure(chart: Chart, name: str) -> Figure:
    words, wide = [chart.title], False
    if isinstance(chart, LineChart):
        words += [f"{chart.y_label} against {chart.x_label}"]
        n_lines = len(chart.series)
        words += [f"{n_lines} lines, named in the chart" if n_lines > 1 else chart.series[0].label]
    else:
        words += [f"{chart.unit} of {len(chart.row_labels)} × {len(chart.column_labels)} cells"]
        wide = len(chart.column_labels) > 16
    return Figure(chart.title, chart.note, ". ".join(words), name, chart_svg(chart, name), wide)


def _facts(result: Result) -> tuple[tuple[str, str], ...]:
    """Return what has to be known to get the result again, as terms and descriptions."""
    rows = result.rows
    facts = [
        ("Command", f"`{result.command}`"),
        ("Scale", result.scale),
        ("Jobs", f"{len(rows)} of {len(rows) + len(result.missing)} finished"),
        ("Seeds", words_of_seeds(result.seeds)),
    ]
    if rows:
        unrecorded = sum(row.wall_s == 0.0 for row in rows)
        wall = duration(sum(row.wall_s for row in rows))
        note = f" (not recorded for {unrecorded} of {len(rows)} jobs)" if unrecorded else ""
        facts += [
            ("Wall-clock time", "not recorded" if unrecorded == len(rows) else wall + note),
            ("Processor time", duration(sum(row.cpu_s for row in rows))),
            ("Device", "; ".join(dict.fromkeys(row.device for row in rows))),
            ("Versions", _words_of_versions(result)),
        ]
    return tuple(facts)


def words_of_missing(missing: Sequence[str]) -> str:
    """Return which jobs have not run: the first by name, of the others their number."""
    more = len(missing) - MOST_NAMED
    named = ", ".join(missing[:MOST_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def words_of_verdicts(verdicts: Sequence[tuple[Verdict, int]]) -> str:
    """Return how often there is each verdict: `2 reproduced, 1 opposite sign`."""
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts)


def _words_of_versions(result: Result) -> str:
    """Return each package with its version, or all of them where jobs differ."""
    by_package: dict[str, list[str]] = {}
    for row in result.rows:
        for package, version in row.versions.items():
            by_package.setdefault(package, []).append(version)
    return ", ".join(
        f"{package} {' and '.join(dict.fromkeys(versions))}"
        for package, versions in by_package.items()
    )


def ours_with_interval(claim: Claim) -> str:
    """Return our number and its interval, with as many decimals as the number has."""
    if not claim.ours:
        return "–"
    if claim.interval is None:
        return claim.ours
    return f"{claim.ours} ({_words_of_interval(claim.interval, claim.ours)})"


def _words_of_interval(interval: Interval, number: str) -> str:
    match = re.search(r"([+\-−])?\d[\d,]*(?:\.(\d+))?", number)
    decimals = len(match[2] or "") if match else 3
    sign = "+" if (match and match[1]) or interval[0] < 0 else ""
    low, high = (f"{end:{sign}.{decimals}f}" for end in interval)
    if low == high and interval[0] != interval[1]:
        low, high = (f"{end:{sign}.3g}" for end in interval)
    return f"{low} to {high}"


def words_of_seeds(seeds: Sequence[int]) -> str:
    """Return how many seeds there are and which: `5 (0–4)`."""
    if not seeds:
        return "–"
    ordered = sorted(set(seeds))
    runs: list[list[int]] = []
    for seed in ordered:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"{len(ordered)} ({', '.join(words)})"


def duration(seconds: float) -> str:
    """Return a time in units a person uses."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def paragraphs(text: str) -> tuple[str, ...]:
    """Return the paragraphs of a text, which are parted by empty lines."""
    return tuple(" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip())


def slug(name: str) -> str:
    """Return a name for use in ids and file names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
