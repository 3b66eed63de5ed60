"""Which prefix a device should have: by looking at all, or by what a policy chose for its link."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from helpers.codec import packed, random_adapter
from helpers.stores import put_release
from rankcast.codec.header import BaseModel
from rankcast.edge.install import early_prefix
from rankcast.edge.state import ReleasePrefix
from rankcast.errors import DeliveryError, InfeasibleDeadlineError
from rankcast.release.manifest import Choice, File, Manifest
from rankcast.release.plan import plan_fetch
from rankcast.release.store import Store


@pytest.fixture
def release(tmp_path: Path) -> Manifest:
    """Return files of 100 + 200 + 300 and 100 + 50 + 50 bytes; the first is better."""
    sizes = ((100, 200, 300), (100, 50, 50))
    return put_release(Store(tmp_path), sizes=sizes, losses=((0.5, 0.3), (0.6, 0.4)))


def by_policy(release: Manifest, *pairs: tuple[float, int]) -> Manifest:
    choices = tuple(Choice(rate, 0.0, 1.0, index) for rate, index in pairs)
    return replace(release, planner="policy", choices=choices)


def test_the_solver_takes_the_lowest_loss_that_arrives(release: Manifest) -> None:
    for budget, expected in ((8 * 600, (0, 2)), (8 * 599, (1, 2)), (8 * 150, (1, 1))):
        plan = plan_fetch(release, budget, frozenset(), rate_bps=1.0)
        assert (plan.file_index, plan.n_chunks, plan.planner) == (*expected, "solver")


@pytest.mark.parametrize(
    ("rate_bps", "file_index"), [(5.0, 1), (10.0, 1), (19.9, 1), (20.0, 0), (1e9, 0)]
)
def test_the_policys_file_is_that_of_the_fastest_link_no_faster(
    release: Manifest, rate_bps: float, file_index: int
) -> None:
    chosen = by_policy(release, (20.0, 0), (10.0, 1))
    plan = plan_fetch(chosen, 8 * 600, frozenset(), rate_bps)
    assert (plan.file_index, plan.n_chunks, plan.planner) == (file_index, 2, "policy")


def test_where_the_policys_file_cannot_arrive_another_may(release: Manifest) -> None:
    chosen = by_policy(release, (10.0, 0))
    plan = plan_fetch(chosen, 8 * 200, frozenset(), 10.0)
    assert (plan.file_index, plan.n_chunks, plan.planner) == (1, 2, "solver")
    assert plan_fetch(chosen, 8 * 300, frozenset(), 10.0).planner == "policy"
    assert plan_fetch(chosen, 8 * 600, frozenset()).planner == "solver"
    with pytest.raises(InfeasibleDeadlineError):
        plan_fetch(chosen, 8 * 149, frozenset(), 10.0)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(0.0, 0.0, 1.0, 0),
        Choice(1.0, float("nan"), 1.0, 0),
        Choice(10**400, 0.0, 1.0, 0),
        Choice(1.0, 0.0, 1.0, 2),
        Choice(1.0, 0.0, 1.0, True),
    ],
)
def test_choices_that_cannot_be_are_refused(release: Manifest, choice: Choice) -> None:
    with pytest.raises(DeliveryError, match="choice"):
        replace(release, planner="policy", choices=(choice,))


def test_planner_and_choices_go_together(release: Manifest) -> None:
    with pytest.raises(DeliveryError, match="has its choices"):
        replace(release, planner="policy")
    with pytest.raises(DeliveryError, match="has its choices"):
        replace(by_policy(release, (1.0, 0)), planner="solver")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((1.8, 1.7, 0.9, 0.7, 0.6), 3),  # 0.6 + a quarter of 1.2
        ((0.66, 0.65, 0.6), 1),  # within 0.1 nats of the best
        ((1.8, 0.6), None),  # only the whole is good
        ((0.5, 0.6), 1),  # more is not always better
    ],
)
def test_a_device_begins_with_what_is_nearly_as_good(
    tmp_path: Path, losses: tuple[float, ...], expected: int | None
) -> None:
    made = put_release(Store(tmp_path), sizes=((100,) * (len(losses) + 1),), losses=(losses,))
    early = early_prefix(made, ReleasePrefix.of(made, 0, len(losses)))
    assert (None if early is None else early.n_chunks) == expected


def test_nobody_begins_with_what_was_not_measured(tmp_path: Path) -> None:
    made = File.of(packed(random_adapter(0)))
    release = Manifest("a", 1, BaseModel(None, "0" * 64), (made,), {})
    assert early_prefix(release, ReleasePrefix.of(release, 0, len(made.chunks))) is None
