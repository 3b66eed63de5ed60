"""Cells: devices that share a band or a backhaul, and how much of it deliveries may take.

A device is in the cell NAME if one of its groups is `cell=NAME`. Both limits of a cell are counted
in one unit, seconds of its budget: a bit takes the longer of its time on the band and its time on
the backhaul. Where both are limited, what fits by this count keeps either limit.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rankcast.errors import ConfigError
from rankcast.server.registry import CELL_LABEL, checked_groups


@dataclass(frozen=True, slots=True)
class Cell:
    """A band or a backhaul that devices share.

    Attributes:
        name: of the cell.
        airtime_share: of the band's time that deliveries may take, 0 to 1; each device's own rate
            says how many bits that is.
        max_bps: what all its devices may receive together [bit/s].

    Raises:
        ConfigError: a name that no group can have, no limit, or one outside its range.
    """

    name: str
    airtime_share: float = math.inf
    max_bps: float = math.inf

    def __post_init__(self) -> None:
        """Refuse what is no cell."""
        checked_groups([CELL_LABEL + self.name])
        both = (self.airtime_share, self.max_bps)
        is_number = all(isinstance(x, int | float) and x >= 0.0 for x in both)
        if not is_number or min(both) == math.inf or 1.0 < self.airtime_share < math.inf:
            raise ConfigError(
                f"Cell {self.name} has an airtime_share from 0 to 1, a max_bps of at least 0 "
                f"[bit/s], or both; 0 closes it. Got {self.airtime_share} and {self.max_bps}."
            )

    def seconds_of_bit(self, rate_bps: float) -> float:
        """Return the seconds of the cell's budget that a bit takes; infinite if it is closed.

        Args:
            rate_bps: of the device alone on the whole band [bit/s].
        """
        slower_bps = min(self.airtime_share * rate_bps, self.max_bps)
        return 1.0 / slower_bps if slower_bps > 0.0 else math.inf


def cell_of(groups: Iterable[str]) -> str | None:
    """Return the name of the cell that a device's groups name; None for none."""
    names = (group.removeprefix(CELL_LABEL) for group in groups if group.startswith(CELL_LABEL))
    return next(names, None)


def read_cells(path: Path) -> tuple[Cell, ...]:
    """Read cells from TOML: a table for each, with `airtime_share`, `max_bps` or both.

    Raises:
        ConfigError: no such file, or not such tables.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        return tuple(Cell(name, **table) for name, table in tables.items())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} has a table such as [north] for each cell, with airtime_share or max_bps: "
            f"{error}"
        ) from error
