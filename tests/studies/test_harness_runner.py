from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from helpers.waiting import wait_until
from rankcast.errors import ConfigError, RankcastError
from small_studies import calls, write_study
from studies.harness.catalogue import Catalogue, find_data, find_studies
from studies.harness.engines import Engine, LocalEngine, RayEngine
from studies.harness.runner import Observer, Outcome, run_studies
from studies.harness.spec import Row
from studies.harness.store import Store, read_result
from studies.harness.worker import Failure, Task, run_job
from studies.report.scoreboard import present_all, scoreboard

ROOT = Path(__file__).parents[2]
MAIN = (
    # Whoever runs the tests in the background has Ctrl-C ignored, and children inherit that.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from studies.harness.cli import main; main()"
)


class InThisProcess:
    """Runs a task when it is waited for: the runner's own logic, without processes."""

    capacity = 1

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __enter__(self) -> Self:
        run_job.__globals__["_load"].cache_clear()
        return self

    def __exit__(self, *error: object) -> None:
        self.tasks.clear()

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def finished(self) -> list[tuple[Task, Row | Failure]]:
        task = self.tasks.pop(0)
        return [(task, run_job(task))]


def run(folder: Path, *names: str, engine: Engine | None = None, **options: Any) -> Outcome:
    catalogue = Catalogue(folder)
    engine = engine or InThisProcess()
    return run_studies(catalogue, names, Store(folder, folder / "runs"), engine, **options)


def test_rows_are_collected_and_finished_jobs_skipped(tmp_path: Path) -> None:
    write_study(tmp_path, "fig3", '[Job("a", 1), Job("b", 2)]')
    first = run(tmp_path, "fig3")
    assert first.finished
    assert not first.failures
    assert first.results == (read_result(tmp_path / "fig3" / "result.json"),)
    assert [row.values["y"] for row in first.results[0].rows] == [10, 20]
    row = first.results[0].rows[0]
    assert row.wall_s >= 0
    assert row.device.startswith(("cpu", "cuda"))
    assert {"python", "numpy", "rankcast"} <= set(row.versions)
    assert run(tmp_path, "fig3").results == first.results
    assert calls(tmp_path, "fig3") == ["a", "b"]


def test_jobs_by_a_pattern_leave_the_others_for_later(tmp_path: Path) -> None:
    write_study(tmp_path, "fig3", '[Job("lora-1", 1), Job("lora-2", 2), Job("ours-1", 3)]')
    outcome = run(tmp_path, "fig3", jobs="lora-*")
    assert calls(tmp_path, "fig3") == ["lora-1", "lora-2"]
    assert outcome.results[0].missing == ("ours-1",)
    assert run(tmp_path, "fig3").finished
    assert calls(tmp_path, "fig3") == ["lora-1", "lora-2", "ours-1"]


def test_a_failed_job_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path, "fig3", '[Job("a", 1, {"do": "fail", "switch": "ok"}), Job("b", 2)]'
    )
    outcome = run(tmp_path, "fig3")
    assert not outcome.finished
    assert [task.title for task, _ in outcome.failures] == ["fig3/a"]
    assert outcome.failures[0][1].message == "no data; name its folder with --data"
    error = outcome.failures[0][0].context.scratch / "error.txt"
    assert "Traceback" in error.read_text()
    assert read_result(folder / "result.json").missing == ("a",)
    (folder / "ok").touch()
    outcome = run(tmp_path, "fig3")
    assert outcome.finished
    assert calls(tmp_path, "fig3") == ["a", "b", "a"]
    assert outcome.results[0].rows[0].values["kept"]  # the checkpoint of the first attempt
    assert not error.exists()
    assert not (error.parent / "spent.txt").exists()


def test_time_counts_earlier_attempts_that_left_a_checkpoint(tmp_path: Path) -> None:
    job = '[Job("a", 1, {"do": "fail", "switch": "ok"})]'
    folder = write_study(tmp_path, "fig3", job)
    scratch = run(tmp_path, "fig3").failures[0][0].context.scratch
    (folder / "ok").touch()
    (scratch / "spent.txt").write_text("1000 500\n")
    row = run(tmp_path, "fig3").results[0].rows[0]
    assert 1000 <= row.wall_s < 1100
    assert 500 <= row.cpu_s < 600


