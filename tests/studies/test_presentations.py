from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import rankcast
from rankcast.errors import DataError
from studies.harness.catalogue import Catalogue
from studies.harness.spec import (
    Claim,
    Job,
    Presentation,
    Result,
    Row,
    RunContext,
    Study,
    Verdict,
)
from studies.harness.store import plain
from studies.rate_accuracy.presentation import MARGIN
from studies.report.statistics import Estimate, verdict_not_worse
from studies.shared.judging import pack
from studies.shared.policies import calibrated_row, policy_job, run_policy_job, seeds_of
from studies.tuning.study import GRID, best

CATALOGUE = Catalogue(Path(rankcast.__file__).parents[2] / "studies")
N_TEXTS = 200
MEGABIT = 1e6


def study(name: str) -> Study:
    return CATALOGUE.load(name)


def result(name: str, rows: Sequence[Row] = ()) -> Result:
    return Result(name, "default", f"python3 dev.py study run {name}", tuple(rows))


def present(name: str, *filled: Result) -> Presentation:
    """Present a study from some results; all others that it needs are empty."""
    given = {one.study: one for one in filled}
    loaded = study(name)
    inputs = {need: given.get(need, result(need)) for need in loaded.inputs}
    return loaded.present(given.get(name, result(name)), inputs)


def claim(shown: Presentation, words: str) -> Claim:
    lines = [c for c in shown.claims if words in c.claim]
    assert len(lines) == 1, [c.claim for c in shown.claims]
    return lines[0]


def answers(n_correct: int) -> dict[str, Any]:
    """Return packed answers: correct on the first so many texts."""
    return {"correct": pack(np.arange(N_TEXTS) < n_correct), "n_texts": N_TEXTS}


def policy_row(
    variant: str,
    seed: int,
    regrets: Sequence[float] = (0.5, 0.1),
    right: Mapping[float, int] | None = None,
    *,
    every: int = 10,
    bits: float = 1.0 * MEGABIT,
    cpu_s: float = 60.0,
    **settings: Any,
) -> Row:
    """Return the row of a policy job, judged every so many episodes, and live on some links."""
    job = Job(
        f"{variant}-{seed}",
        seed,
        {"variant": variant, "episodes": every * len(regrets), **settings},
    )
    live = [{"snr_db": snr, "accuracy": n / N_TEXTS, **answers(n)} for snr, n in
            (right or {}).items()]  # fmt: skip
    values = {
        "curve": [{"episode": every * (i + 1), "deployed": r} for i, r in enumerate(regrets)],
        "oracle": 0.5,
        "best_uniform": 0.6,
        "best_uniform_per_link": 0.55,
        "rewards": [-0.6] * len(regrets),
        "plans": [{"snr_db": snr, "payload_bits": bits} for snr in (-5.0, 0.0, 5.0, 10.0, 15.0)],
        "mean_ranks": np.tile(np.arange(36.0)[::-1] / 6, (5, 1)).tolist(),
        "live": live,
    }
    return Row(job, values, cpu_s, cpu_s, "cpu", {})


def allocator_row(name: str, seed: int, right: Mapping[float, int], bits: float) -> Row:
    made = policy_row(name, seed, right=right, bits=bits)
    return replace(made, job=Job(f"{name}-{seed}", seed, {"allocator": name}))


def adalora_row(snr_db: float, seed: int, right: int, sent: float = 1.0 * MEGABIT) -> Row:
    job = Job(f"sst2-{snr_db:g}dB-{seed}", seed, {"task": "sst2", "snr_db": snr_db})
    values = {
        **answers(right),
        "accuracy": right / N_TEXTS,
        "ranks": [2] * 36,
        "sent_params": sent / 32,
    }
    return Row(job, values, 1.0, 1.0, "cpu", {})


def adalora(*rights: int, snr_db: float = 5.0, sent: float = 1.0 * MEGABIT) -> Result:
    return result("adalora", [adalora_row(snr_db, s, n, sent) for s, n in enumerate(rights)])


# Every study


