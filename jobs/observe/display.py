"""What a person sees while a run goes on: a progress bar on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...pipeline.timing import DISPLAY_LINE_INTERVAL_S
from ..driver.progress import RunProgress


class Pace:
    """When a run is likely to be done, by how fast it was since its first worker had loaded its model.

    Args:
        total: concepts that the run has to do.
        clock: seconds that only grow; tests bring their own.
    """

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._first_work: float | None = None

    def seconds_to_go(self, progress: RunProgress) -> float | None:
        """How long it is likely to take from now on; None before there is anything to judge by. Ask it all the time."""
        now = self._clock()
        if self._first_work is None and progress.workers:
            self._first_work = now  # loading models says nothing about the speed of the work
        if not progress.left:
            return 0.0
        done = progress.committed + progress.failed + progress.underway
        if self._first_work is None or done <= 0 or now <= self._first_work:
            return None
        return (now - self._first_work) * max(0.0, self._total - done) / done


def in_words(left: float | None) -> str:
    """Seconds to go in words, such as "about 4 min to go"; empty where there is nothing to say."""
    if not left:
        return ""
    if left < 90:
        return f"about {max(1, round(left))} s to go"
    if left < 5400:
        return f"about {round(left / 60)} min to go"
    return f"about {left / 3600:.1f} h to go"


def counts(progress: RunProgress) -> str:
    """Such as "5 done, 1 failed, 6 left"."""
    return f"{progress.committed} done, {progress.failed} failed, {progress.left} left"


class RunDisplay:
    """Shows a run on `console`; a context manager. Incidents are printed above the bar.

    Args:
        total: concepts that the run has to do.
        clock: seconds that only grow; tests bring their own.
    """

    def __init__(self, console: Console, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._total, self._clock = console, total, clock
        self._started = self._last_line = clock()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]concepts"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[to_go]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("waiting for a worker", total=self._total, to_go="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: RunProgress, seconds_to_go: float | None = None) -> None:
        """Bring the display up to date; off a terminal this prints at most every `DISPLAY_LINE_INTERVAL_S` seconds."""
        now, to_go = self._clock(), in_words(seconds_to_go)
        done = progress.committed + progress.failed + progress.underway
        text = counts(progress) if progress.workers else "waiting for a worker"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text, to_go=to_go)
        elif now - self._last_line >= DISPLAY_LINE_INTERVAL_S:
            self._last_line = now
            self.print(", ".join([text, f"{now - self._started:.0f} s", *([to_go] if to_go else [])]))

    def print(self, text: str) -> None:
        """One line, above the bar where there is one."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)


@contextmanager
def counting(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a plain count, such as digested rows; yields the function to call with (done, total).

    It stays out of sight for counts that end within a second, and off a terminal.
    """
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
