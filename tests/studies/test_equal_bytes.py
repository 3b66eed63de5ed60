"""The study of accuracy at equal bytes, on rows made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from studies.byte_frontier.codes import Coded
from studies.equal_bytes.plans import BETWEEN_DB, CHOOSERS, LINKS_DB, budgets_bits, trained_sizes
from studies.equal_bytes.study import STUDY, _best_within, jobs
from studies.harness.spec import Presentation, Result, Row
from studies.shared.judging import judgement, pack_groups

N_TEXTS = 200


def judged(n_right: int) -> dict[str, Any]:
    return judgement(np.arange(N_TEXTS) < n_right, 0.5)


def row(name: str, right: dict[str, int]) -> Row:
    job = next(job for job in jobs("default") if job.name == name)
    names = CHOOSERS if job.settings["kind"] == "ours" else ("code",)
    key = "chooser" if job.settings["kind"] == "ours" else "code"
    sent = [
        {key: chooser, "snr_db": db, "bytes": 400, **judged(right.get(chooser, 150))}
        for db in (*LINKS_DB, *BETWEEN_DB)
        for chooser in names
    ]
    values = {"sent": sent, "groups": pack_groups(np.arange(N_TEXTS) // 2)}
    return Row(job, {**values, "float32": judged(172)}, 0.0, 0.0, "cpu", {})


def presented(rows: list[Row]) -> Presentation:
    return STUDY.present(Result("equal_bytes", "default", "", tuple(rows)), {})


def test_what_arrives_by_hand() -> None:
    """At 0 dB Shannon's log2(1 + 1) is 1 bit/s/Hz: 10,000 bits."""
    assert budgets_bits((0.0,))[0] == pytest.approx(1e4)
    assert trained_sizes() == (2571, 1250, 495)


def test_names_of_jobs_are_unique_and_ours_come_first() -> None:
    names = [job.name for job in jobs("default")]
    assert len(names) == len(set(names)) == 15
    assert names[0] == "ours-0"


def test_the_code_of_least_loss_is_taken() -> None:
    codes = [(Coded(name, "", 1.0, {}, {}), loss) for name, loss in (("a", 0.4), ("b", 0.3))]
    best = _best_within(codes)
    assert best is not None
    assert best.code == "b"
    assert _best_within([]) is None


def test_differences_and_claims() -> None:
    rows = [row("ours-0", {"AirLLM": 170}), row("adalora-1-0", {"code": 140}),
            row("lora-1-0", {"code": 160})]  # fmt: skip
    shown = presented(rows)
    accuracy = shown.tables[0]
    assert accuracy.rows[0][:2] == ("ours, plans by AirLLM", "85.00")
    peers = ["AdaLoRA r 1, best code", "LoRA r 1, best code"]  # a page shows the first rows only
    assert [cells[0] for cells in accuracy.rows[1:3]] == peers
    assert all(cells[0].startswith("ours, plans by") for cells in accuracy.rows[3:])
    differences = {cells[0]: cells[1] for cells in shown.tables[2].rows}
    assert differences["AdaLoRA r 1, best code"].startswith("+15.00")
    assert differences["LoRA r 1, best code"].startswith("+5.00")
    assert "ours, plans by AirLLM" not in differences
    fewer = shown.tables[4]
    assert fewer.columns[1] == "12.5 dB (16% fewer)"
    assert [cells[0] for cells in fewer.rows] == ["AdaLoRA r 1, best code, 15 dB"]
    assert fewer.rows[0][1].startswith("+15.00")
    ahead = [c for c in shown.claims if "more accurate" in c.claim]
    assert {(c.ours, c.verdict) for c in ahead} == {("+15.00 points", "reproduced")}
    assert len(ahead) == len(LINKS_DB)
    claims = {claim.claim[:8]: claim for claim in shown.claims if claim not in ahead}
    assert claims["With at "].ours == "+15.00 points with 15.8% fewer"
    assert claims["At 15 dB"].ours == "-1.00 points"  # 170 of 200 against 172 in float32
    assert claims["Plans by"].ours == "+10.00 points"
    assert claims["Plans by"].verdict == "not met"
    assert shown.charts[0].series[0].label == "ours, plans by AirLLM"


def test_without_ours_nothing_is_shown() -> None:
    shown = presented([row("lora-1-0", {})])
    assert (shown.claims, shown.tables, shown.charts) == ((), (), ())