@pytest.mark.parametrize("name", CATALOGUE.names)
def test_it_loads_and_its_jobs_have_names_of_their_own(name: str) -> None:
    loaded = study(name)
    assert loaded.name == name
    assert loaded.question.endswith("?")
    assert set(loaded.inputs) <= set(CATALOGUE.names)
    for scale in ("quick", "default"):
        jobs = loaded.jobs(scale)
        assert len({job.name for job in jobs}) == len(jobs)
        for job in jobs:
            assert json.loads(json.dumps(plain(job.settings))) == plain(job.settings)
    assert len(loaded.jobs("quick")) <= max(len(loaded.jobs("default")), 1)


@pytest.mark.parametrize("name", CATALOGUE.names)
def test_it_presents_nothing_from_nothing(name: str) -> None:
    shown = present(name)
    assert isinstance(shown, Presentation)
    # What needs no run is arithmetic on the paper's table, or cannot be tested.
    assert all(c.interval is None and c.seeds == () for c in shown.claims)


@pytest.mark.parametrize("name", ["table3", "table5a", "table5b", "fig5", "fig6", "fig7", "fig8"])
def test_it_presents_what_single_seeds_have_left(name: str) -> None:
    """Rows arrive in any order: no two variants share a seed, then all do."""
    variants = {job.settings["variant"] for job in study(name).jobs("default")}
    others = ("table3", "table5a", "table5b")
    everything = variants | {"airllm", "lambda-1", "lambda-0.01", "v", "epsilon"}
    for seeds in (range(len(everything)), [0] * len(everything)):
        rows = [policy_row(v, s, right={5.0: 90}) for v, s in
                zip(sorted(everything), seeds, strict=True)]  # fmt: skip
        if name != "table3" and len(set(seeds)) > 1:
            continue
        shown = present(name, result(name, rows), *(result(b, rows) for b in others if b != name))
        assert shown.tables
        assert all(c.verdict in get_args(Verdict) for c in shown.claims)
        assert not [c for c in shown.claims if "nan" in c.ours]


# Table III


def table3(ours: int, theirs: int, *regrets: Sequence[float]) -> Presentation:
    mine, other = regrets or ((0.5, 0.1), (0.5, 0.3))
    rows = [policy_row("airllm", s, np.add(mine, 0.01 * s), {5.0: ours + s}) for s in range(3)]
    rows += [policy_row("ppo", s, np.add(other, 0.02 * s), {5.0: theirs + s}) for s in range(3)]
    rows.append(policy_row("ppo", 4, other))
    return present("table3", result("table3", rows), adalora(150, 150, 150))


def test_right_on_strictly_more_texts_is_more_accurate() -> None:
    shown = table3(180, 140)
    line = claim(shown, "more accurate than PPO.")
    assert line.ours == "+20.00 points"
    assert line.paper == "+1.03 points"
    assert line.verdict == "reproduced"
    assert line.seeds == (0, 1, 2)
    assert line.interval is not None
    assert 10 < line.interval[0] < 20 < line.interval[1] < 30
    beside = claim(shown, "more accurate than AdaLoRA.")
    assert beside.ours == "+15.50 points"  # 180, 181 and 182 of 200, against 150
    assert beside.verdict == "reproduced"


def test_right_on_strictly_fewer_texts_has_the_opposite_sign() -> None:
    line = claim(table3(140, 180), "more accurate than PPO.")
    assert line.ours == "-20.00 points"
    assert line.interval is not None
    assert line.interval[1] < 0
    assert line.verdict == "opposite sign"


def test_rewards_are_compared_by_seed() -> None:
    line = claim(table3(180, 140), "final reward is higher than that of PPO.")
    # Regrets 0.1, 0.11, 0.12 against 0.3, 0.32, 0.34, a tenth of which is reward.
    assert line.ours == "+0.0210"
    assert line.interval == pytest.approx((0.021 - 0.00248414, 0.021 + 0.00248414), abs=1e-6)
    assert (line.verdict, line.seeds) == ("reproduced", (0, 1, 2))
    worse = claim(table3(180, 140, (0.5, 0.3), (0.5, 0.1)), "than that of PPO.")
    assert (worse.ours[0], worse.verdict) == ("-", "opposite sign")


