"""What a case of the corpus is: an input, how it is laid into a workplace, and how the command has to end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..support.s3_server import S3Server
from .workplace import Workplace

Arrange = Callable[[Workplace], Sequence[str]]
"""Lays the input into a workplace and returns the command line that meets it."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """One case.

    Attributes:
        name: what the input is, in words.
        arrange: lays it down.
        code: the exit code it has to end with.
        says: what the message has to contain.
        on_s3: the catalog is in a bucket of the S3 server.
        around: what else is wrong while the command runs: a context, made of the workplace and the server.
        slow: it takes longer than the tests that are run all the time may.
    """

    name: str
    arrange: Arrange
    code: int
    says: tuple[str, ...]
    on_s3: bool = False
    around: Callable[[Workplace, S3Server], AbstractContextManager[object]] | None = None
    slow: bool = False

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:60]

    def run(self, place: Workplace, server: S3Server) -> Ending:
        """Lay the input down and run the command that meets it."""
        arguments = self.arrange(place)
        before = place.commits()
        with self.around(place, server) if self.around else nullcontext():
            outcome = place.run(arguments)
        return Ending(outcome.code, without_place(outcome.text, place), place.commits() != before)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a case ended: `text` is all that was printed, without the workplace's own path."""

    code: int
    text: str
    committed: bool

    @property
    def message(self) -> str:
        """The one line that tells a person what is wrong and what to do."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        telling = [line for line in lines if "Fix:" in line] or lines[-1:]
        return telling[0].removeprefix("persres-batch: ")


def without_place(text: str, place: Workplace) -> str:
    """`text` without what is another every time: the workplace's folder, the run's name, the time of day."""
    text = text.replace(f"{place.folder}/", "").replace(str(place.folder), ".").replace(str(place.model), "model")
    text = re.sub(r"\b\d{8}T\d{6}Z-[0-9a-f]{6}\b(?<!000000)", "<run>", text)
    text = re.sub(r"/probe/[0-9a-f]+", "/probe/<name>", text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "<when>", text)
