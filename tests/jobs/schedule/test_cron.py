"""Cron expressions: what is refused, when they match, and that systemd's calendar means the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import datetime, timedelta
from itertools import islice

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.jobs.schedule.cron import CronSchedule

MONDAY = datetime(2026, 11, 23, 4, 30)
DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def test_next_times_follow_the_local_clock():
    times = CronSchedule.parse("0 3 * * *").next_times(MONDAY)
    assert times == [datetime(2026, 11, day, 3, 0) for day in (24, 25, 26)]


@pytest.mark.parametrize(
    ("expression", "calendar"),
    [
        ("0 3 * * *", ("*-*-* 03:00:00",)),
        ("*/15 8-10 * * MON-FRI", ("Mon,Tue,Wed,Thu,Fri *-*-* 08,09,10:00,15,30,45:00",)),
        ("30 22 1,15 * *", ("*-*-01,15 22:30:00",)),
        ("0 0 1 JAN,JUL *", ("*-01,07-01 00:00:00",)),
        ("0 6 * * 0", ("Sun *-*-* 06:00:00",)),
        ("0 6 * * 7", ("Sun *-*-* 06:00:00",)),
        ("0 3 1 * 1", ("*-*-01 03:00:00", "Mon *-*-* 03:00:00")),  # the first of the month, and every Monday
        ("* * * * *", ("*-*-* *:*:00",)),
    ],
)
def test_systemd_calendar_means_the_same(expression, calendar):
    assert CronSchedule.parse(expression).on_calendar() == calendar


def test_sunday_is_written_as_kubernetes_expects():
    assert CronSchedule.parse("0 6 * * 5-7").expression == "0 6 * * 0,5,6"
    assert CronSchedule.parse("0 7 17 7 MON").expression == "0 7 17 7 MON"


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("", "0 fields"),
        ("0 3 * *", "4 fields"),
        ("0 0 3 * * *", "6 fields"),
        ("@daily", "1 fields"),
        ("60 3 * * *", "minute '60'"),
        ("0 24 * * *", "hour '24'"),
        ("0 3 32 * *", "day-of-month '32'"),
        ("0 3 * 13 *", "month '13'"),
        ("0 3 * * 8", "day-of-week '8'"),
        ("0 3 * * FUNDAY", "'FUNDAY'"),
        ("0 3 L * *", "'L'"),
        ("0 3 * * 1#2", "'1#2'"),
        ("0 3 ? * *", "'?'"),
        ("*/0 3 * * *", "minute '*/0'"),
        ("5/15 3 * * *", "5-59/15"),
        ("30-10 3 * * *", "minute '30-10'"),
        ("0 3 */2 * 1", "'and' to some programs and 'or' to others"),
        ("0 3 30 2 *", "day-of-month '30'"),
        ("0 3 * * *\n* * * * *", "10 fields"),
    ],
)
def test_expression_that_not_all_schedulers_understand_is_refused(expression, named):
    with pytest.raises(InvalidInput) as refused:
        CronSchedule.parse(expression)
    assert named in str(refused.value)
    assert refused.value.fix


def field(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    ranges = st.tuples(value, value).map(lambda ends: f"{min(ends)}-{max(ends)}")
    steps = st.tuples(st.just("*") | ranges, st.integers(1, 20)).map(lambda term: f"{term[0]}/{term[1]}")
    return st.just("*") | st.lists(value.map(str) | ranges, min_size=1, max_size=3).map(",".join) | steps


EXPRESSIONS = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7)).map(" ".join)


def calendar_allows(calendar: str, moment: datetime) -> bool:
    """Evaluate a calendar as systemd.time(7) describes, for the form that we write."""
    match = re.fullmatch(r"(?:([A-Z][\w,]+) )?\*-(\S+)-(\S+) (\S+):(\S+):00", calendar)
    assert match, calendar
    weekdays, *fields = match.groups()
    if weekdays and DAY_NAMES[moment.weekday()] not in weekdays.split(","):
        return False
    values = (moment.month, moment.day, moment.hour, moment.minute)
    return all(text == "*" or value in map(int, text.split(",")) for text, value in zip(fields, values, strict=True))


def parse_or_skip(expression: str) -> CronSchedule | None:
    try:
        return CronSchedule.parse(expression)
    except InvalidInput as refused:
        assert "'and' to some" in str(refused)
        return None


@given(EXPRESSIONS, st.datetimes(datetime(2024, 1, 1), datetime(2032, 1, 1)))
def test_systemd_calendar_matches_when_the_expression_does(expression, moment):
    schedule = parse_or_skip(expression)
    if schedule is None:
        return
    moment = moment.replace(second=0, microsecond=0)
    due = next(CronSim(expression, moment - timedelta(minutes=1))) == moment
    for when in (moment, schedule.next_times(moment, 1)[0]):
        expected = due if when == moment else True
        assert any(calendar_allows(calendar, when) for calendar in schedule.on_calendar()) == expected


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
@settings(max_examples=25)
@given(EXPRESSIONS)
def test_systemd_parses_the_calendar(expression):
    schedule = parse_or_skip(expression)
    if schedule is None or schedule.either_day:
        return  # systemd-analyze prints a list for each of two calendars
    listed = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=4", f"--base-time={MONDAY} UTC", *schedule.on_calendar()],
        capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin", "SYSTEMD_COLORS": "0"},
    ).stdout  # fmt: skip
    times = [
        datetime.fromisoformat(text) for text in re.findall(r": \w{3} (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC", listed)
    ]
    assert times == list(islice(CronSim(expression, MONDAY), 4))