def test_changed_settings_are_run_again(tmp_path: Path) -> None:
    write_study(tmp_path, "fig3", '[Job("a", 1, {"x": 1}), Job("b", 2)]')
    run(tmp_path, "fig3")
    write_study(tmp_path, "fig3", '[Job("a", 1, {"x": 20}), Job("b", 2)]')
    outcome = run(tmp_path, "fig3")
    assert calls(tmp_path, "fig3") == ["a", "b", "a"]
    assert outcome.results[0].rows[0].job.settings == {"x": 20}


def test_a_job_defined_anew_does_not_continue_from_the_old_ones_checkpoint(tmp_path: Path) -> None:
    folder = write_study(tmp_path, "fig3", '[Job("a", 1, {"do": "fail", "switch": "ok"})]')
    scratch = run(tmp_path, "fig3").failures[0][0].context.scratch
    (scratch / "judged").mkdir()
    (folder / "ok").touch()
    write_study(tmp_path, "fig3", '[Job("a", 1, {"do": "fail", "switch": "ok", "lr": 2})]')
    outcome = run(tmp_path, "fig3")
    assert outcome.finished
    assert not outcome.results[0].rows[0].values["kept"]
    assert not (scratch / "judged").exists()


def test_what_is_needed_comes_first_and_is_handed_on(tmp_path: Path) -> None:
    write_study(tmp_path, "a_last", '[Job("a", 1)]', needs=("z_first",))
    write_study(tmp_path, "z_first", '[Job("p", 3), Job("q", 4)]')
    outcome = run(tmp_path, "a_last")
    assert [result.study for result in outcome.results] == ["z_first", "a_last"]
    assert outcome.results[1].rows[0].values["inputs"] == {"z_first": [30, 40]}


def test_what_is_only_needed_may_come_from_the_collected_result(tmp_path: Path) -> None:
    write_study(tmp_path, "a_last", '[Job("a", 1)]', needs=("z_first",))
    write_study(tmp_path, "z_first", '[Job("p", 3)]')
    run(tmp_path, "z_first")
    (tmp_path / "runs" / "default" / "z_first" / "rows" / "p.json").unlink()
    assert run(tmp_path, "a_last").finished
    assert calls(tmp_path, "z_first") == ["p"]
    assert run(tmp_path, "z_first").finished  # asked for by name: this machine runs it
    assert calls(tmp_path, "z_first") == ["p", "p"]


def test_what_needs_missing_rows_waits(tmp_path: Path) -> None:
    write_study(tmp_path, "a_last", '[Job("a", 1)]', needs=("z_first",))
    write_study(tmp_path, "z_first", '[Job("p", 3, {"do": "fail"}), Job("q", 4)]')
    outcome = run(tmp_path, "a_last")
    assert outcome.waiting == ("a_last",)
    assert calls(tmp_path, "a_last") == []
    assert not (tmp_path / "a_last" / "result.json").exists()
    assert calls(tmp_path, "z_first") == ["p", "q"]


def test_an_interruption_keeps_finished_rows(tmp_path: Path) -> None:
    write_study(tmp_path, "fig3", '[Job("a", 1), Job("b", 2), Job("c", 3)]')

    class Impatient(Observer):
        def on_end(self, task: Task, outcome: object) -> None:
            if task.job.name == "b":
                raise KeyboardInterrupt

    outcome = run(tmp_path, "fig3", observer=Impatient())
    assert outcome.interrupted
    assert read_result(tmp_path / "fig3" / "result.json").missing == ("c",)
    assert run(tmp_path, "fig3").finished
    assert calls(tmp_path, "fig3") == ["a", "b", "c"]


def test_two_processes_do_not_run_the_same(tmp_path: Path) -> None:
    write_study(tmp_path, "fig3", '[Job("a", 1)]')
    with (
        Store(tmp_path, tmp_path / "runs").lock("fig3"),
        pytest.raises(RankcastError, match="running fig3"),
    ):
        run(tmp_path, "fig3")
    assert calls(tmp_path, "fig3") == []


