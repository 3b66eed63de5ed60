"""Rows and results on disk: whole or not at all.

| file | what |
|---|---|
| `<work>/<scale>/<study>/rows/<job>.json` | the row of a finished job |
| `<work>/<scale>/<study>/scratch/<job>/` | what the job keeps: checkpoints, output |
| `studies/<study>/result.json` | all rows at the default scale; committed |
| `studies/<study>/result-paper.json` | the same at the paper's scale |
| `<work>/quick/<study>/result.json` | the same at the quick scale; never committed |
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from rankcast.errors import ConfigError
from rankcast.files import only_one, replace_file
from studies.harness.spec import Job, Result, Row, Scale, Study

PROGRAM = "python3 dev.py study"
"""The command line up to `run`, `list` or `report`."""

_SAFE_NAME = re.compile(r"[^/\\:*?\"<>|\s.][^/\\:*?\"<>|\s]*")
_ROW_KEYS = ("job", "seed", "settings", "values", "wall_s", "cpu_s", "device", "versions")


@dataclass(frozen=True)
class Store:
    """The rows and results of one scale.

    Attributes:
        studies: the folder with a folder for each study.
        work: the folder for rows and scratch folders, which are not committed.
        scale: of every row in it.
    """

    studies: Path
    work: Path
    scale: Scale = "default"

    def folder(self, study: str) -> Path:
        """Return the work folder of a study."""
        return self.work / self.scale / study

    def row_file(self, study: str, job: str) -> Path:
        """Return the file of a job's row."""
        return self.folder(study) / "rows" / f"{job}.json"

    def scratch(self, study: str, job: str | None = None) -> Path:
        """Return the scratch folder of a job, or the folder of all of them."""
        folder = self.folder(study) / "scratch"
        return folder / job if job else folder

    def result_file(self, study: str) -> Path:
        """Return the file of the collected result."""
        if self.scale == "quick":
            return self.folder(study) / "result.json"
        name = "result.json" if self.scale == "default" else f"result-{self.scale}.json"
        return self.studies / study / name

    def read_row(self, study: str, job: Job) -> Row | None:
        """Return the row of a job, or None if there is none or its definition was another."""
        try:
            row = _row_from_plain(json.loads(self.row_file(study, job.name).read_text("utf-8")))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return row if same_job(row.job, job) else None

    def write_row(self, study: str, row: Row) -> Path:
        """Keep the row of a finished job."""
        path = self.row_file(study, row.job.name)
        _write(path, json.dumps(_row_to_plain(row), ensure_ascii=False, allow_nan=False) + "\n")
        return path

    def collect(self, study: Study) -> Result:
        """Return every row there is, in the order of the jobs.

        A row of this machine counts before one of the collected result; rows of jobs whose
        definition has changed since count as missing.

        Raises:
            ConfigError: two jobs of one name, or a collected result that cannot be read.
        """
        file = self.result_file(study.name)
        collected = {row.job.name: row for row in read_result(file).rows} if file.exists() else {}
        rows: list[Row] = []
        missing: list[str] = []
        for job in jobs_of(study, self.scale):
            row = self.read_row(study.name, job) or collected.get(job.name)
            if row is not None and same_job(row.job, job):
                rows.append(row)
            else:
                missing.append(job.name)
        command = command_for(study.name, self.scale)
        return Result(study.name, self.scale, command, tuple(rows), tuple(missing))

    def stand_in(self, study: str) -> Result | None:
        """Return the committed result that spares the quick scale a study, if any."""
        committed = self.studies / study / "result.json"
        if self.scale != "quick" or not committed.exists():
            return None
        result = read_result(committed)
        return result if result.rows else None

    @contextmanager
    def lock(self, study: str) -> Iterator[None]:
        """Keep other processes from running the same study at the same scale.

        Raises:
            RankcastError: one is doing so.
        """
        with only_one(self.folder(study) / ".lock", f"running {study} at this scale"):
            yield


def jobs_of(study: Study, scale: Scale) -> tuple[Job, ...]:
    """Return the jobs of a study.

    Raises:
        ConfigError: two jobs of one name, or a name that cannot be a file's.
    """
    jobs = tuple(study.jobs(scale))
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{study.name} has several jobs called {twice[0]!r}; rename one.")
    for name in names:
        if not _SAFE_NAME.fullmatch(name):
            raise ConfigError(
                f"{study.name} has a job called {name!r}, which cannot be a file's name: use no "
                f"spaces, slashes, or characters that are special to a shell or to Windows."
            )
    return jobs


def command_for(study: str, scale: Scale) -> str:
    """Return what a person types to get a result again."""
    option = {"quick": " --quick", "default": "", "paper": " --scale paper"}[scale]
    return f"{PROGRAM} run {study}{option}"


def same_job(one: Job, other: Job) -> bool:
    """Return whether two jobs are defined alike, once written as JSON and read again."""
    return (one.name, one.seed) == (other.name, other.seed) and plain(one.settings) == plain(
        other.settings
    )


def plain(value: Any, where: str = "settings") -> Any:
    """Return a value as JSON knows it; what is not a finite number becomes null.

    Raises:
        ConfigError: something that JSON cannot hold.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case np.generic() | np.ndarray():
            return plain(value.tolist(), where)
        case Mapping():
            return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [plain(item, where) for item in value]
        case _:
            raise ConfigError(
                f"{where} is a {type(value).__name__}, which JSON cannot hold; use numbers, text, "
                f"lists and mappings."
            )


def fingerprint(value: Any) -> str:
    """Return a name for a value that JSON can hold: equal values, equal names."""
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def write_result(path: Path, result: Result) -> None:
    """Write a result with a row on each line, so that differences can be read."""
    head = {
        "experiment": result.study,  # the key's first name; committed files have it
        "scale": result.scale,
        "command": result.command,
        "missing": list(result.missing),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = ",\n".join(
        json.dumps(_row_to_plain(row), ensure_ascii=False, allow_nan=False) for row in result.rows
    )
    lines.append(f'"rows": [\n{rows}\n]' if rows else '"rows": []')
    _write(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_result(path: Path) -> Result:
    """Return a collected result; its study need not be there.

    Raises:
        ConfigError: no such file, or one that holds no result.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["scale"] not in get_args(Scale):
            raise ConfigError(f"{path} is of an unknown scale, {content['scale']!r}.")
        return Result(
            study=content["experiment"],
            scale=cast("Scale", content["scale"]),
            command=content["command"],
            rows=tuple(_row_from_plain(row) for row in content["rows"]),
            missing=tuple(content["missing"]),
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no result in {path}; run the study: "
            f"{command_for(path.parent.name, 'default')}."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} holds no result of a study ({type(error).__name__}: {error}). Restore it from "
            f"git, or delete it and run the study again."
        ) from error


def _row_to_plain(row: Row) -> dict[str, Any]:
    return {
        "job": row.job.name,
        "seed": row.job.seed,
        "settings": plain(row.job.settings),
        "values": plain(row.values, "values"),
        "wall_s": round(row.wall_s, 3),
        "cpu_s": round(row.cpu_s, 3),
        "device": row.device,
        "versions": dict(row.versions),
    }


def _row_from_plain(content: Mapping[str, Any]) -> Row:
    name, seed, settings, *rest = (content[key] for key in _ROW_KEYS)
    return Row(Job(name, seed, settings), *rest)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: partial.write_text(text, "utf-8"))
