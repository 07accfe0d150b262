"""The progress that people see: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from persres.jobs.driver.progress import RunProgress
from persres.jobs.observe.display import DISPLAY_LINE_INTERVAL_S, RunDisplay, format_time_to_go, progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_display_off_a_terminal_prints_a_line_every_ten_seconds():
    file, clock = io.StringIO(), Clock()
    with RunDisplay(Console(file=file, width=200), 12, clock=clock) as display:
        for second in range(61):
            clock.now = float(second)
            done = second // 10
            display.on_progress(RunProgress(done, 1, 11 - done, 0.0, 1 if second else 0, seconds_to_go=42.0))
    lines = file.getvalue().splitlines()
    assert len(lines) == 60 / DISPLAY_LINE_INTERVAL_S
    assert lines[-1] == "6 done, 1 failed, 5 left, 60 s, about 42 s to go"


def test_display_without_a_worker_says_so():
    file, clock = io.StringIO(), Clock()
    with RunDisplay(Console(file=file, width=200), 12, clock=clock) as display:
        clock.now = 11.0
        display.on_progress(RunProgress(committed=0, failed=0, left=12, in_progress=0.0, workers=0))
    assert file.getvalue().strip() == "waiting for a worker, 11 s"


def test_display_on_a_terminal_is_a_bar_with_counts_and_time_to_go():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with RunDisplay(console, 12) as display:
        display.on_progress(RunProgress(committed=0, failed=0, left=12, in_progress=0.0, workers=2))
        display.on_progress(RunProgress(5, 1, 6, in_progress=0.0, workers=2, seconds_to_go=60.0))
    shown = file.getvalue()
    assert "5 done, 1 failed, 6 left" in shown and "about 60 s to go" in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, ""),
        (30.0, "about 30 s to go"),
        (600.0, "about 10 min to go"),
        (60_000.0, "about 16.7 h to go"),
    ],
)
def test_time_to_go_is_formatted_in_its_unit(seconds, text):
    assert format_time_to_go(seconds) == text


def test_progress_bar_off_a_terminal_is_silent():
    file = io.StringIO()
    with progress_bar(Console(file=file), "reading") as update:
        update(1, 2)
    assert file.getvalue() == ""
