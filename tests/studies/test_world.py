from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from rankcast.allocation.baselines import UniformAllocator
from rankcast.allocation.waterfilling import waterfill
from rankcast.config.policy import PolicyConfig
from rankcast.learner.synthetic import SyntheticLearner, SyntheticUtility, transformer_layout
from rankcast.records import AdapterLayout, FloatArray, IntArray, Projection
from studies.surrogate.training import train_policy, train_teacher
from studies.surrogate.world import (
    SMALLEST_GAP,
    World,
    WorldConfig,
    best_known,
    descend,
    is_additive,
    make_world,
    synthetic_level_world,
    synthetic_world,
)

RULES = ("penalise", "enforce")


def small_world(config: WorldConfig | None = None) -> World:
    layout = AdapterLayout(
        tuple(Projection(f"p{k}", 0, kind, 4, 8 * (k + 1)) for k, kind in enumerate("qkv")), 3
    )
    utility = SyntheticUtility.draw(np.random.default_rng(1), layout)
    return make_world(SyntheticLearner(layout, utility), utility, config)


def every_plan(world: World) -> IntArray:
    ranks = np.arange(world.problem.layout.r_max + 1)
    return np.array(np.meshgrid(*[ranks] * world.problem.layout.n_projections)).reshape(3, -1).T


@pytest.mark.parametrize("rule", RULES)
def test_the_oracle_is_the_best_of_all_plans(rule: str) -> None:
    world = small_world(WorldConfig(deadline=rule))  # type: ignore[arg-type]
    plans, objectives = every_plan(world), []
    for k in range(world.link.size):
        snr_db = np.full(len(plans), world.link.snr_db[k])
        link = type(world.link)(snr_db, world.link.bandwidth_hz[:1], world.link.deadline_s[:1])
        objective = world.objective(plans, link)
        late = world.problem.link_costs.link_cost(plans, link) > 1.0
        objectives.append(objective[~late].min() if rule == "enforce" else objective.min())
    assert world.oracle == pytest.approx(np.mean(objectives), abs=1e-9)
    assert world.oracle <= world.uniform_per_link <= world.uniform


def test_in_a_world_of_levels_the_deadline_binds_and_the_oracle_is_exact() -> None:
    world = synthetic_level_world(3)
    problem, link = world.problem, world.link
    full = np.full((link.size, problem.layout.n_projections), problem.layout.r_max)
    arrives = problem.link_costs.link_cost(full, link) <= 1.0 + 1e-9
    assert arrives.tolist() == [False, False, False, False, True]
    best = waterfill(world.gains, problem, link)  # exact but for what is left of a budget
    assert world.oracle <= world.objective(best, link).mean() <= world.oracle + 1e-3
    assert world.oracle < world.uniform_per_link <= world.uniform


def test_regret_is_one_for_the_best_uniform_rank_and_none_for_the_oracle() -> None:
    world, rng = small_world(), np.random.default_rng(0)
    uniform = [world.regret_of(UniformAllocator(world.problem, k), rng) for k in range(4)]
    assert min(uniform) == pytest.approx(1.0)
    best = waterfill(world.gains, world.problem, world.link)
    assert world.regret(best, world.link) == pytest.approx(0.0, abs=1e-9)
    assert world.reward(0.0) == -world.oracle
    assert world.reward(1.0) == pytest.approx(-world.uniform)


def test_regret_stays_finite_where_the_best_uniform_rank_is_optimal() -> None:
    whole = small_world()
    for uniform in (whole.oracle, whole.oracle - 1e-9):
        world = replace(whole, uniform=uniform)
        best = waterfill(world.gains, world.problem, world.link)
        assert world.regret(best, world.link) == pytest.approx(0.0, abs=1e-6)
        worst = UniformAllocator(world.problem, 0).allocate(
            world.observe(1), np.random.default_rng(0)
        )
        mean = world.objective(worst, world.link).mean()
        regret = world.regret(worst, world.link)
        assert regret == pytest.approx((mean - world.oracle) / SMALLEST_GAP)
        assert regret > 0
        assert world.reward(regret) == pytest.approx(-mean)