# --- local worker processes -------------------------------------------------------------------


def test_local_workers_run_jobs_side_by_side_with_one_thread(tmp_path: Path, capfd: Any) -> None:
    # Each of the two ends only once the other one runs.
    jobs = """[Job("a", 1, {"do": "wait", "switch": "pid-b"}),
               Job("b", 2, {"do": "wait", "switch": "pid-a"}), Job("c", 3)]"""
    write_study(tmp_path, "fig3", jobs)
    before = dict(os.environ)
    outcome = run(tmp_path, "fig3", engine=LocalEngine(2))
    assert outcome.finished
    assert [row.values["y"] for row in outcome.results[0].rows] == [10, 20, 30]
    assert {row.values["threads"] for row in outcome.results[0].rows} == {"1"}
    assert os.environ == before
    assert "said by" not in capfd.readouterr().out
    assert (tmp_path / "runs/default/fig3/scratch/a/output.txt").read_text() == "said by a\n"


def test_a_worker_that_dies_costs_no_other_job(tmp_path: Path) -> None:
    jobs = '[Job("a", 1), Job("dies", 2, {"do": "die"}), Job("c", 3), Job("d", 4)]'
    write_study(tmp_path, "fig3", jobs)
    outcome = run(tmp_path, "fig3", engine=LocalEngine(2))
    assert outcome.results[0].missing == ("dies",)
    [(task, failure)] = outcome.failures
    assert task.job.name == "dies"
    assert "process died" in failure.message


def test_idle_workers_that_are_killed_are_replaced(tmp_path: Path) -> None:
    write_study(tmp_path, "fig3", '[Job("a", 1), Job("b", 2)]')
    engine = LocalEngine(1)
    tasks: list[Task] = []

    class OneAtATime(InThisProcess):
        """Hands tasks to the engine, and kills its idle worker between two of them."""

        def submit(self, task: Task) -> None:
            if tasks:
                [worker] = multiprocessing.active_children()
                worker.kill()
                worker.join()
            tasks.append(task)
            engine.submit(task)

        def finished(self) -> list[tuple[Task, Row | Failure]]:
            return engine.finished()

    with engine:
        assert run(tmp_path, "fig3", engine=OneAtATime()).finished
    assert calls(tmp_path, "fig3") == ["a", "b"]


def test_a_worker_count_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="--workers"):
        LocalEngine(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_runner(tmp_path: Path, number: signal.Signals) -> None:
    folder = write_study(tmp_path / "studies", "fig3", '[Job("a", 1), Job("b", 2, {"do": "wait"})]')
    command = [sys.executable, "-c", MAIN, "run", "fig3", "--studies", "studies"]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        wait_until(lambda: (folder / "pid-b").exists() and (folder / "pid-b").read_text() != "")
        row = tmp_path / "runs/studies/default/fig3/rows/a.json"
        wait_until(row.exists)
        worker = int((folder / "pid-b").read_text())
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait()
    wait_until(lambda: not alive(worker))
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Go on with" in errors
        assert "Traceback" not in errors
        assert read_result(folder / "result.json").missing == ("b",)


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):  # a zombie whose parent was killed has ended too
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False


# --- Ray --------------------------------------------------------------------------------------


def test_ray_runs_the_same_jobs_on_two_workers(tmp_path: Path, local_ray: None) -> None:
    import ray

    jobs = """[Job("a", 1, {"do": "wait", "switch": "pid-b"}),
               Job("b", 2, {"do": "wait", "switch": "pid-a"}), Job("c", 3, {"do": "fail"})]"""
    write_study(tmp_path, "fig3", jobs)
    outcome = run(tmp_path, "fig3", engine=RayEngine(2))
    assert not ray.is_initialized()
    assert outcome.results[0].missing == ("c",)
    assert [row.values["y"] for row in outcome.results[0].rows] == [10, 20]
    assert {row.values["threads"] for row in outcome.results[0].rows} == {"1"}
    assert outcome.failures[0][1].message == "no data; name its folder with --data"


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'rankcast\[ray\]'"):
        RayEngine()


