"""What a person sees: lines off a terminal, a bar on one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from persres.jobs.driver.progress import RunProgress
from persres.jobs.observe.display import DISPLAY_LINE_INTERVAL_S, Pace, RunDisplay, counting, in_words


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_off_a_terminal_a_line_every_ten_seconds():
    file, clock = io.StringIO(), Clock()
    pace = Pace(12, clock=clock)
    with RunDisplay(Console(file=file, width=200), 12, clock=clock) as display:
        for second in range(61):
            clock.now = float(second)
            done = second // 10
            progress = RunProgress(committed=done, failed=1, left=11 - done, underway=0.0, workers=1 if second else 0)
            display.show(progress, pace.seconds_to_go(progress))
    lines = file.getvalue().splitlines()
    assert len(lines) == 60 / DISPLAY_LINE_INTERVAL_S
    assert lines[-1] == "6 done, 1 failed, 5 left, 60 s, about 42 s to go"


def test_before_a_worker_is_there_it_says_so():
    file, clock = io.StringIO(), Clock()
    with RunDisplay(Console(file=file, width=200), 12, clock=clock) as display:
        clock.now = 11.0
        display.show(RunProgress(committed=0, failed=0, left=12, underway=0.0, workers=0))
    assert file.getvalue().strip() == "waiting for a worker, 11 s"


def test_on_a_terminal_a_bar_with_counts_and_time_to_go():
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=True, width=120)
    with RunDisplay(console, 12, clock=clock) as display:
        display.show(RunProgress(committed=0, failed=0, left=12, underway=0.0, workers=2))
        clock.now = 60.0
        display.show(RunProgress(committed=5, failed=1, left=6, underway=0.0, workers=2), 60.0)
        display.print("shard x [not markup] is tried again")
    shown = file.getvalue()
    assert "5 done, 1 failed, 6 left" in shown and "about 60 s to go" in shown
    assert "shard x [not markup] is tried again" in shown


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (None, ""),
        (0.0, ""),
        (30.0, "about 30 s to go"),
        (600.0, "about 10 min to go"),
        (60_000.0, "about 16.7 h to go"),
    ],
)
def test_time_to_go_in_words(left, words):
    assert in_words(left) == words


def test_the_pace_counts_from_the_first_worker_and_parts_of_shards():
    clock = Clock()
    pace = Pace(10, clock=clock)
    assert pace.seconds_to_go(RunProgress(0, 0, 10, 0.0, workers=0)) is None
    clock.now = 100.0
    assert pace.seconds_to_go(RunProgress(0, 0, 10, 0.0, workers=1)) is None
    clock.now = 130.0
    assert pace.seconds_to_go(RunProgress(1, 1, 8, 0.5, workers=1)) == pytest.approx(30 * 7.5 / 2.5)
    assert pace.seconds_to_go(RunProgress(9, 1, 0, 0.0, workers=1)) == 0.0


def test_counting_is_silent_off_a_terminal():
    file = io.StringIO()
    with counting(Console(file=file), "reading") as count:
        count(1, 2)
    assert file.getvalue() == ""
