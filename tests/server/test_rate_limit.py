"""Token buckets: requests that can be refused, and bytes that have come already."""

from __future__ import annotations

import pytest

from rankcast import rate_limit
from rankcast.errors import ConfigError
from rankcast.rate_limit import Buckets, Rate, TokenBucket


def test_a_bucket_fills_at_its_rate() -> None:
    now = [0.0]
    bucket = TokenBucket(Rate(2.0, 3), lambda: now[0])
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] = 0.25
    assert bucket.take() == 0.25
    now[0] = 0.5
    assert [bucket.take(), bucket.take()] == [0, 0.5]
    now[0] = 1e6
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_what_has_come_is_owed_and_paid_by_waiting() -> None:
    now = [0.0]
    bucket = TokenBucket(Rate(100.0, 10), lambda: now[0])
    assert [bucket.spend(10), bucket.spend(50), bucket.spend(0)] == [0, 0.5, 0.5]
    now[0] = 0.5
    assert [bucket.spend(0), bucket.spend(1)] == [0, 0.01]


def test_names_have_buckets_of_their_own_and_the_oldest_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limit, "MOST_BUCKETS", 2)
    buckets = Buckets(Rate(1.0, 1), lambda: 0.0)
    assert [buckets.take(name) for name in "aabbab"] == [0, 1, 0, 1, 1, 1]
    assert [buckets.take(name) for name in "cba"] == [0, 1, 0]


@pytest.mark.parametrize(("per_s", "burst"), [(0.0, 1), (-1.0, 1), (1.0, 0), (float("nan"), 1)])
def test_rates_that_let_nothing_pass_are_refused(per_s: float, burst: float) -> None:
    with pytest.raises(ConfigError, match="positive"):
        Rate(per_s, burst)
