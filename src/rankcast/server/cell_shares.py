"""Share a cell among the devices that sync in it, by the price of airtime.

A row of the database for each sync that is under way says until when, what the device was told to
fetch, and which steps of its ladder are still to come. Who asks is planned together with all of
them (`rankcast.band.lagrangian.sweep`): steps in order of gain per second, as long as they fit
before every deadline. A device that asks again between steps is told one at a time, and waits for
its turn as long as steps of higher gain per second are under way or to come, so that what has begun
arrives soon. One that asks once is told at once all that has room now.

A row ends with the device's report, and by itself at its deadline, or when a device that waits does
not come back. Servers take turns, as in `rankcast.server.registry`, so that they agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import sqlalchemy as sa

from rankcast.band.ladder import Ladder, upper_hull
from rankcast.band.lagrangian import Steps, sweep
from rankcast.server.cells import Cell
from rankcast.server.registry import Registry
from rankcast.server.schemas import CellBody

LEAST_STEP_BITS = 128_000
"""That a device is told to fetch before it asks again, if that takes no longer than `_BUSY_S`: a
question and its answer take about 1.5 kB of the link."""
_BUSY_S = 2.0
"""Airtime that may be ahead of a step that begins: the link stays busy while others wait [s]."""
_WAITS_S = (1.0, 30.0)
"""Shortest and longest wait until a device asks for its turn again [s]."""
_COMES_BACK_S = 10.0
"""After which a device that was to ask again is taken to be gone [s]."""
_MOST_STEPS = 8
"""Of a device; longer ladders are planned with fewer, longer steps."""
_METADATA = sa.MetaData()
CELL_SYNCS = sa.Table(
    "rankcast_cell_syncs",
    _METADATA,
    sa.Column("device", sa.String(64), primary_key=True),
    sa.Column("adapter", sa.String(64), primary_key=True),
    sa.Column("cell", sa.String(64), nullable=False, index=True),
    sa.Column("asked_s", sa.Float, nullable=False),
    sa.Column("until_s", sa.Float, nullable=False),
    sa.Column("gone_s", sa.Float, nullable=False),
    sa.Column("promised_s", sa.Float, nullable=False),
    sa.Column("steps", sa.Text, nullable=False),
)


class Step(NamedTuple):
    """A step along the hull of a device's gain over airtime; gain per second falls."""

    gain_per_s: float
    airtime_s: float
    prefix_bits: int = 0


class Sync(NamedTuple):
    """A device that syncs: what it was told to fetch and may not have yet, and what may follow."""

    left_s: float
    promised_s: float
    steps: Sequence[Step]


def steps_of(
    points: Iterable[tuple[int, float]], seconds_of_bit: float, budget_bits: float
) -> list[Step]:
    """Return the steps along the hull of gain over airtime.

    Args:
        points: missing bits of prefixes, and their gain, see `rankcast.release.plan.gains`.
        seconds_of_bit: of the cell's budget [s].
        budget_bits: that the device's own link carries before its deadline.
    """
    near = sorted((b, gain) for b, gain in points if 0 < b <= budget_bits and gain > 0.0)
    if not near or not np.isfinite(seconds_of_bit):
        return []
    gained = np.maximum.accumulate([0.0, *(gain for _, gain in near)])
    ladder = Ladder(np.array([0.0, *(b for b, _ in near)]), gained)
    bits, worth = upper_hull(ladder.prefix_bits, ladder.worth)
    kept = np.unique(np.linspace(0, len(bits) - 1, min(len(bits), _MOST_STEPS + 1)).round())
    bits, worth = bits[kept.astype(int)], worth[kept.astype(int)]
    airtime_s = np.diff(bits) * seconds_of_bit
    per_s, ends = (np.diff(worth) / airtime_s).tolist(), bits[1:].astype(int).tolist()
    return [Step(*x) for x in zip(per_s, airtime_s.tolist(), ends, strict=True)]


def place_of(asker: Sync, others: Sequence[Sync]) -> tuple[int, float]:
    """Return how many of a device's steps have room, and the airtime that comes before them [s].

    That is what others were told to fetch, and their planned steps that gain more per second.
    """
    syncs = [asker, *others]
    gain_per_s, airtime_s = np.zeros((2, 1, len(syncs), max(1, *(len(s.steps) for s in syncs))))
    for row, sync in enumerate(syncs):
        gain_per_s[0, row, : len(sync.steps)] = [step.gain_per_s for step in sync.steps]
        airtime_s[0, row, : len(sync.steps)] = [step.airtime_s for step in sync.steps]
    left_s = np.array([[sync.left_s for sync in syncs]])
    promised_s = np.array([min(sync.promised_s, sync.left_s) for sync in syncs])
    free_s = left_s - (left_s <= left_s.T) @ promised_s
    ends = np.broadcast_to(np.arange(1, gain_per_s.shape[-1] + 1), gain_per_s.shape)
    target = sweep(Steps(gain_per_s, airtime_s, ends), left_s, free_s).target
    before = (ends <= target[..., None]) & (gain_per_s > gain_per_s[0, 0, 0])
    return int(target[0, 0]), float(promised_s.sum() + airtime_s[before].sum())


