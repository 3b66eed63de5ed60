from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankcast.errors import ConfigError, RankcastError
from studies.harness.spec import Job, Presentation, Result, Row, Study
from studies.harness.store import (
    Store,
    command_for,
    jobs_of,
    plain,
    read_result,
    same_job,
    write_result,
)


def row(name: str, seed: int = 0, settings: Any = None, **values: Any) -> Row:
    return Row(Job(name, seed, settings or {}), values, 1.5, 1.25, "cpu (x)", {"numpy": "2"})


def study(jobs: Sequence[Job]) -> Study:
    return Study(
        name="table3",
        title="",
        question="",
        source="Table III",
        jobs=lambda _: jobs,
        run=lambda *_: {},
        present=lambda *_: Presentation(()),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "studies", tmp_path / "runs")


def test_plain_values_survive_json() -> None:
    value = {
        "f": np.float64(0.5),
        "nan": math.nan,
        "inf": np.array([1.0, -math.inf]),
        "i": np.int64(3),
        "t": (True, None, "x"),
        5: np.arange(2),
    }
    values = plain(value)
    expected = {
        "f": 0.5,
        "nan": None,
        "inf": [1.0, None],
        "i": 3,
        "t": [True, None, "x"],
        "5": [0, 1],
    }
    assert values == expected
    assert json.loads(json.dumps(values, allow_nan=False)) == expected


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(ConfigError, match=r"values\.a\.b is a set"):
        plain({"a": {"b": {1}}}, "values")


def test_jobs_are_the_same_when_name_seed_and_settings_are() -> None:
    job = Job("a", 1, {"x": (1, 2), "y": np.float64(0.5)})
    assert same_job(job, Job("a", 1, {"y": 0.5, "x": [1, 2]}))
    assert not same_job(job, Job("b", 1, job.settings))
    assert not same_job(job, Job("a", 2, job.settings))
    assert not same_job(job, Job("a", 1, {"x": [1, 3], "y": 0.5}))


def test_rows_come_back_unless_their_job_has_changed(store: Store) -> None:
    kept = row("a", 3, {"x": [1]}, y=[0.1, None])
    file = store.write_row("table3", kept)
    assert file == store.work / "default" / "table3" / "rows" / "a.json"
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]
    assert store.read_row("table3", kept.job) == kept
    assert store.read_row("table3", Job("a", 3, {"x": [2]})) is None
    assert store.read_row("table3", Job("b", 3, {"x": [1]})) is None
    assert replace(store, scale="quick").read_row("table3", kept.job) is None
    file.write_text(file.read_text()[:20])
    assert store.read_row("table3", kept.job) is None


def test_results_are_read_as_written_with_a_row_a_line(tmp_path: Path) -> None:
    rows = (row("a", 1, y=1), row("b", 0, {"p": "ü"}, y=math.nan))
    result = Result("table3", "default", "rankcast …", rows, ("c",))
    path = tmp_path / "table3" / "result.json"
    write_result(path, result)
    read = read_result(path)
    assert read == replace(result, rows=(rows[0], replace(rows[1], values={"y": None})))
    assert read.seeds == (0, 1)
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line.rstrip(","))["job"] for line in lines if '"job"' in line] == ["a", "b"]
    assert "NaN" not in path.read_text("utf-8")
    write_result(path, replace(result, rows=()))
    assert read_result(path).rows == ()


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}', '{"scale": "huge"}'])
def test_a_result_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ConfigError, match=r"result\.json"):
        read_result(tmp_path / "result.json")
    with pytest.raises(ConfigError, match="There is no result"):
        read_result(tmp_path / "other.json")


def test_collecting_orders_rows_and_names_what_is_missing(store: Store) -> None:
    jobs = [Job(name, 0) for name in "abc"]
    for name in "cax":
        store.write_row("table3", row(name))
    result = store.collect(study(jobs))
    assert [r.job.name for r in result.rows] == ["a", "c"]
    assert result.missing == ("b",)
    assert result.command == "python3 dev.py study run table3"


def test_collected_rows_are_kept_where_local_ones_are_absent(store: Store) -> None:
    jobs = [Job(name, 0, {"x": 1}) for name in "abc"]
    old = tuple(row(name, 0, {"x": 2 if name == "c" else 1}, y="old") for name in "abc")
    file = store.result_file("table3")
    assert file == store.studies / "table3" / "result.json"
    write_result(file, Result("table3", "default", "", old))
    store.write_row("table3", row("a", 0, {"x": 1}, y="new"))
    result = store.collect(study(jobs))
    assert [(r.job.name, r.values["y"]) for r in result.rows] == [("a", "new"), ("b", "old")]
    assert result.missing == ("c",)  # its settings are no longer those it ran with


def test_each_scale_has_its_own_result(store: Store) -> None:
    files = {replace(store, scale=s).result_file("fig3") for s in ("quick", "default", "paper")}
    assert len(files) == 3
    assert store.work / "quick" / "fig3" / "result.json" in files
    assert store.studies / "fig3" / "result-paper.json" in files
    assert command_for("fig3", "quick") == "python3 dev.py study run fig3 --quick"
    assert command_for("fig3", "paper") == "python3 dev.py study run fig3 --scale paper"


@pytest.mark.parametrize("names", [("a", "a"), ("a/b",), ("..",), ("a b",), ("",)])
def test_names_of_jobs_are_names_of_files(names: Sequence[str]) -> None:
    with pytest.raises(ConfigError, match="job"):
        jobs_of(study([Job(name, 0) for name in names]), "quick")
    assert jobs_of(study([Job("a-0.5+b_1", 0)]), "quick")[0].name == "a-0.5+b_1"


def test_a_study_is_locked_for_one_process(store: Store) -> None:
    with store.lock("table3"):
        with pytest.raises(RankcastError, match="running table3"), store.lock("table3"):
            pass
        with store.lock("table4"):
            pass
    with store.lock("table3"):
        assert True
