"""Progress and tables show text as it is: no markup, no escape sequences."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from persres.jobs.observe.display import progress_bar
from persres.jobs.observe.event_printer import event_printer
from persres.jobs.terminal.consoles import PlainTextColumn, cells, print_line
from persres.pipeline.run.log import RunLog

HOSTILE = "[red]mug[/red] [link=http://evil]x[/link] \x1b[2J\x1b]8;;http://evil\x07 \r\u202e"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=400, force_terminal=True)


def shown_by(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def assert_harmless(text: str) -> None:
    assert "[red]mug[/red] [link=http://evil]x[/link]" in text, "markup is text"
    assert "\x1b[2J" not in text and "\x1b]8" not in text and "\u202e" not in text and "\x07" not in text


def test_line_of_a_console_is_text(console):
    print_line(console, HOSTILE)
    assert_harmless(shown_by(console))
    assert shown_by(console).count("\n") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_event_is_text(console, log_format):
    RunLog(None, "run-1", event_printer(console, log_format)).emit("incident", HOSTILE)
    assert_harmless(shown_by(console))


def test_progress_bar_is_text(console):
    with progress_bar(console, HOSTILE) as update:
        update(1, 2)
    assert_harmless(shown_by(console))
    with Progress(PlainTextColumn("{task.fields[name]}"), console=console) as bar:
        bar.add_task("", total=1, name=HOSTILE)
    assert_harmless(shown_by(console))


def test_cell_of_a_table_is_text(console):
    table = Table()
    table.add_column("")
    table.add_row(*cells([HOSTILE]))
    console.print(table)
    assert_harmless(shown_by(console))