class CellShares:
    """The syncs of all cells of a database. Threads may share it; processes open their own."""

    def __init__(self, registry: Registry, cells: Iterable[Cell]) -> None:
        """Make the table if there is none.

        Raises:
            DeliveryError: the database does not answer.
        """
        self._registry, self.cells = registry, {cell.name: cell for cell in cells}
        with registry.writing() as connection:
            _METADATA.create_all(connection)

    def share(
        self,
        cell: str,
        key: tuple[str, str],
        steps: Sequence[Step],
        deadline_s: float,
        now_s: float,
        *,
        comes_again: bool,
    ) -> tuple[int, float, CellBody]:
        """Plan a device together with all that sync in its cell, and keep what it is told.

        Returns the bits to fetch, 0 if there is no room now, when to ask again then [s], and what
        to say.

        Args:
            cell: name of the cell.
            key: names of device and adapter.
            steps: of the device, see `steps_of`.
            deadline_s: time for its transfer [s].
            now_s: the time [s since 1970].
            comes_again: whether it asks again between steps.
        """
        with self._registry.writing() as connection:
            connection.execute(_without(*key))
            others = _current(connection, cell, now_s)
            n_fit, ahead_s = place_of(Sync(deadline_s, 0.0, steps), others)
            n_now = _n_now(steps[:n_fit], ahead_s) if comes_again else n_fit
            wait_s = min(max(ahead_s, _WAITS_S[0]), _WAITS_S[1])
            is_hopeless = not steps or wait_s + steps[0].airtime_s > deadline_s
            later = steps[n_now:] if comes_again else ()
            if n_now or (later and not is_hopeless):
                gone_s = deadline_s if n_now else min(deadline_s, wait_s + _COMES_BACK_S)
                row = {
                    "device": key[0], "adapter": key[1], "cell": cell, "asked_s": now_s,
                    "until_s": now_s + deadline_s, "gone_s": now_s + gone_s,
                    "promised_s": sum(step.airtime_s for step in steps[:n_now]),
                    "steps": json.dumps([step[:2] for step in later]),
                }  # fmt: skip
                connection.execute(sa.insert(CELL_SYNCS).values(**row))
        share = sum(step.airtime_s for step in steps[:n_fit]) / deadline_s
        beside = f"cell {cell} ({len(others) + 1} syncing)"
        if n_now:
            words = f"{share:.0%} of the budget of {beside}."
        elif others and not is_hopeless:
            words = f"No room for more now in {beside}; ask again in {wait_s:.0f} s."
        else:
            words = f"No room before the deadline in {beside}, or it is closed."
        told = CellBody(name=cell, airtime_share=share, asks_again=bool(later), reason=words)
        bits = steps[n_now - 1].prefix_bits if n_now else 0
        return bits, deadline_s if is_hopeless else wait_s, told

    def release(self, device: str, adapter: str) -> None:
        """Forget a sync: the device has what it was told to fetch, or gave up."""
        if self.cells:
            with self._registry.writing() as connection:
                connection.execute(_without(device, adapter))

    def loads(self, now_s: float) -> dict[str, tuple[int, float]]:
        """Return how many sync in each cell, and the share of their time that is promised."""
        with self._registry.reading() as connection:
            syncs = {cell: _syncs(connection, cell, now_s) for cell in self.cells}
        return {
            cell: (len(of), sum(s.promised_s for s in of) / max((s.left_s for s in of), default=1))
            for cell, of in syncs.items()
        }


def _without(device: str, adapter: str) -> sa.Delete:
    own = (CELL_SYNCS.c.device == device) & (CELL_SYNCS.c.adapter == adapter)
    return sa.delete(CELL_SYNCS).where(own)


def _current(connection: sa.Connection, cell: str, now_s: float) -> list[Sync]:
    """Return the syncs of a cell, after dropping those that are over.

    What was written by a clock that is ahead, or before the clock was set back, counts from now on:
    it holds airtime for its own deadline at most.
    """
    table, here = CELL_SYNCS.c, CELL_SYNCS.c.cell == cell
    back_s = table.asked_s - now_s
    again = {"asked_s": now_s, "until_s": table.until_s - back_s, "gone_s": table.gone_s - back_s}
    connection.execute(sa.update(CELL_SYNCS).where(here, back_s > 0.0).values(**again))
    connection.execute(sa.delete(CELL_SYNCS).where(here, table.gone_s <= now_s))
    return _syncs(connection, cell, now_s)


def _syncs(connection: sa.Connection, cell: str, now_s: float) -> list[Sync]:
    """Return the syncs of a cell; what is promised is taken to arrive in equal shares."""
    here = (CELL_SYNCS.c.cell == cell) & (CELL_SYNCS.c.gone_s > now_s)
    rows = connection.execute(sa.select(CELL_SYNCS).where(here)).all()
    n_busy = max(1, sum(row.promised_s > 0.0 for row in rows))
    return [
        Sync(
            row.until_s - now_s,
            max(0.0, row.promised_s - max(0.0, now_s - row.asked_s) / n_busy),
            [Step(*pair) for pair in json.loads(row.steps)],
        )
        for row in rows
    ]


def _n_now(fitting: Sequence[Step], ahead_s: float) -> int:
    """Return how many steps a device may begin now that asks again; 0 if it is not its turn."""
    if ahead_s > _BUSY_S:
        return 0
    n_now, airtime_s = 0, 0.0
    for step in fitting:
        n_now, airtime_s = n_now + 1, airtime_s + step.airtime_s
        if airtime_s >= _BUSY_S or step.prefix_bits >= LEAST_STEP_BITS:
            break
    return n_now