def test_the_table_states_what_is_sent_and_how_many_seeds_were_live() -> None:
    table = table3(180, 140).tables[0]
    lines = {line[0]: line for line in table.rows}
    assert lines["PPO"][-1] == "4, real model 3"
    assert lines["AdaLoRA"][3] == "1.00"
    assert "75.00" in lines["AdaLoRA"][2]


# Rate and accuracy


def rate_accuracy(ours: int, theirs: int, *, bits: float = 1.0, sent: float = 1.0) -> Presentation:
    links = (-5.0, 5.0, 15.0)
    rows = [
        allocator_row(name, s, dict.fromkeys(links, n + s), bits * MEGABIT)
        for name, n in (("airllm-0", ours), ("airllm", ours), ("uniform", 100))
        for s in range(3)
    ]
    beside = [adalora_row(snr, s, theirs + s, sent * MEGABIT) for snr in links for s in range(3)]
    return present("rate_accuracy", result("rate_accuracy", rows), result("adalora", beside))


def test_not_worse_at_as_many_bits() -> None:
    shown = rate_accuracy(180, 160)
    for snr in ("-5", "5", "15"):
        line = claim(shown, f"At {snr} dB AirLLM (λ = 0) is not worse than AdaLoRA")
        assert (line.ours, line.verdict) == ("+10.00 points", "reproduced")
        assert line.seeds == (0, 1, 2)
        assert line.interval is not None
        assert 0 < line.interval[0] < 10 < line.interval[1]


def test_equal_answers_are_not_worse() -> None:
    line = claim(rate_accuracy(160, 160), "At 5 dB AirLLM (λ = 0) is not worse than AdaLoRA")
    assert (line.interval, line.verdict) == ((0, 0), "reproduced")


def test_more_bits_reproduce_nothing() -> None:
    words = "At 5 dB AirLLM (λ = 0) is not worse than AdaLoRA"
    assert claim(rate_accuracy(180, 160, bits=1.1), words).verdict == "not distinguishable"
    assert claim(rate_accuracy(180, 160, bits=1.01), words).verdict == "reproduced"
    assert claim(rate_accuracy(140, 160, bits=1.1), words).verdict == "opposite sign"


def test_distinguishably_worse_has_the_opposite_sign_however_little() -> None:
    assert verdict_not_worse(Estimate(-0.005, -0.008, -0.002), MARGIN) == "opposite sign"
    assert verdict_not_worse(Estimate(-0.002, -0.008, 0.002), MARGIN) == "reproduced"
    assert verdict_not_worse(Estimate(0.0, -0.012, 0.012), MARGIN) == "not distinguishable"
    assert verdict_not_worse(Estimate(0.0, math.nan, math.nan), MARGIN) == "not distinguishable"


def test_fewer_parameters_are_counted() -> None:
    words = "with at least 12.5 % fewer parameters"
    saved = claim(rate_accuracy(180, 180, bits=0.8), words)
    assert (saved.ours, saved.verdict) == ("+0.00 points with 20.0% fewer", "reproduced")
    assert claim(rate_accuracy(180, 180, bits=0.9), words).verdict == "smaller than claimed"
    assert claim(rate_accuracy(140, 180, bits=0.8), words).verdict == "opposite sign"


def test_other_allocators_are_measured_over_the_links_of_both() -> None:
    line = claim(rate_accuracy(180, 160), "against uniform")
    assert (line.ours, line.verdict, line.paper) == ("+40.00 points", "measured", "")
    assert "1.00 times as many bits" in line.note


def test_fig4_asks_for_more_than_not_worse() -> None:
    rows = [allocator_row("airllm-0", s, {5.0: 160}, MEGABIT) for s in range(3)]
    for theirs, expected in (
        (160, "smaller than claimed"),
        (130, "reproduced"),
        (190, "opposite sign"),
    ):
        shown = present("fig4", result("rate_accuracy", rows), adalora(theirs, theirs, theirs))
        line = claim(shown, "At 5 dB AirLLM (λ = 0) is more accurate than AdaLoRA")
        assert line.verdict == expected
        assert [s.label for s in shown.charts[0].series] == [
            "AirLLM, λ = 0: fills the deadline",
            "AdaLoRA, one training a link",
        ]


