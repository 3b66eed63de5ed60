from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from rankcast.learner.synthetic import transformer_layout
from studies.harness.catalogue import load_study
from studies.harness.spec import Job, Result, Row, RunContext
from studies.surrogate.calibration import Calibration, TextGroup
from studies.surrogate.fitting import FitQuality
from studies.surrogate.monotone import MonotoneUtility

STUDIES = Path(__file__).parents[2] / "studies"


def calibrated() -> Result:
    """Return the result of a calibration in which the strata want different projections."""
    layout = transformer_layout(n_layers=1, d_hidden=8, d_ffn=16, r_max=2)
    gains = np.zeros((2, 6, 2))
    gains[0, :3], gains[1, 3:] = 0.1, 0.1
    quality = FitQuality(0.98, (0.97, 0.99), 0.9, 0.8, (0.7, 0.9), 0.01, 100)
    groups = tuple(
        TextGroup(0.5, (1.5 + g, 0.0), (0.1, 0.0), MonotoneUtility("identity", 0.7, 1.0, gains[g]))
        for g in range(2)
    )
    plain = Calibration(layout, groups, 0.05, 0.01, quality, (quality, quality)).to_plain()
    job = Job("sst2-0", 0, {"task": "sst2"})
    row = Row(job, {"calibration": json.loads(json.dumps(plain))}, 0.0, 0.0, "", {})
    return Result("calibration", "quick", "", (row,))


def test_the_ablation_trains_and_presents_every_variant(tmp_path: Path) -> None:
    study, inputs = (
        load_study(STUDIES, "state_ablation"),
        {"calibration": calibrated()},
    )
    context = RunContext(tmp_path, "quick", inputs, {}, None)
    rows = []
    for job in study.jobs("quick"):
        small = {"episodes": 2, "evaluate_every": 1}
        small["training"] = {**job.settings["training"], "gradient_steps": 2, "warm_up_steps": 2}
        job = replace(job, settings={**job.settings, **small})  # noqa: PLW2901
        values = json.loads(json.dumps(study.run(job, context)))
        rows.append(Row(job, values, 1.0, 1.0, "cpu", {}))
    assert len(rows) == 11
    assert len(rows[0].values["plans"]) == 15
    assert rows[0].values["text_worth"] > 0.01
    other = [replace(row, job=replace(row.job, seed=1)) for row in rows]
    result = Result("state_ablation", "quick", "", (*rows, *other))
    shown = study.present(result, inputs)
    assert len(shown.claims) == 10
    assert {claim.verdict for claim in shown.claims} == {"measured"}
    assert {claim.paper for claim in shown.claims} == {""}
    assert shown.claims[0].seeds == (0, 1)
    assert shown.tables[0].columns[1:3] == ("final reward, calibrated learner", "regret")
    assert len(shown.tables[0].rows) == 11
    assert len(shown.tables[1].rows) == 9
    assert study.present(Result("state_ablation", "quick", "", ()), inputs).claims == ()
