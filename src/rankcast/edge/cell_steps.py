"""Fetch in steps where devices share a cell: after each the server gives more, or lets it wait."""

from __future__ import annotations

from collections.abc import Callable

from rankcast.edge.advice import Advice, CellFullError
from rankcast.edge.fetch import Fetched
from rankcast.release.plan import FetchPlan


def fetch_in_steps(
    ask: Callable[[float], Advice],
    fetch: Callable[[FetchPlan, float], Fetched],
    left_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[Advice, float, Fetched]:
    """Ask for a plan; where a cell is shared, fetch it, or wait, and ask again until the deadline.

    Returns the last advice, the time that is left [s], and what came.

    Args:
        ask: returns advice for the time that is left [s].
        fetch: fetches a plan's blobs until so many seconds have passed.
        left_s: until the deadline [s].
        clock: gives seconds that never run backwards.
        sleep: waits [s].

    Raises:
        CellFullError: the cell never had room. Other errors are those of `ask` and `fetch`.
    """
    end_s, advice, n_bytes, elapsed_s = clock() + left_s, None, 0, 0.0
    while True:
        try:
            advice = ask(left_s)
        except CellFullError as full:
            left_s = end_s - clock()
            if full.wait_s < left_s:
                sleep(full.wait_s)
                left_s -= full.wait_s
                continue
            if advice is None:
                raise
            break
        if not advice.asks_again or not advice.plan.missing:
            break
        fetched = fetch(advice.plan, left_s)
        n_bytes, elapsed_s = n_bytes + fetched.n_bytes, elapsed_s + fetched.elapsed_s
        left_s = end_s - clock()
        if fetched.missing or left_s <= 0.0:
            break
    return advice, left_s, Fetched(n_bytes, elapsed_s)