def test_table4_recomputes_the_counts_of_the_paper() -> None:
    shown = present("table4")
    table = shown.tables[0]
    full = {line[0]: line[3] for line in table.rows}
    assert full["8"] == "4,718,592"
    assert full["128"] == f"{24 * 6 * 128 * 2 * 2048:,}"
    assert [line[4] for line in table.rows[:3]] == ["full rank"] * 3
    assert all("impossible" in line[5] for line in table.rows)
    assert all("impossible" in line[4] for line in table.rows[3:])
    counts = claim(shown, "By the paper's own counts")
    assert counts.ours.startswith("12.85%")
    assert {c.verdict for c in shown.claims if "At r_max" in c.claim} == {"not testable here"}


# Learning curves


def fig3(ours: Sequence[float], theirs: Sequence[float], *, n: int = 3, every: int = 10) -> Claim:
    """Return the claim against PPO; seeds differ in nothing that counts."""
    rows = [policy_row("airllm", s, ours, every=every) for s in range(n)]
    rows += [policy_row("ppo", s, theirs, every=every) for s in range(n)]
    return claim(present("fig3", result("table3", rows)), "of PPO's episodes")


def test_fewer_episodes_than_the_other_needs_itself() -> None:
    # PPO has its final regret after 4 of 8 judgements; AirLLM after 1.
    line = fig3((0.1, 0.1), (0.9, 0.8, 0.7, 0.2, 0.6, 0.6, 0.6, 0.2))
    assert (line.ours, line.verdict, line.seeds) == ("0.25", "reproduced", (0, 1, 2))
    assert line.interval == pytest.approx((0.25, 0.25))
    assert "trained for: 0.12" in line.note


def test_more_episodes_than_the_other_are_the_opposite() -> None:
    assert fig3((0.9, 0.9, 0.1), (0.9, 0.5)).verdict == "opposite sign"
    never = fig3((0.9, 0.9, 0.9), (0.9, 0.5))
    assert (never.ours, never.verdict) == ("at least 1.50", "opposite sign")
    assert "3 of 3 seeds never reached it" in never.note


def test_stopped_too_early_tells_nothing_apart() -> None:
    line = fig3((0.9,), (0.9, 0.9, 0.9, 0.5))
    assert (line.ours, line.verdict) == ("at least 0.25", "not distinguishable")


def test_a_plateau_does_not_flatter_us() -> None:
    # Trained for 100 episodes, but as far as ever after 10: 20 episodes are twice as many.
    line = fig3((0.9, 0.5), (0.5,) * 10)
    assert (line.ours, line.verdict) == ("2.00", "opposite sign")


def test_a_curve_without_ours_is_shown_without_claims() -> None:
    shown = present("fig3", result("table3", [policy_row("ppo", 0)]))
    assert shown.claims == ()
    assert len(shown.charts) == 1


def test_sample_efficiency_judges_by_the_goal() -> None:
    def claimed(ours: Sequence[float]) -> Claim:
        rows = [policy_row("airllm", s, ours, every=2) for s in range(5)]
        rows += [policy_row("ppo", s, (0.9, 0.5), every=40) for s in range(5)]
        shown = present("sample_efficiency", result("sample_efficiency", rows))
        assert len(shown.tables[0].rows) == 2
        return claim(shown, "at most 30 %")

    soon = claimed((0.9,) * 9 + (0.4,))
    assert (soon.ours, soon.verdict) == ("25.0%", "reproduced")
    assert soon.interval == pytest.approx((25, 25))
    assert soon.seeds == (0, 1, 2, 3, 4)
    assert claimed((0.9,) * 19 + (0.4,)).verdict == "smaller than claimed"
    assert claimed((0.9,) * 5).verdict == "not distinguishable"


