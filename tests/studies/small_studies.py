"""A folder of studies that take milliseconds, whose jobs do as their settings say."""

from __future__ import annotations

from pathlib import Path

SOURCE = """
import os
import time
from pathlib import Path

from rankcast.errors import DataError
from studies.harness.spec import Claim, Study, Job, Presentation

HERE = Path(__file__).parent


def jobs(scale):
    return {jobs}


def run(job, context):
    with (HERE / "calls.txt").open("a") as calls:
        calls.write(job.name + "\\n")
    print("said by", job.name)
    switch = HERE / job.settings.get("switch", "-")
    match job.settings.get("do"):
        case "fail" if not switch.exists():
            (context.scratch / "checkpoint").write_text("half way")
            raise DataError("no data; name its folder with --data")
        case "die" if not switch.exists():
            os._exit(3)
        case "wait":
            (HERE / f"pid-{{job.name}}").write_text(str(os.getpid()))
            while not switch.exists():
                time.sleep(0.01)
    values = {{"y": job.seed * 10, "threads": os.environ.get("OMP_NUM_THREADS")}}
    values["inputs"] = {{n: [r.values["y"] for r in c.rows] for n, c in context.inputs.items()}}
    values["kept"] = (context.scratch / "checkpoint").exists()
    return values


def present(result, inputs):
    ours = str([row.values["y"] for row in result.rows])
    claim = Claim("y grows", "10", ours, (0.5, 1.5), "measured", result.seeds, str(sorted(inputs)))
    return Presentation((claim,))


STUDY = Study(
    name={name!r}, title="a title", question="Does it grow?", source={source!r},
    jobs=jobs, run=run, present=present, needs={needs!r},
)
"""


def write_study(
    folder: Path,
    name: str,
    jobs: str,
    *,
    needs: tuple[str, ...] = (),
    source: str = "ours",
    called: str | None = None,
) -> Path:
    """Write a study; `jobs` is the Python text of its list of jobs."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = SOURCE.format(name=called or name, jobs=jobs, needs=needs, source=source)
    (folder / name / "study.py").write_text(text)
    return folder / name


def calls(folder: Path, name: str) -> list[str]:
    """Return the names of the jobs that ran, in order."""
    file = folder / name / "calls.txt"
    return file.read_text().split() if file.exists() else []
