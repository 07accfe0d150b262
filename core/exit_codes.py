"""What the exit codes of `persres-batch` mean. Errors, commands, `--help` and the docs all take them from here."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a command. Signals end a process with 128 plus their number, as shells report it."""

    OK = 0
    FAILED = 1
    INVALID_INPUT = 2
    CONCEPTS_FAILED = 3
    CATALOG_HELD = 4
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """One line for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done; every concept is committed or was current",
    ExitCode.FAILED: "the run failed, `verify` found faults, or an unexpected error",
    ExitCode.INVALID_INPUT: "the command, the manifest or the run spec cannot be used; nothing was started",
    ExitCode.CONCEPTS_FAILED: "done, with failed concepts; the others are committed",
    ExitCode.CATALOG_HELD: "another run holds the catalog",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C (SIGINT)",
    ExitCode.TERMINATED: "stopped by SIGTERM, or by `persres-batch stop`",
}