def test_the_best_setting_has_the_highest_final_reward() -> None:
    names = [name for name in GRID if name.startswith("ppo")]
    rows = [
        policy_row(name, seed, (0.9, 0.1 if name == names[2] else 0.2 + 0.01 * i))
        for i, name in enumerate(names)
        for seed in (100, 101)
    ]
    rows.append(policy_row(next(n for n in GRID if n.startswith("airllm")), 100, (0.9, 0.0)))
    assert best(result("tuning", rows), "ppo") == GRID[names[2]]
    table = present("tuning", result("tuning", rows)).tables[0]
    assert len(table.rows) == len(names) + 1


# Time


def table6(*times: tuple[float, float]) -> Presentation:
    """Return Table VI from processor times of 30 and 100 steps, seed by seed."""
    rows = [
        policy_row(f"T600-{n}", seed, cpu_s=t)
        for seed, (few, many) in enumerate(times)
        for n, t in ((30, few), (50, (few + many) / 2), (100, many))
    ]
    return present("table6", result("fig7", rows))


def test_time_grows_relative_to_each_seed() -> None:
    shown = table6((10.0, 12.0), (20.0, 24.2), (40.0, 47.6))
    line = shown.claims[0]
    assert (line.ours, line.paper, line.verdict) == ("+20%", "+21%", "reproduced")
    assert line.interval == pytest.approx((20 - 2.4841, 20 + 2.4841), abs=1e-3)
    assert line.seeds == (0, 1, 2)
    # 10 s for 20 episodes are 500 s for 1,000.
    assert shown.tables[0].rows[0][3].startswith("1167")


def test_time_that_does_not_grow() -> None:
    assert table6((10.0, 9.0), (20.0, 18.2), (40.0, 35.6)).claims[0].verdict == "opposite sign"
    wide = table6((10.0, 9.0), (20.0, 28.0), (40.0, 40.0))
    assert wide.claims[0].verdict == "not distinguishable"
    assert table6((10.0, 12.0)).claims[0].verdict == "not distinguishable"


def test_times_of_different_seeds_are_not_compared() -> None:
    rows = [policy_row(f"T600-{n}", seed) for seed, n in enumerate((30, 50, 100))]
    shown = present("table6", result("fig7", rows))
    assert shown.claims == ()
    assert len(shown.tables[0].rows) == 3


def test_negligible_gains_are_judged_by_size() -> None:
    def claimed(gain: float) -> Claim:
        rows = [
            policy_row(f"T1000-{n}", s, (0.9, regret + 0.001 * s))
            for n, regret in ((30, 0.4), (50, 0.3), (100, 0.3 - gain))
            for s in range(3)
        ]
        return claim(present("fig7", result("fig7", rows)), "next to nothing")

    assert claimed(0.0).verdict == "reproduced"
    assert claimed(-0.2).verdict == "reproduced"
    assert claimed(0.2).verdict == "not met"


def test_rewards_under_different_weights_of_the_link_are_not_compared() -> None:
    rows = [policy_row(v, s, right={5.0: 150}) for v in ("lambda-1", "lambda-0.01", "airllm")
            for s in range(3)]  # fmt: skip
    inputs = [result(name, rows) for name in ("table3", "table5a")]
    assert {c.ours for c in present("table5a", *inputs).claims} == {"+0.00 points"}
    fig5 = present("fig5", *inputs)
    assert fig5.claims
    assert all("by definition" in c.note for c in fig5.claims)


def test_fig8_reads_layers_and_kinds_of_the_map() -> None:
    # Ranks fall from 35/6 at the first projection to 0 at the last: lower layers have more.
    rows = [policy_row("airllm", s) for s in range(3)]
    shown = present("fig8", result("table3", rows))
    lower = claim(shown, "Lower layers")
    assert (lower.ours, lower.verdict) == ("+3.00 ranks", "reproduced")
    # Of places 0 to 5, o and fc1 have the mean 3.5, the others 2: 1.5 / 6 of a rank less.
    modules = claim(shown, "output projection and fc1")
    assert (modules.ours, modules.verdict) == ("-0.25 ranks", "opposite sign")


