"""Rich's consoles, tables and progress bars, with text that is neither markup nor obeyed by a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import Task, TextColumn
from rich.table import Table
from rich.text import Text

from ...core.terminal_text import terminal_line


class PlainTextColumn(TextColumn):
    """A column of a progress bar whose text is no markup."""

    def render(self, task: Task) -> Text:
        return Text(terminal_line(self.text_format.format(task=task)), style=self.style)


def error_console() -> Console:
    """A console on standard error, where progress is shown."""
    return Console(stderr=True)


def silent_console() -> Console:
    """A console that shows nothing."""
    return Console(quiet=True, force_terminal=False)


def print_line(console: Console, text: str) -> None:
    """Print `text` as one line, without wrapping it."""
    console.print(Text(terminal_line(text)), highlight=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    Console().print(table, highlight=False)


def cells(texts: Iterable[str]) -> list[Text]:
    """Texts as the cells of a table's row."""
    return [Text(terminal_line(text)) for text in texts]
