"""What the studies on the air conclude from rows, and the table that comes with rankcast."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import rankcast
from rankcast.link.bler import nr_bler
from rankcast.link.nr import mcs_table
from studies.harness.catalogue import Catalogue
from studies.harness.spec import Claim, Job, Presentation, Result, Row

ROOT = Path(rankcast.__file__).parents[2]
CATALOGUE = Catalogue(ROOT / "studies")


def shown(name: str, *rows: tuple[Job, dict[str, Any]]) -> Presentation:
    all_rows = tuple(Row(job, values, 1.0, 1.0, "cpu", {}) for job, values in rows)
    return CATALOGUE.load(name).present(Result(name, "default", "", all_rows), {})


def claim(presentation: Presentation, words: str) -> Claim:
    lines = [c for c in presentation.claims if words in c.claim]
    assert len(lines) == 1
    return lines[0]


def adapter(seed: int, air_time_s: float, *, exact: bool = True) -> tuple[Job, dict[str, Any]]:
    settings = {"what": "adapter", "snr_db": 5.0, "bytes": 15_000}
    values = {"exact": exact, "air_time_s": air_time_s, "foretold_s": 0.1, "shannon_s": 0.05,
              "blocks": 90, "retransmissions": 10}  # fmt: skip
    return Job(f"adapter-{seed}", seed, settings), values


def delivered(seed: int, table_bits: int) -> tuple[Job, dict[str, Any]]:
    settings = {"what": "delivered", "fading": "none", "snr_db": 5.0, "n_slots": 10}
    simulated = {"bits": 10_000, "blocks": 9, "failed_first": 1, "lost": 0, "wrong": 0}
    values = {"snrs_db": [5.0] * 10, "slot_s": 1e-3, "table": simulated | {"bits": table_bits},
              "simulated": simulated}  # fmt: skip
    return Job(f"delivered-{seed}", seed, settings), values


@pytest.mark.parametrize(
    ("times_s", "exact", "verdict"),
    [
        ((0.101, 0.099, 0.102), True, "reproduced"),
        ((0.111, 0.112, 0.113), True, "not met"),
        ((0.101, 0.099, 0.102), False, "not met"),
    ],
)
def test_an_adapter_has_to_arrive_exactly_and_in_time(
    times_s: tuple[float, ...], exact: bool, verdict: str
) -> None:
    rows = [adapter(seed, t, exact=exact or seed > 0) for seed, t in enumerate(times_s)]
    assert claim(shown("air", *rows), "15,000 bytes").verdict == verdict


@pytest.mark.parametrize(
    ("bits", "verdict"),
    [
        ((10_100, 10_200, 10_000), "reproduced"),
        ((11_500, 11_600, 11_400), "not met"),
        ((8_000, 12_000, 10_000), "not met"),  # right on average, but not known to be
    ],
)
def test_the_table_has_to_agree_with_the_simulation(bits: tuple[int, ...], verdict: str) -> None:
    presentation = shown("air", *(delivered(seed, b) for seed, b in enumerate(bits)))
    assert claim(presentation, "differ by less than 10 %").verdict == verdict
    (table,) = presentation.tables
    # Shannon by hand: 5 MHz·log2(1 + 10^0.5) = 10.29 Mbit/s; 10,000 bits in 10 ms are 1.00.
    assert table.rows[0][1] == "10.29"
    assert table.rows[0][3] == "1.00"


@pytest.mark.parametrize(("middle_db", "verdict"), [(5.8, "reproduced"), (6.3, "not met")])
def test_thresholds_are_compared_with_published_ones(middle_db: float, verdict: str) -> None:
    # 10 % are lost 1.2816 widths above the middle; 6.05 + 0.3 dB are allowed.
    curve = {"n_info_bits": 2000, "middle_db": middle_db, "width_db": 0.1, "middle_se_db": 0.01,
             "width_se_db": 0.01, "counts": []}  # fmt: skip
    job = Job("q4-r490", 0, {"bits_per_symbol": 4, "rate_x1024": 490.0})
    presentation = shown("bler", (job, {"waterfalls": [curve]}))
    assert claim(presentation, "MCS 13").verdict == verdict
    assert claim(presentation, "MCS 13").ours == f"{middle_db + 0.12816:.2f} dB"


@pytest.mark.parametrize("name", ["air", "bler"])
def test_without_rows_nothing_is_claimed(name: str) -> None:
    assert shown(name) == Presentation(())


def test_the_table_that_comes_with_rankcast_is_what_was_simulated() -> None:
    folder = ROOT / "studies" / "bler"
    spec = importlib.util.spec_from_file_location("make_table", folder / "make_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["missing"] == []
    assert json.loads(module.TABLE.read_text("utf-8")) == module.table(result)


def test_every_scheme_was_simulated_and_lies_above_shannon() -> None:
    table = nr_bler()
    for mcs in (*mcs_table("64qam"), *mcs_table("256qam")):
        for n_info_bits in (640, 3840):
            curve = table.waterfall(mcs, n_info_bits)
            above = 10.0 ** (curve.snr_db_at(0.1) / 10.0) / (2.0**mcs.efficiency - 1.0)
            assert 1.2 < above < 2.1  # 0.8 to 3.2 dB
            assert 0.05 < curve.width_db < 0.8
            assert curve.middle_se_db < 0.05
