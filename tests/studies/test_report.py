from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from rankcast.errors import ConfigError
from report_data import NASTY, everything, heat_map, line_chart, presented
from studies.harness.spec import Claim, HeatMap, LineChart, Presentation, Series, Table, Verdict
from studies.report import make_page, write_report
from studies.report.blocks import blocks_of, rendered_blocks, stale_blocks, update_document
from studies.report.charts import chart_svg
from studies.report.html import render_html
from studies.report.page import (
    MOST_ROWS,
    duration,
    ours_with_interval,
    words_of_missing,
    words_of_seeds,
)


class Text(HTMLParser):
    """Collects words, ids and links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "xlink:href"}:
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(folder, everything()) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Text:
    text = Text()
    text.feed((folder / "report.html").read_text("utf-8"))
    return text


def flat(text: str) -> str:
    return " ".join(text.split())


def test_every_claim_is_in_both_documents(folder: Path, page: Text) -> None:
    words = flat(" ".join(page.words))
    markdown = (folder / "report.md").read_text("utf-8")
    for one in everything():
        for claim in one.presentation.claims:
            assert flat(claim.claim) in words  # the script gathers them into one table
            shown = claim.claim.replace("&", "&amp;").replace("<", "&lt;")
            assert f"| {shown} |" in markdown


def test_hostile_text_stays_text(folder: Path, page: Text) -> None:
    assert page.tags.count("script") == 1  # ours
    assert NASTY in flat("".join(page.words))
    assert "<script" not in (folder / "report.md").read_text("utf-8")
    for file in (folder / "images").iterdir():
        assert "<script" not in file.read_text("utf-8")


def test_the_page_fetches_nothing(folder: Path, page: Text) -> None:
    outside = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert outside == []
    styles = re.findall(
        r"<style.*?</style>", (folder / "report.html").read_text("utf-8"), re.DOTALL
    )
    assert not any("@import" in style or "url(http" in style for style in styles)


def test_ids_are_unique_and_links_lead_somewhere(page: Text) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_same_results_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_report(tmp_path, everything())
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 2 + 4  # two documents, four charts
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes()


def test_markdown_says_what_the_page_says(folder: Path, page: Text) -> None:
    words = flat(" ".join(page.words))
    markdown = (folder / "report.md").read_text("utf-8")
    for section in make_page(everything()).sections:
        for table in section.tables:
            for row in table.rows:
                for cell in row:
                    assert flat(cell) in words
        if section.summary:
            for row in section.summary.rows:
                assert f"| {' | '.join(row)} |" in markdown
                assert all(cell in words for cell in row)
        for figure in section.figures:
            assert f"({figure.file})" in markdown
            assert (folder / figure.file).exists()
        for value in (value.strip("`") for _, value in section.facts):
            assert value in words  # or in the section before that says so
        assert f"{dict(section.facts)['Command']}, " in markdown


def test_contents_come_first_and_the_papers_claims_before_ours(folder: Path, page: Text) -> None:
    made = make_page(everything())
    assert [s.name for s in made.sections] == ["table3", "fig8", "rate_accuracy"]
    assert [heading for heading, _ in made.groups] == ["The paper's claims", "Questions of ours"]
    markdown = (folder / "report.md").read_text("utf-8")
    for text in (flat(" ".join(page.words)), markdown):
        places = [text.index(words) for words in ("Contents", "Verdicts", "What does table3 show?")]
        assert places == sorted(places)
        assert text.index("The paper's claims") < text.index("Questions of ours")


def test_verdicts_are_counted_for_the_paper_and_for_us() -> None:
    tally = {row[0]: row[2:] for row in make_page(everything()).tally.rows}
    assert list(tally) == list(get_args(Verdict))
    assert tally["measured"] == ("2", "1")
    assert tally["opposite sign"] == ("1", "0")


def test_without_results_there_is_a_page() -> None:
    page = make_page(())
    assert (page.sections, page.groups, page.effort) == ((), (), "")
    assert "Every claim of the paper" in render_html(page)


def test_a_note_that_several_claims_have_stands_once() -> None:
    claims = tuple(Claim(f"Claim {n}", "", "1", None, "measured", (), note) for n, note in
                   enumerate(("Same.", "", "Other.", "Same.")))  # fmt: skip
    (section,) = make_page([presented("one", Presentation(claims))]).sections
    assert section.notes == ("Same.", "Other.")
    assert [section.note_number(claim) for claim in claims] == ["1", "", "2", "1"]


def test_missing_jobs_and_times_are_named(page: Text) -> None:
    words = flat(" ".join(page.words))
    assert "Missing: live-sst2-3, live-sst2-4." in words
    facts = [dict(section.facts) for section in make_page(everything()).sections]
    assert facts[0]["Jobs"] == "4 of 6 finished"
    assert facts[0]["Wall-clock time"] == "4 h 27 min"
    assert facts[1]["Wall-clock time"] == "not recorded"
    assert words_of_missing([f"job-{n}" for n in range(5)]) == "job-0, job-1, job-2 and 2 more"
    assert facts[0]["Versions"] == "rankcast 0.1.0, torch 2.13.0+cpu, numpy 2.4.6"


def test_a_study_appears_once() -> None:
    with pytest.raises(ConfigError, match="fig8"):
        make_page([*everything(), presented("fig8", Presentation(()))])


@pytest.mark.parametrize(
    ("ours", "interval", "expected"),
    [
        ("+0.12 points", (-0.3123, 0.5456), "+0.12 points (-0.31 to +0.55)"),
        ("0.871", (0.868, 0.874), "0.871 (0.868 to 0.874)"),
        ("43 %", (40.2, 46.4), "43 % (40 to 46)"),
        ("12 %", (12.1, 12.2), "12 % (12.1 to 12.2)"),
        ("yes", (0.25, 0.75), "yes (0.250 to 0.750)"),
        ("0.5", None, "0.5"),
        ("", None, "–"),
    ],
)
def test_intervals_have_the_decimals_of_the_number(
    ours: str, interval: tuple[float, float] | None, expected: str
) -> None:
    assert ours_with_interval(Claim("c", "", ours, interval, "measured", ())) == expected


def test_seeds_and_times_in_words() -> None:
    assert words_of_seeds(()) == "–"
    assert words_of_seeds((3, 0, 1, 2, 7)) == "5 (0–3, 7)"
    assert [duration(s) for s in (2.34, 150.0, 16_020.0)] == ["2.3 s", "2 min", "4 h 27 min"]


@pytest.mark.parametrize("chart", [line_chart(11), line_chart(3, markers=True), heat_map()])
def test_drawings_are_well_formed_and_keep_their_words(chart: LineChart | HeatMap) -> None:
    svg = chart_svg(chart, "some-name")
    root = ET.fromstring(svg)  # noqa: S314 - drawn by us
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert all(name is not None and name.startswith("some-name-") for name in ids)
    words = {
        flat("".join(element.itertext())) for element in root.iter() if element.tag[-4:] == "text"
    }
    if isinstance(chart, LineChart):
        assert {series.label for series in chart.series} | {chart.x_label, chart.y_label} <= words
    else:
        assert {*chart.row_labels, chart.unit} <= words
        assert "nan" not in words


def test_charts_that_cannot_be_drawn_are_refused() -> None:
    empty = LineChart("Empty", "x", "y", ())
    with pytest.raises(ConfigError, match="no series"):
        chart_svg(empty, "a")
    with pytest.raises(ConfigError, match="differ in length"):
        chart_svg(replace(empty, series=(Series("s", [1.0], [1.0, 2.0]),)), "a")
    with pytest.raises(ConfigError, match="positive"):
        chart_svg(replace(empty, series=(Series("s", [0.0], [1.0]),), log_x=True), "a")
    with pytest.raises(ConfigError, match="shape"):
        chart_svg(HeatMap("h", ("a",), ("b",), np.zeros((2, 2)), "rank"), "a")


PRESENTATION = Presentation(
    (Claim("It holds", "", "0.5", (0.4, 0.6), "measured", (0, 1)),),
    (Table("First", ("a", "b"), (("1", "x|y"),)), Table("Second", ("c",), (("2",),))),
    text="In one sentence.",
)
FIRST = "| a | b |\n|---|---|\n| 1 | x\\|y |"


def test_blocks_by_name() -> None:
    blocks = blocks_of([presented("one", PRESENTATION)])
    assert set(blocks) == {"one", "one:1", "one:2", "one:claims", "one:text"}
    assert blocks["one"] == blocks["one:1"] == FIRST
    assert blocks["one:2"] == "| c |\n|---|\n| 2 |"
    assert "| It holds | – | 0.5 (0.4 to 0.6) | measured | 2 (0–1) |" in blocks["one:claims"]
    assert blocks["one:text"] == "In one sentence."
    small = replace(PRESENTATION, summary=PRESENTATION.tables[0])
    blocks = blocks_of([presented("one", small)])
    assert blocks["one:text"] == f"In one sentence.\n\n{FIRST}"


def test_stale_blocks_are_named_and_renewed(tmp_path: Path) -> None:
    blocks = blocks_of([presented("one", PRESENTATION)])
    document = tmp_path / "README.md"
    document.write_text(
        "Before.\n\n<!-- results:one -->\n\nold\n\n<!-- /results -->\n\nBetween.\n\n"
        "<!-- results:one:text -->\n\nIn one sentence.\n\n<!-- /results -->\n\nAfter.\n",
        "utf-8",
    )
    assert stale_blocks(document, blocks) == ["one"]
    assert update_document(document, blocks) == ["one"]
    assert stale_blocks(document, blocks) == []
    renewed = document.read_text("utf-8")
    assert renewed.startswith(f"Before.\n\n<!-- results:one -->\n\n{FIRST}\n\n<!-- /results -->\n")
    assert renewed.endswith("\n\nAfter.\n")
    assert update_document(document, blocks) == []
    assert document.read_text("utf-8") == renewed


def test_folders_that_are_no_studies_render_their_own_block(tmp_path: Path) -> None:
    (tmp_path / "live_run").mkdir()
    (tmp_path / "live_run" / "render.py").write_text("def render():\n    return '| a |'\n", "utf-8")
    assert rendered_blocks(tmp_path) == {"live_run": "| a |"}


def test_blocks_without_a_result_or_an_end_are_refused(tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("<!-- results:on -->\nold\n<!-- /results -->\n", "utf-8")
    blocks = blocks_of([presented("one", PRESENTATION)])
    assert stale_blocks(document, blocks) == ["on"]
    with pytest.raises(ConfigError, match="did you mean 'one'"):
        update_document(document, blocks)
    document.write_text("<!-- results:one -->\nold\n", "utf-8")
    with pytest.raises(ConfigError, match="one is not closed"):
        stale_blocks(document, blocks)


def test_a_page_of_several_studies_has_the_first_rows_of_a_long_table() -> None:
    rows = tuple((str(i), "1") for i in range(MOST_ROWS + 3))
    long = presented("long", Presentation((), (Table("T", ("a", "b"), rows, "All of them."),)))
    (whole,) = make_page([long]).sections[0].tables
    assert whole.rows == rows
    (cut,) = make_page([long, presented("other", Presentation(()))]).sections[0].tables
    assert cut.rows == rows[:MOST_ROWS]
    assert cut.note == "All of them. 3 more rows: `python3 dev.py study report long`."
