"""The decoder study: its jobs run, go on where they stopped, and are presented by hand values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankcast.learner.byte_budget import ByteBudgetTraining
from rankcast.learner.transformer import TransformerLearner
from studies.harness.spec import Job, Result, Row, RunContext
from studies.harness.store import jobs_of
from studies.llm import ours, runs
from studies.llm.claims import RISE, ahead
from studies.llm.codes import (
    COMPEFT,
    CURVED_SIZES,
    PACK,
    QAT,
    REFERENCE,
    ROUNDED,
    STEPS,
    as_bfloat16,
)
from studies.llm.curves import task_curves
from studies.llm.jobs import FIRST_RANK, PLAN, QUICK, TUNING_SEED, before_of, jobs, tuning_jobs
from studies.llm.presentation import present
from studies.llm.study import STUDY
from studies.llm.texts import DOCSTRINGS, SST2, pack_numbers


def context(folder: Path, job: str) -> RunContext:
    scratch = folder / "scratch" / job
    scratch.mkdir(parents=True, exist_ok=True)
    return RunContext(scratch, "quick", {}, {}, None)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Row]]:
    """The rows of all quick jobs, last job first, so that each has to make what it needs."""
    folder = tmp_path_factory.mktemp("llm")
    rows = {}
    for job in reversed(jobs_of(STUDY, "quick")):
        values = json.loads(json.dumps(STUDY.run(job, context(folder, job.name)), allow_nan=False))
        rows[job.name] = Row(job, values, 1.0, 1.0, "cpu", {})
    return folder, rows


def test_quick_jobs_judge_every_code(quick: tuple[Path, Mapping[str, Row]]) -> None:
    rows = quick[1]
    of_kind: dict[str, set[str]] = {}
    for row in rows.values():
        for code in row.values.get("codes", ()):
            of_kind.setdefault(row.job.settings["kind"], set()).add(code["code"])
            assert np.isfinite(code["loss"])
            assert (code["bytes"] > 0) == (code["code"] != "no adapter")
    assert of_kind["adapter"] == {"no adapter", "fp32"}
    assert of_kind["rounded"] == {
        "bf16", "int8", "int4", "int4 + entropy", "int3", "int3 + entropy", "int2",
        "int2 + entropy", "int3, groups of 64", "int2, groups of 64", "1 rms + entropy",
        "2 rms + entropy", "3 rms + entropy",
    }  # fmt: skip
    assert {"LoRAQuant, 0%", "LoRAQuant, 100%", "ComPEFT, 20%"} <= of_kind["published"]
    assert of_kind["pack"] == {"pack, 0.5", "pack, 1", "pack, 2", "pack, 3", "pack, 4", "pack, 6"}
    assert of_kind["curved"] == {f"curvature, {size:,} bytes" for size in CURVED_SIZES}
    assert of_kind["larger"] == {f"curvature and gain, {size:,} bytes" for size in CURVED_SIZES}
    assert of_kind["qat"] == {"qat", "qat, 2,000 bytes"}
    assert of_kind["taught"] == {"2,000 bytes"}
    small = [
        c
        for row in rows.values()
        for c in row.values.get("codes", ())
        if c["code"] in ("2,000 bytes", "qat, 2,000 bytes")
    ]
    assert len(small) == 2
    assert max(code["bytes"] for code in small) <= 2_000


def test_fewer_bits_are_fewer_bytes_and_further_away(
    quick: tuple[Path, Mapping[str, Row]],
) -> None:
    rows = quick[1]
    codes = {c["code"]: c for c in rows["docstrings-1-0-rounded"].values["codes"]}
    exact = rows["docstrings-1-0"].values["codes"][1]
    assert exact["bytes"] == 4 * rows["docstrings-1-0"].values["n_numbers"]
    assert codes["bf16"]["bytes"] == exact["bytes"] / 2
    bits = [codes[name] for name in ("int2", "int3", "int4", "int8")]
    assert [c["bytes"] for c in bits] == sorted(c["bytes"] for c in bits)
    assert codes["int8"]["divergence"] < codes["int2"]["divergence"]
    assert abs(codes["int8"]["loss"] - exact["loss"]) < 0.05
    assert {row.values["texts"] for row in rows.values() if "texts" in row.values} == {
        rows["docstrings-1-0"].values["texts"]
    }


def test_quick_rows_are_presented(quick: tuple[Path, Mapping[str, Row]]) -> None:
    rows = tuple(quick[1][job.name] for job in jobs("quick"))
    shown = present(Result("llm", "quick", "", rows), {})
    titles = [table.title for table in shown.tables]
    assert "Docstrings: codes" in titles
    assert "Tuning" in titles
    assert "MPEG NNC" in shown.text or not any(row.values.get("missing") for row in rows)
    at_a_rise = [claim for claim in shown.claims if "above" in claim.claim]
    assert len(at_a_rise) == 4  # two ways; over any rank, and at rank 1, which is packed


class Stopped(Exception):  # noqa: N818
    """An interruption."""


@pytest.mark.parametrize("name", ["qat-free", "qat-2000", "taught"])
def test_training_of_ours_goes_on(
    name: str,
    quick: tuple[Path, Mapping[str, Row]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, rows = quick
    for known in ("base", "docstrings", "tuned", "trained", "teachers"):
        shutil.copytree(folder / known, tmp_path / known)
    row = rows["docstrings-taught-0-2000" if name == "taught" else f"docstrings-1-0-{name}"]
    again = context(tmp_path, row.job.name)
    monkeypatch.setattr(ours, "CHECKPOINT_EVERY", 1)
    kind = TransformerLearner if name == "qat-free" else ByteBudgetTraining
    method = "train_step" if name == "qat-free" else "step"
    whole, steps = getattr(kind, method), []

    def stops(self: Any) -> float:
        if len(steps) == 2:
            raise Stopped
        steps.append(self.n_steps)
        return whole(self)

    monkeypatch.setattr(kind, method, stops)
    with pytest.raises(Stopped):
        STUDY.run(row.job, again)
    assert list(tmp_path.rglob(ours.CHECKPOINT))
    resumed = []

    def goes_on(self: Any) -> float:
        resumed.append(self.n_steps)
        return whole(self)

    monkeypatch.setattr(kind, method, goes_on)
    found = json.loads(json.dumps(STUDY.run(row.job, again)))
    assert found["codes"][0]["losses"] == row.values["codes"][0]["losses"]
    assert found["codes"][0]["bytes"] == row.values["codes"][0]["bytes"]
    assert resumed[0] == steps[-1] + 1


def test_what_is_there_is_not_made_again(
    quick: tuple[Path, Mapping[str, Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows = quick
    monkeypatch.setattr(runs, "LoraTrainer", lambda *_: pytest.fail("trained again"))
    row = rows["docstrings-1-0"]
    again = STUDY.run(row.job, context(folder, row.job.name))
    assert json.loads(json.dumps(again)) == row.values


def test_jobs_follow_what_they_need() -> None:
    every = jobs_of(STUDY, "default")
    place = {job.name: i for i, job in enumerate(every)}
    assert json.loads(json.dumps([j.settings for j in every])) == [j.settings for j in every]
    for job in every:
        s = job.settings
        assert (job.seed == TUNING_SEED) == (s["kind"] == "tuning")
        searches = [before_of(s["task"], s["rank"])]
        if s["kind"] != "tuning":
            searches = [(s["task"], s["rank"])]
        for task, rank in filter(None, searches):
            assert all(place[t.name] < place[job.name] for t in tuning_jobs(PLAN, task, rank))
        if s["kind"] in ("rounded", "published", "pack", "qat", "engine"):
            assert place[f"{s['task']}-{s['rank']}-{job.seed}"] < place[job.name]
    kinds = {(j.settings["task"], j.settings["rank"], j.seed) for j in every}
    assert {(t, r, s) for t in (DOCSTRINGS, SST2) for r in (1, 2, 4, 8) for s in (0, 1, 2)} <= kinds


def test_a_search_goes_one_beyond_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lr_beyond(losses: Mapping[float, float]) -> float | None:
        def tuned(job: Job, _: RunContext) -> list[Mapping[str, float]]:
            lr = QUICK.lrs[job.settings["place"]]
            return [{"lr": lr, "loss": losses[lr]}]

        monkeypatch.setattr(runs, "run_tuning", tuned)
        return runs._lr_of(tuning_jobs(QUICK, DOCSTRINGS, FIRST_RANK)[-1], context(tmp_path, "x"))

    assert lr_beyond({1e-3: 1.0, 2e-3: 2.0}) == 5e-4
    assert lr_beyond({1e-3: 2.0, 2e-3: 1.0}) == 4e-3


def test_bfloat16_rounds_halves_to_even() -> None:
    values = np.array([1.0, 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-7), 0.1], np.float32)
    wanted = [1.0, 1.0, 1.0, 1 + 2**-6, -(1 + 2**-7), 0.10009765625]
    assert as_bfloat16(values).tolist() == wanted


# Presentation from rows that were made by hand: four answers of ten tokens, two of each module.

COUNTS = [10, 10, 10, 10]


def code(name: str, family: str, n_bytes: float, loss: float, tilt: float = 0.0) -> dict[str, Any]:
    """Return a code of a mean loss: `tilt` more on the first module, less on the second."""
    losses = 10 * (loss + tilt * np.array([1, 1, -1, -1]))
    return {"code": name, "family": family, "bytes": n_bytes, "losses": pack_numbers(losses),
            "loss": loss, "divergence": 0.25, "agreement": 0.5, "exact_match": 0.75}  # fmt: skip


def row(kind: str, rank: int, codes: list[dict[str, Any]], seed: int = 0, **more: Any) -> Row:
    settings = {"kind": kind, "task": DOCSTRINGS, "rank": rank}
    values = {"texts": "d", "counts": pack_numbers(np.array(COUNTS)), "codes": codes, **more}
    return Row(Job(f"{kind}-{rank}-{seed}", seed, settings), values, 1.0, 1.0, "cpu", {})


def some_rows(pack_bytes: float, qat_bytes: float, *, tilt: float = 0.0) -> Result:
    """Return rows in which peers need 40,000 bytes at `RISE` above float32, on their hull."""
    groups = pack_numbers(np.array([0, 0, 1, 1]))
    exact = code(REFERENCE, ROUNDED, 400_000, 2.0)
    base = code("no adapter", "no adapter", 0, 3.0)
    at = 2.0 + RISE
    rows = (
        row("adapter", 8, [base, exact], groups=groups),
        row("rounded", 8, [
            code("int4", ROUNDED, 50_000, 2.001),
            code("1 rms + entropy", STEPS, 20_000, at + 0.01),
            code("2 rms + entropy", STEPS, 80_000, at - 0.01),
        ]),
        row("pack", 8, [code("pack, 2", PACK, pack_bytes, at - 0.001, tilt)]),
        row("qat", 8, [code("qat", QAT, qat_bytes, at - 0.001, tilt)]),
    )  # fmt: skip
    return Result("llm", "default", "", rows)


def claims(result: Result) -> dict[str, tuple[str, str]]:
    shown = present(result, {}).claims
    return {c.claim: (c.ours, c.verdict) for c in shown if "LoRA r 8" in c.claim}


def test_the_best_peer_is_compared_at_a_small_rise() -> None:
    # between 20,000 and 80,000 bytes the loss is linear in the logarithm: 40,000 halfway
    found = claims(some_rows(20_000, 8_000))
    assert [v for k, v in found.items() if "without" in k] == [
        ("2.0 times: 40,000 and 20,000 bytes", "reproduced")
    ]
    assert [v for k, v in found.items() if "ours with training" in k] == [
        ("5.0 times: 40,000 and 8,000 bytes", "reproduced")
    ]
    worse = claims(some_rows(21_000, 11_000))
    assert {verdict for _, verdict in worse.values()} == {"smaller than claimed"}


def test_what_depends_on_the_texts_is_not_distinguishable() -> None:
    found = claims(some_rows(10_000, 8_000, tilt=0.01))
    # on the first module ours are above the rise, and on both they are below it
    assert {verdict for _, verdict in found.values()} == {"not distinguishable"}


def test_files_that_never_get_there_do_not_meet_the_claim() -> None:
    result = some_rows(10_000, 8_000, tilt=0.0)
    lost = row("pack", 8, [code("pack, 2", PACK, 10, 2.5)])
    found = claims(Result("llm", "default", "", (*result.rows[:2], lost, result.rows[3])))
    (without,) = (v for k, v in found.items() if "without" in k)
    assert without == ("out of reach: 40,000 and no bytes", "not met")


def test_the_table_of_codes_has_paired_rises() -> None:
    shown = present(some_rows(20_000, 8_000, tilt=0.01), {})
    table = next(t for t in shown.tables if t.title == "Docstrings: codes")
    lines = {line[1]: line for line in table.rows}
    assert lines["no adapter"][3:5] == ("3.0000", "+1.0000 ± 0.0000")
    # of two modules, both are the first in a quarter of the resamples: .004 + .01 and .004 - .01
    assert lines["qat"][2:7] == ("8,000", "2.0040", "+0.0040 ± 0.0100", "0.2500", "50.0%")
    curves = next(t for t in shown.tables if t.title == "Docstrings: curves")
    assert {line[0]: line[1] for line in curves.rows} == {
        "LoRA r 8, rounded": "50,000",
        "LoRA r 8, one step, entropy coded": "40,000",
        "LoRA r 8, rankcast pack": "20,000",
        "LoRA r 8, rankcast qat": "8,000",
    }


def test_the_best_rank_is_the_reference_of_all() -> None:
    result = some_rows(20_000, 8_000)
    better = code(REFERENCE, ROUNDED, 50_000, 1.99)
    rows = (*result.rows, row("adapter", 1, [result.rows[0].values["codes"][0], better]))
    found = task_curves(Result("llm", "default", "", rows), DOCSTRINGS)
    assert found is not None
    assert found.best([0]) == ("1", pytest.approx(1.99))
    best = ahead(found, (PACK,), "")
    assert best is not None
    # 1.995 is below what any file of ours reaches, and rank 1 in float32 takes 50,000 bytes
    assert (best.reached.theirs, best.reached.ours) == (50_000, np.inf)
    assert best.verdict(2.0) == "not met"


def test_rows_of_other_texts_are_left_out_and_told() -> None:
    result = some_rows(20_000, 8_000)
    other = row("pack", 8, [code("pack, 9", PACK, 10, 1.0)], seed=1, texts="e")
    shown = present(Result("llm", "default", "", (*result.rows, other)), {})
    assert "2 sets of texts" in shown.text
    assert not [line for t in shown.tables for line in t.rows if "pack, 9" in line]


def test_the_engine_stands_beside_the_same_answers() -> None:
    result = some_rows(20_000, 8_000)
    engine = row("engine", 8, [], code="fp32", losses=pack_numbers(np.array([21.0, 22.0])))
    engine.values["counts"] = pack_numbers(np.array([10, 10]))  # type: ignore[index]
    shown = present(Result("llm", "default", "", (*result.rows, engine)), {})
    (table,) = (t for t in shown.tables if "quantised base" in t.title)
    # 21 and 22 nats of ten tokens each, where float32 has 20
    assert table.rows == (("LoRA r 8", "fp32", "2.1500", "2.0000", "+0.1500 ± 0.0500", "2"),)


def test_what_arrives_is_the_best_that_fits() -> None:
    # 180 kHz carry 8,919 bytes at -5 dB, 22,500 at 0 dB and 46,290 at 5 dB in a second
    sparse = row("published", 8, [code("ComPEFT, 5%", COMPEFT, 9_000, 2.9)])
    result = some_rows(20_000, 8_000)
    shown = present(Result("llm", "default", "", (*result.rows, sparse)), {})
    (table,) = (t for t in shown.tables if "NB-IoT" in t.title)
    losses = [(line[0], *line[1::2][:3]) for line in table.rows[:3]]
    assert losses == [
        ("-5 dB (8,919 B)", "3.0000", "3.0000", "2.0040"),
        ("0 dB (22,500 B)", "2.0150", "2.0040", "2.0040"),
        ("5 dB (46,290 B)", "2.0150", "2.0040", "2.0040"),
    ]
    codes = [line[2] for line in table.rows]
    assert codes[0] == "base model alone"
    assert codes[1] == "LoRA r 8, one step, entropy coded: 1 rms + entropy"
    assert codes[-1] == "LoRA r 8, one step, entropy coded: 2 rms + entropy"
    assert table.rows[0][-2:] == ("-0.9960 ± 0.0000", "+0.0040 ± 0.0000")
    arriving = [c for c in shown.claims if "180 kHz" in c.claim]
    assert [(c.ours, c.verdict) for c in arriving[:2]] == [
        ("+0.9960", "reproduced"), ("+0.0110", "reproduced"),
    ]  # fmt: skip


def test_before_every_kind_of_peer_is_judged_nothing_is_said_of_links() -> None:
    shown = present(some_rows(20_000, 8_000), {})
    assert not [c for c in shown.claims if "180 kHz" in c.claim]
    assert not [t for t in shown.tables if "NB-IoT" in t.title]


def test_float32_alone_is_no_peer() -> None:
    rows = [row for row in some_rows(20_000, 8_000).rows if row.job.settings["kind"] != "rounded"]
    found = present(Result("llm", "default", "", tuple(rows)), {})
    assert not found.claims
