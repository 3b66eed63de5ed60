"""The study of updates: what it counts, and what readers see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.codec import random_adapter
from rankcast.codec.header import BaseModel
from rankcast.codec.packing import Source
from rankcast.codec.update import make_update
from rankcast.packaging.pack import pack
from studies.harness.spec import Result, Row
from studies.harness.store import jobs_of
from studies.updates.study import STUDY, present, share, update_bytes


def source(scale: float) -> Source:
    tensors = random_adapter(0, ((60, 40), (30, 70)), (1, 1), size=scale)
    return Source(tensors, BaseModel("tiny", "0" * 64), {"task_type": "SEQ_CLS"})


def test_bytes_are_those_of_the_update_and_its_entry() -> None:
    before = pack(source(0.5))
    after = pack(source(0.502), previous=before)
    found = update_bytes(before, after)
    assert found["update"] == len(make_update(before.to_bytes(), after.to_bytes()))
    assert found["update"] < 0.9 * after.n_bits / 8
    entry = {"base": "0" * 16, "n_bytes": found["update"], "sha256": "0" * 64}
    words = json.dumps({"updates": [entry]}, separators=(",", ":"))
    assert found["manifest"] == len(words) - len("{}") + len(",")


def values(update: int, accuracy: float) -> dict[str, Any]:
    sizes = {"before": 10_000, "after": 11_000, "by_itself": 12_000}
    files = {n: {"bytes": b, "accuracy": accuracy, "loss": 0.3} for n, b in sizes.items()}
    return {"more_steps": 100, "update": update, "manifest": 131, "files": files}


def test_the_share_is_of_the_file_that_is_fetched_without_updates() -> None:
    assert share(values(1069, 0.9)) == pytest.approx(0.1)


def test_readers_see_the_share_and_every_file() -> None:
    jobs = jobs_of(STUDY, "default")
    assert [job.seed for job in jobs] == [0, 1, 2]
    rows = [
        Row(job, values(update, 0.9), 1.0, 1.0, "cpu", {})
        for job, update in zip(jobs, (949, 1069, 1189), strict=True)
    ]
    shown = present(Result("updates", "default", "", tuple(rows)), {})
    (claim,), (table,) = shown.claims, shown.tables
    assert claim.ours.startswith("10.0 ±")
    assert "1,069 bytes and adds 131" in claim.note
    assert [row[1] for row in table.rows] == ["10,000", "11,000", "12,000"]
    assert present(Result("updates", "default", "", ()), {}).claims == ()


def test_a_quick_run_has_one_short_job() -> None:
    (job,) = jobs_of(STUDY, "quick")
    assert job.settings["steps"] <= 10
    assert job.settings["task"] == "agnews-frontier"
