"""Maintenance windows: when a device may change, by the clock of the place where it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from rankcast.errors import ConfigError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_DAY_MIN = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """A daily span of time.

    Attributes:
        start_min: minutes after midnight at which it opens.
        end_min: likewise at which it closes; before `start_min` it is the next day's.
        days: on which it opens, 0 for Monday.
    """

    start_min: int
    end_min: int
    days: tuple[int, ...] = tuple(range(7))

    def __post_init__(self) -> None:
        """Refuse a window that never opens.

        Raises:
            ConfigError: no length, or no day.
        """
        inside = all(0 <= x < _DAY_MIN for x in (self.start_min, self.end_min))
        if not inside or self.start_min == self.end_min:
            raise ConfigError("A window that opens and closes at once never opens; make it longer.")
        if not self.days or not set(self.days) <= set(range(7)):
            raise ConfigError(f"A window without a day never opens; name some of {_ALL_DAYS}.")

    @classmethod
    def parse(cls, span: str, days: tuple[str, ...] = ()) -> Window:
        """Return the window of a text such as 22:00-05:00.

        Args:
            span: hours and minutes, with two digits each.
            days: on which it opens, such as mon; every day if left out.

        Raises:
            ConfigError: it is none, or never opens.
        """
        match = _SPAN.fullmatch(span)
        if match is None:
            raise ConfigError(f"A window is a span such as 22:00-05:00, got {span!r}.")
        unknown = [day for day in days if day.lower() not in DAYS]
        if unknown:
            raise ConfigError(f"A day of a window is one of {_ALL_DAYS}, got {unknown[0]!r}.")
        hours = [int(text) for text in match.groups()]
        wanted = tuple(sorted({DAYS.index(day.lower()) for day in days})) or tuple(range(7))
        return cls(60 * hours[0] + hours[1], 60 * hours[2] + hours[3], wanted)

    def is_open(self, now_s: float, time_zone: str) -> bool:
        """Return whether a device may change now.

        Args:
            now_s: [s since 1970].
            time_zone: of the device, such as Europe/Berlin.
        """
        here = datetime.fromtimestamp(now_s, UTC).astimezone(ZoneInfo(time_zone))
        minute, today = 60 * here.hour + here.minute, here.weekday()
        if self.start_min < self.end_min:
            return today in self.days and self.start_min <= minute < self.end_min
        yesterday = (here - timedelta(days=1)).weekday()
        began_today = today in self.days and minute >= self.start_min
        return began_today or (yesterday in self.days and minute < self.end_min)

    @property
    def words(self) -> str:
        """The window for people."""
        span = "-".join(f"{x // 60:02d}:{x % 60:02d}" for x in (self.start_min, self.end_min))
        days = "" if len(self.days) == len(DAYS) else " " + " ".join(DAYS[d] for d in self.days)
        return f"{span}{days}"


_ALL_DAYS = ", ".join(DAYS)