# --- the catalogue and the scoreboard ---------------------------------------------------------


def test_studies_are_those_of_the_checkout_or_of_a_folder(tmp_path: Path) -> None:
    write_study(tmp_path / "studies", "fig3", "[]")
    assert find_studies(tmp_path / "studies").names == ("fig3",)
    with pytest.raises(ConfigError, match="deep holds no studies"):
        find_studies(tmp_path / "deep")
    assert find_studies().folder == ROOT / "studies"
    assert {"table3", "fig3", "rate_accuracy"} <= set(find_studies().names)


def test_data_is_found_beside_or_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("RANKCAST_DATA", raising=False)
    studies = tmp_path / "checkout" / "studies"
    shared, other = tmp_path / "shared" / "data", tmp_path / "other"
    shared.mkdir(parents=True)
    other.mkdir()
    assert find_data(studies) == shared
    assert find_data(studies, other) == other
    monkeypatch.setenv("RANKCAST_DATA", str(other))
    assert find_data(studies) == other
    with pytest.raises(ConfigError, match="--data names"):
        find_data(studies, tmp_path / "none")


def test_mistakes_in_studies_are_explained(tmp_path: Path) -> None:
    write_study(tmp_path, "table3", "[]", needs=("tabel4",))
    write_study(tmp_path, "table4", "[]", needs=("fig3",))
    write_study(tmp_path, "fig3", "[]", needs=("table4",))
    write_study(tmp_path, "fig4", "[]", called="fig5")
    for name, text in (("broken", "import no_such_module"), ("empty", "x = 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.py").write_text(text)
    catalogue = Catalogue(tmp_path)
    for name, message in (
        ("tabl4", "did you mean 'table4'"),
        ("table3", "table3 needs 'tabel4'.*did you mean 'table4'"),
        ("table4", "in a circle: .*fig3"),
        ("fig4", "calls its study 'fig5'"),
        ("broken", "no_such_module"),
        ("empty", "defines no STUDY"),
    ):
        with pytest.raises(ConfigError, match=message):
            catalogue.in_order([name])


def test_the_scoreboard_lists_every_claim(tmp_path: Path) -> None:
    write_study(tmp_path, "a", '[Job("a", 1)]', needs=("fig4",))
    write_study(tmp_path, "fig4", '[Job("p", 2)]', source="Fig. 4")
    write_study(tmp_path, "table3", "[]", source="Table III")
    catalogue, store = Catalogue(tmp_path), Store(tmp_path, tmp_path / "runs")
    run(tmp_path, "fig4")
    claims = scoreboard(present_all(catalogue, catalogue.load_all(), store))
    assert [(one["study"], one["verdict"]) for one in claims] == [
        ("table3", "measured"),  # it has no jobs, and is presented all the same
        ("fig4", "measured"),
        ("a", "not run"),
    ]
    assert claims[1] == {
        "study": "fig4",
        "source": "Fig. 4",
        "claim": "y grows",
        "paper": "10",
        "ours": "[20]",
        "interval": [0.5, 1.5],
        "verdict": "measured",
        "seeds": [2],
        "command": "python3 dev.py study run fig4",
        "note": "[]",
    }
    assert "python3 dev.py study run a" in claims[2]["note"]
    run(tmp_path, "a")
    [claim] = scoreboard(present_all(catalogue, catalogue.select(["a"]), store))
    assert claim["note"] == "['fig4']"


def test_claims_from_some_of_the_rows_are_provisional(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path, "fig3", '[Job("a", 1), Job("b", 2, {"do": "fail", "switch": "ok"})]'
    )
    run(tmp_path, "fig3")
    catalogue, store = Catalogue(tmp_path), Store(tmp_path, tmp_path / "runs")
    [claim] = scoreboard(present_all(catalogue, catalogue.select(["fig3"]), store))
    assert claim["note"] == "Provisional: fig3 lacks 1 rows. []"
    (folder / "ok").touch()
    run(tmp_path, "fig3")
    [claim] = scoreboard(present_all(catalogue, catalogue.select(["fig3"]), store))
    assert claim["note"] == "[]"
