"""The study of adapters never seen: what is learned, what is planned with it, what readers see."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.codec import random_adapter
from rankcast.codec.losses import squared_error
from rankcast.codec.target import pack_into
from rankcast.codec.tensors import AdapterTensors, Factors
from rankcast.errors import DataError, InfeasibleSizeError
from studies.harness.spec import Result, Row
from studies.harness.store import jobs_of
from studies.unseen.adapters import specs
from studies.unseen.files import solved_file, weighted_file
from studies.unseen.measured import FEATURES, Measured, at_level, features, levels_of, source_of
from studies.unseen.presentation import LABELS, gains, joined, less, present
from studies.unseen.study import SPLITS, STUDY, teachers
from studies.unseen.weights import by_kind, by_weights, explained, learn, target

WIDTHS, RANKS = ((48, 40), (40, 64), (64, 40)), (4, 4, 4)


def measured(
    errors: list[tuple[float, ...]], losses: list[tuple[float, ...]], kinds: str = "q v"
) -> Measured:
    names = tuple(kinds.split())
    n = len(names)
    looks = tuple(tuple(float(i + j) for j in range(len(FEATURES))) for i in range(n))
    return Measured(
        names, tuple(range(n)), n, looks, tuple(errors), tuple(losses), (0,) * n, (1.0, 0.5)
    )


def test_sensitivity_is_the_mean_log_of_divergence_over_error() -> None:
    adapter = measured([(4.0, 1.0), (1.0, 0.0)], [(4e-2, 1e-4), (1e-3, 0.0)])
    # ln 1e-2 and ln 1e-4; of the second only the first level loses anything.
    expected = [(math.log(1e-2) + math.log(1e-4)) / 2, math.log(1e-3)]
    assert adapter.log_sensitivity == pytest.approx(expected)
    assert target(adapter) == pytest.approx([0.0, 0.0])


def test_a_projection_without_updates_counts_as_the_least_sensitive() -> None:
    adapter = measured([(0.0, 0.0), (1.0, 1.0), (1.0, 1.0)],
                       [(0.0, 0.0), (1e-3, 1e-3), (1e-2, 1e-2)], "q k v")  # fmt: skip
    assert adapter.log_sensitivity == pytest.approx(np.log([1e-3, 1e-3, 1e-2]))


def test_what_was_measured_survives_as_json() -> None:
    adapter = measured([(4.0, 1.0), (1.0, 0.0)], [(0.0123456, 1e-4), (1e-3, 0.0)])
    kept = Measured.from_plain(adapter.to_plain())
    assert kept.divergences[0][0] == 0.012346
    assert replace(kept, divergences=adapter.divergences) == adapter


def planted(seed: int, slope: float = 2.0) -> Measured:
    """An adapter whose log sensitivity is the slope times its first feature, and 1 more for q."""
    rng = np.random.default_rng(seed)
    kinds = ("q", "v", "q", "v", "q", "v")
    looks = rng.normal(size=(6, len(FEATURES)))
    logs = slope * looks[:, 0] + np.array([k == "q" for k in kinds])
    losses = [(float(x),) for x in 1e-4 * np.exp(logs + rng.normal() * np.ones(6))]
    rows = tuple(tuple(row) for row in looks.tolist())
    return Measured(kinds, (0, 0, 1, 1, 2, 2), 3, rows, ((1.0,),) * 6, tuple(losses), (0,) * 6,
                    (1.0, 0.5))  # fmt: skip


def test_learned_weights_find_what_was_planted() -> None:
    weights = learn([planted(s) for s in range(8)], by_weights)
    unseen = planted(100)
    assert explained(weights.log_weights(unseen), target(unseen)) > 0.95
    assert weights.log_weights(unseen).mean() == pytest.approx(0.0, abs=1e-12)


def test_kinds_alone_learn_the_difference_of_kinds() -> None:
    adapters = [planted(s, slope=0.0) for s in range(4)]
    found = learn(adapters, by_kind, (1e-6,)).log_weights(adapters[0])
    assert found == pytest.approx([0.5, -0.5] * 3, abs=1e-3)


def test_noise_gets_a_large_penalty() -> None:
    rng = np.random.default_rng(0)

    def noise(seed: int) -> Measured:
        losses = tuple((float(np.exp(x)),) for x in rng.normal(size=6))
        return replace(planted(seed), divergences=losses)

    assert learn([noise(s) for s in range(20)], by_weights).penalty >= 100


def test_one_adapter_teaches_nothing() -> None:
    with pytest.raises(DataError, match="two adapters or more, got 1"):
        learn([planted(0)], by_kind)


@given(st.floats(0.1, 10.0))
def test_scale_moves_sizes_and_nothing_else(scale: float) -> None:
    factors = [f.sorted() for f in random_adapter(0, WIDTHS, RANKS).factors]
    larger = [Factors(f.left * np.float32(scale), f.right) for f in factors]
    moved = features(larger, [2.0, 3.0, 4.0]) - features(factors, [2.0, 3.0, 4.0])
    of_size = [name.startswith("size") for name in FEATURES]
    assert moved[:, of_size] == pytest.approx(math.log(scale), abs=1e-4)
    assert moved[:, np.logical_not(of_size)] == pytest.approx(0.0, abs=1e-4)


def test_features_of_a_known_update() -> None:
    left = np.array([[3.0, 0.0], [0.0, 1.0]], np.float32)
    found = features([Factors(left, np.eye(2, dtype=np.float32))], [np.sqrt(10.0)])[0]
    # ΔW = diag(3, 1): ‖ΔW‖² = 10, of which the largest component has 9.
    expected = [math.log(10) / 2, math.log(10 / 9), math.log(2),
                math.log(3 / math.sqrt(2.5)), math.log(1 / math.sqrt(0.5)), 0.0]  # fmt: skip
    assert found == pytest.approx(expected)


def lost(tensors: AdapterTensors, other: AdapterTensors) -> list[float]:
    pairs = zip(tensors.factors, other.factors, strict=True)
    return [squared_error(own, found) for own, found in pairs]


def test_equal_weights_give_the_file_of_today() -> None:
    source = source_of(random_adapter(1, WIDTHS, RANKS))
    for room in (150, 400):
        weighted = weighted_file(source, np.full(3, 7.0), room)
        assert lost(source.tensors, weighted.tensors()) == pytest.approx(
            lost(source.tensors, pack_into(source, room).tensors()), rel=1e-5
        )


@settings(max_examples=10)
@given(st.integers(0, 5), st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_weighted_files_fit_and_lose_less_of_the_weighted_error(
    seed: int, logs: list[float]
) -> None:
    source, weights = source_of(random_adapter(seed, WIDTHS, RANKS)), np.exp(logs)
    file = weighted_file(source, np.array(logs), 300)
    assert file.n_bits <= 8 * 300
    ours = float(weights @ lost(source.tensors, file.tensors()))
    today = float(weights @ lost(source.tensors, pack_into(source, 300).tensors()))
    assert ours <= 1.25 * today  # steps are whole exponents and follow half of the weights


def test_a_weight_of_a_thousand_saves_its_projection() -> None:
    source = source_of(random_adapter(2, WIDTHS, RANKS))
    today = lost(source.tensors, pack_into(source, 250).tensors())
    ours = lost(source.tensors, weighted_file(source, np.log([1, 1000, 1]), 250).tensors())
    assert ours[1] < 0.5 * today[1]
    assert ours[0] + ours[2] > today[0] + today[2]


def test_the_solver_takes_the_levels_that_save_most() -> None:
    source = source_of(random_adapter(3, WIDTHS, RANKS))
    levels = levels_of(source)
    losses = np.array([[1e-9, 1e-10, 1e-11], [1.0, 0.1, 0.01], [1e-9, 1e-10, 1e-11]])
    file = solved_file(source, levels, losses, 200)
    assert file.n_bits <= 8 * 200
    shares = np.array(lost(source.tensors, file.tensors())) / [
        squared_error(f, Factors(f.left[:, :0], f.right[:0])) for f in source.tensors.factors
    ]
    assert shares[1] == min(shares)
    with pytest.raises(InfeasibleSizeError):
        solved_file(source, levels, losses, 10)
    with pytest.raises(InfeasibleSizeError):
        weighted_file(source, np.zeros(3), 10)


def test_a_level_is_rounded_to_its_step() -> None:
    factors = Factors(np.array([[0.4, 5.0], [1.6, 5.0]], np.float32), np.ones((2, 3), np.float32))
    found = at_level(factors, 1, 0)  # the step of exponent 0 is 1
    assert found.left.tolist() == [[0.0], [2.0]]
    assert found.right.tolist() == [[1.0] * 3]


def test_no_judged_adapter_is_seen_in_learning() -> None:
    everything = specs("default")
    assert len({s.name for s in everything}) == len(everything)
    for judged in everything:
        for split in SPLITS:
            seen = teachers(judged, split, everything)
            assert len(seen) > 1
            assert all(s.seed != judged.seed for s in seen)
            assert all(s.rank != judged.rank for s in seen)
            assert all(getattr(s, split) != getattr(judged, split) for s in seen)


def test_every_adapter_is_measured_and_judged() -> None:
    jobs = jobs_of(STUDY, "default")
    names = [s.name for s in specs("default")]
    expected = [
        *(f"measure-{n}" for n in names),
        *(f"judge-{n}" for n in reversed(names)),
        *(f"levels-{n}" for n in names),
    ]
    assert [job.name for job in jobs] == expected


def judged(divergences: dict[tuple[str, str], float], seed: int = 0, kind: str = "judge") -> Row:
    (job,) = (
        j for j in jobs_of(STUDY, "default") if j.name == f"{kind}-{specs('default')[seed].name}"
    )
    files: list[dict[str, Any]] = [
        {"planner": p, "split": s, "size": size, "bytes": 100, "divergence": d * size,
         "loss": 0.5, "accuracy": 0.75}
        for (p, s), d in divergences.items() for size in (0.1, 0.2)
    ]  # fmt: skip
    values: dict[str, Any] = {"files": files}
    if kind == "judge":
        values |= {"explained": {"kinds, seed": 0.25}, "teachers": {"seed": 5}}
    return Row(replace(job, seed=seed), values, 1.0, 1.0, "cpu", {})


def test_gains_are_logarithms_of_ratios_paired_by_size() -> None:
    rows = [judged({("today", ""): 0.2, ("learned", "seed"): 0.1})]
    assert gains(rows, ("learned", "seed"), ("today", "")) == pytest.approx([math.log(2)])
    assert gains(rows, ("solved", ""), ("today", "")) == []
    assert less(math.log(2)) == pytest.approx(50.0)


def test_files_of_an_adapter_are_compared_whichever_job_made_them() -> None:
    rows = [
        judged({("today", ""): 0.2}), judged({("today", ""): 0.4}, 1),
        judged({("pack", ""): 0.1}, kind="levels"), judged({("pack", ""): 0.1}, 1, "levels"),
        judged({("pack", ""): 0.1}, 2, "levels"),
    ]  # fmt: skip
    together = joined(rows)
    assert gains(together, ("pack", ""), ("today", "")) == pytest.approx([math.log(2), math.log(4)])
    assert together[0].values["explained"] == {"kinds, seed": 0.25}
    (claim,) = present(Result("unseen", "default", "", tuple(rows)), {}).claims
    ours, theirs = LABELS["pack"].capitalize(), LABELS["today"]
    assert claim.claim == f"{ours} lose less than {theirs}."


def test_readers_see_who_loses_less() -> None:
    rows = tuple(
        judged({("today", ""): 0.2, ("learned", "seed"): ours, ("uniform", ""): 0.4}, seed)
        for seed, ours in enumerate((0.1, 0.12, 0.09))
    )
    shown = present(Result("unseen", "default", "", rows), {})
    (claim,) = shown.claims
    assert claim.verdict == "reproduced"
    assert claim.interval is not None
    assert 40 < claim.interval[0] < 50 < claim.interval[1] < 56
    by_size, of_sensitivity = shown.tables
    assert by_size.rows[1][:2] == ("all components at one step", "-100.0 (-100.0 to -100.0)")
    assert of_sensitivity.rows[0][3] == "25 ± 0"
    assert present(Result("unseen", "default", "", ()), {}).claims == ()
