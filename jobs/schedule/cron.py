"""Cron expressions that mean the same to cron, systemd and Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from cronsim import CronSim, CronSimError

from ...core.errors import InvalidInput

FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
EXAMPLE = "give five fields such as '0 3 * * *' (every day at 03:00) or '30 22 * * MON-FRI'"

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_NAMES = {"month": _MONTHS, "day-of-week": tuple(name.upper() for name in _WEEKDAYS)}
_ANY_DATE = datetime(2000, 1, 1)  # cronsim needs one to parse an expression


@dataclass(frozen=True, slots=True)
class CronSchedule:
    """A cron expression of five fields, and the values of each field.

    Attributes:
        either_day: whether day-of-month and day-of-week are both restricted; then either one has to match.
    """

    expression: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool

    @classmethod
    def parse(cls, text: str) -> CronSchedule:
        """Parse a cron expression. What the three schedulers treat differently is refused.

        Raises:
            InvalidInput: it is no cron expression, never matches, or means different things to different programs.
        """
        fields = text.split()
        if len(fields) != len(FIELDS):
            raise _invalid(text, f"it has {len(fields)} fields", EXAMPLE)
        for name, field in zip(FIELDS, fields, strict=True):
            _check_portable(text, name, field.upper())
        for one, other in ((2, 4), (4, 2)):
            if fields[one].startswith("*/") and fields[other] != "*":
                reason = f"{FIELDS[one]} {fields[one]!r} beside {FIELDS[other]} {fields[other]!r}"
                raise _invalid(text, f"{reason} means 'and' to some programs and 'or' to others", "list the days")
        try:
            parsed = CronSim(text, _ANY_DATE)
        except CronSimError as error:
            name = str(error).removeprefix("Bad ")
            reason = f"{name} {fields[FIELDS.index(name)]!r} is not possible" if name in FIELDS else str(error)
            raise _invalid(text, reason, EXAMPLE) from None
        weekdays = frozenset(day % 7 for day in parsed.weekdays if isinstance(day, int))
        if "7" in fields[4]:  # Sunday for cron, invalid for Kubernetes
            fields[4] = ",".join(map(str, sorted(weekdays)))
        return cls(
            " ".join(fields),
            frozenset(parsed.minutes),
            frozenset(parsed.hours),
            frozenset(parsed.days),
            frozenset(parsed.months),
            weekdays,
            either_day=not parsed.day_and,
        )

    def next_times(self, after: datetime, count: int = 3) -> list[datetime]:
        """The next times after `after`, in its time zone; without one, in wall-clock time."""
        return list(islice(CronSim(self.expression, after), count))

    def on_calendar(self) -> tuple[str, ...]:
        """The equivalent values of systemd's OnCalendar, which fires if any of them matches."""
        months, days = _listed(self.months, range(1, 13)), _listed(self.days, range(1, 32))
        clock = f"{_listed(self.hours, range(24))}:{_listed(self.minutes, range(60))}:00"
        weekdays = "" if len(self.weekdays) == 7 else ",".join(_WEEKDAYS[day] for day in sorted(self.weekdays)) + " "
        if self.either_day:
            return f"*-{months}-{days} {clock}", f"{weekdays}*-{months}-* {clock}"
        return (f"{weekdays}*-{months}-{days} {clock}",)


def _check_portable(text: str, name: str, field: str) -> None:
    """Refuse what only some programs support, such as L and #, or interpret differently."""
    if not re.fullmatch(r"[0-9A-Z*,/-]+", field):
        raise _invalid(text, f"{name} {field!r} has a character that no field allows", EXAMPLE)
    for word in re.findall(r"[A-Z]+", field):
        if word not in _NAMES.get(name, ()):
            raise _invalid(text, f"{name} {field!r}: {word!r} is not supported by every program", EXAMPLE)
    for term in field.split(","):
        if re.match(r"[0-9A-Z]+/", term):
            start, step = term.split("/", 1)
            last = {"minute": 59, "hour": 23, "day-of-month": 31, "month": 12, "day-of-week": 6}[name]
            fix = f"give the range's end: {start}-{last}/{step}"
            raise _invalid(text, f"{name} {term!r} is a range without an end", fix)


def _listed(values: Collection[int], every: range) -> str:
    return "*" if len(values) == len(every) else ",".join(f"{value:02d}" for value in sorted(values))


def _invalid(text: str, reason: str, fix: str) -> InvalidInput:
    return InvalidInput(f"cron expression {text!r}: {reason}", fix=fix)
