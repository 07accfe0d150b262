"""Progress for people: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TimeElapsedColumn, TimeRemainingColumn

from ...core.timing import DISPLAY_LINE_INTERVAL_S
from ..driver.observer import RunObserver
from ..driver.progress import RunProgress
from ..terminal.consoles import PlainTextColumn, print_line


def format_time_to_go(seconds: float | None) -> str:
    """Such as "about 4 min to go"; empty if the time is unknown or 0."""
    if not seconds:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s to go"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min to go"
    return f"about {seconds / 3600:.1f} h to go"


def format_counts(progress: RunProgress) -> str:
    """Such as "5 done, 1 failed, 6 left"."""
    return f"{progress.committed} done, {progress.failed} failed, {progress.left} left"


class RunDisplay(RunObserver):
    """Shows the progress of a run on `console`, as a context manager.

    Args:
        total: the number of concepts of the run's shards.
        clock: monotonic seconds; tests pass their own.
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
                PlainTextColumn("concepts", style="bold"),
                BarColumn(),
                PlainTextColumn("{task.description}"),
                TimeElapsedColumn(),
                PlainTextColumn("{task.fields[to_go]}"),
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

    def on_progress(self, progress: RunProgress) -> None:
        now, to_go = self._clock(), format_time_to_go(progress.seconds_to_go)
        text = format_counts(progress) if progress.workers else "waiting for a worker"
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.completed, description=text, to_go=to_go)
        elif now - self._last_line >= DISPLAY_LINE_INTERVAL_S:
            self._last_line = now
            line = ", ".join(filter(None, (text, f"{now - self._started:.0f} s", to_go)))
            print_line(self._console, line)


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, if `console` is a terminal. Yields the function that updates it, called with (done, total)."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (PlainTextColumn("{task.description}"), BarColumn(), PlainTextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