def test_full_rank_takes_the_whole_deadline_at_the_named_snr() -> None:
    world = small_world(WorldConfig(snrs_db=(7.0,), full_rank_at_db=7.0, deadline_s=0.5))
    full = np.full((1, 3), 3)
    assert world.problem.link_costs.link_cost(full, world.link) == pytest.approx(1.0)


def test_where_bandwidth_varies_policies_are_judged_at_three() -> None:
    constant, varied = small_world(), small_world(WorldConfig(bandwidth_octaves=1.0))
    bandwidth_hz = constant.link.bandwidth_hz[0]
    assert constant.link.size == 5
    assert varied.link.size == 15
    assert varied.link.snr_db.tolist() == 3 * constant.link.snr_db.tolist()
    expected = np.repeat([0.5, 1.0, 2.0], 5) * bandwidth_hz
    assert varied.link.bandwidth_hz == pytest.approx(expected)
    assert varied.observe(2).link.size == 30
    varied.env.reset(seed=0)
    assert varied.env.observe().link.bandwidth_hz[0] != bandwidth_hz
    assert varied.oracle <= varied.uniform_per_link <= varied.uniform


def test_gains_that_do_not_decrease_are_still_solved() -> None:
    world = small_world()
    gains = world.gains[:, ::-1].copy()
    utility = SyntheticUtility(gains)
    turned = make_world(SyntheticLearner(world.problem.layout, utility), utility)
    for k in range(3):  # no single plan of all is better than the oracle on all links together
        plans = every_plan(turned)[k::3]
        for plan in plans:
            everywhere = np.tile(plan, (turned.link.size, 1))
            assert turned.objective(everywhere, turned.link).mean() >= turned.oracle - 1e-6


@dataclass(frozen=True)
class Coupled:
    """Components count only where another projection has rank too."""

    gains: FloatArray

    def loss(self, ranks: IntArray) -> FloatArray:
        return 1.0 - 0.3 * np.minimum(ranks[:, 0], ranks[:, 1])


def test_descents_find_what_no_component_shows_alone() -> None:
    layout = small_world().problem.layout
    synthetic = SyntheticUtility(np.zeros((3, 3)))
    utility = Coupled(np.zeros((3, 3)))
    assert not is_additive(utility.loss, utility.gains)
    assert is_additive(synthetic.loss, synthetic.gains)
    world = make_world(SyntheticLearner(layout, synthetic), utility)
    best = best_known(
        world.problem, utility.loss, utility.gains, world.link, np.random.default_rng(0)
    )
    assert (best[:, 0] == best[:, 1]).all()
    assert best[-1, 0] == 3
    assert (best[:, 2] == 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_descent_never_climbs_and_keeps_the_deadline(rule: str) -> None:
    world = synthetic_world(0, 0.2, WorldConfig(snrs_db=(-5.0, 15.0), deadline=rule))  # type: ignore[arg-type]
    problem, link = world.problem, world.link
    start = problem.feasible(np.full((2, 36), 4), link)
    end = descend(problem, world.loss, start, link)
    assert (world.objective(end, link) <= world.objective(start, link)).all()
    if rule == "enforce":
        assert (problem.link_costs.link_cost(end, link) <= 1.0).all()


def test_training_leaves_a_curve_and_is_repeatable() -> None:
    def train() -> list[dict[str, float]]:
        config = PolicyConfig(refinement="none")
        done = train_policy(synthetic_world(3), config, episodes=4, seed=3, evaluate_every=2)
        assert len(done.rewards) == 4
        return [point.to_plain() for point in done.curve]

    curve = train()
    assert [point["episode"] for point in curve] == [2, 4]
    assert set(curve[0]) == {"episode", "deployed", "exploring", "solver_on_its_belief"}
    assert train() == curve


def test_the_teacher_learns() -> None:
    world = synthetic_world(20)
    _, curve = train_teacher(world, episodes=40, seed=20, evaluate_every=20)
    assert curve[-1].deployed < 0.6
    assert curve[-1].deployed < curve[-1].exploring
    assert "solver_on_its_belief" not in curve[0].to_plain()


def test_the_layout_of_the_synthetic_world_is_the_default_one() -> None:
    assert synthetic_world(0).problem.layout == transformer_layout()