# A job of Table III


def calibration_result() -> Result:
    """Return one calibrated run: gains that fall along the rank and differ by projection."""
    from rankcast.learner.synthetic import transformer_layout
    from studies.surrogate.calibration import Calibration, TextGroup
    from studies.surrogate.fitting import FitQuality
    from studies.surrogate.monotone import MonotoneUtility

    layout = transformer_layout(n_layers=2, d_hidden=8, d_ffn=16, r_max=4)
    gains = np.outer(np.linspace(0.02, 0.06, 12), [1.0, 0.5, 0.25, 0.125])
    groups = tuple(
        TextGroup(0.5, (h, 0.1), (0.1, 0.01), MonotoneUtility("identity", 0.7, 1.0, scale * gains))
        for h, scale in ((1.5, 0.5), (3.0, 0.8))
    )
    quality = FitQuality(0.98, (0.97, 0.99), 0.9, 0.8, (0.7, 0.9), 0.01, 100)
    whole = Calibration(layout, groups, 0.05, 0.01, quality, (quality, quality))
    job = Job("sst2-0", 0, {"task": "sst2", "steps": 20, "probes": 12})
    values = {
        "calibration": json.loads(json.dumps(plain(whole.to_plain()))),
        "rank_0_loss": 0.7,
        "full_rank_loss": 0.2,
    }
    return result("calibration", [Row(job, values, 1.0, 1.0, "cpu", {})])


def test_a_job_of_table3_leaves_what_the_tables_read(tmp_path: Path) -> None:
    calibration = calibration_result()
    context = RunContext(tmp_path, "quick", {"calibration": calibration}, {}, None)
    job = policy_job("airllm", 1, episodes=4, evaluate_every=2)
    values = json.loads(json.dumps(plain(run_policy_job(job, context))))
    assert [p["episode"] for p in values["curve"]] == [2, 4]
    assert len(values["rewards"]) == 4
    assert values["calibrated_run"] == "sst2-0"
    assert values["oracle"] < values["best_uniform_per_link"] <= values["best_uniform"]
    assert [p["snr_db"] for p in values["plans"]] == [-5, 0, 5, 10, 15]
    assert all(p["link_cost"] <= 1 for p in values["plans"])
    assert np.shape(values["mean_ranks"]) == (5, 12)
    assert values["live"] == []
    shown = present("table3", result("table3", [Row(job, values, 1.0, 1.0, "cpu", {})]))
    assert len(shown.tables[0].rows) == 1
    assert len(present("calibration", calibration).claims) == 1


def test_plans_are_not_passed_off_as_judged_without_the_model(tmp_path: Path) -> None:
    context = RunContext(tmp_path, "default", {"calibration": calibration_result()}, {}, None)
    job = policy_job("airllm", 1, episodes=2, evaluate_every=2, judge_db=(5.0,))
    with pytest.raises(DataError, match="study run calibration"):
        run_policy_job(job, context)


def test_environments_side_by_side_count_as_episodes(tmp_path: Path) -> None:
    context = RunContext(tmp_path, "quick", {"calibration": calibration_result()}, {}, None)
    policy = {"refinement": "none"}
    job = policy_job("ppo", 0, episodes=8, evaluate_every=4, n_envs=2, policy=policy)
    values = run_policy_job(job, context)
    assert [p["episode"] for p in values["curve"]] == [4, 8]
    assert len(values["rewards"]) == 4


def test_seeds_share_the_calibrated_runs_there_are() -> None:
    one = calibration_result().rows[0]
    rows = [replace(one, job=replace(one.job, name=f"sst2-{i}")) for i in range(3)]
    runs = result("calibration", rows)
    chosen = [calibrated_row(runs, "sst2", seed).job.name for seed in seeds_of("default")]
    assert chosen == ["sst2-0", "sst2-1", "sst2-2", "sst2-0", "sst2-1"]
    with pytest.raises(rankcast.errors.ConfigError, match="calibrated"):
        calibrated_row(runs, "agnews", 0)
