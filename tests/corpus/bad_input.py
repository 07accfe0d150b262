"""A case of the corpus: a bad input, the command that reads it, and the expected result."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from ..support.s3_server import S3Server
from .sandbox import Sandbox

SetUp = Callable[[Sandbox], Sequence[str]]
"""Writes the input into a sandbox and returns the command line that reads it."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """One case.

    Attributes:
        name: a description of the input.
        set_up: writes it into a sandbox.
        code: the expected exit code.
        expected: texts that the output must contain.
        on_s3: the catalog is in a bucket of the S3 server.
        context: makes a context, from the sandbox and the server, in which the command runs.
        slow: it is not part of `make test`.
    """

    name: str
    set_up: SetUp
    code: int
    expected: tuple[str, ...]
    on_s3: bool = False
    context: Callable[[Sandbox, S3Server], AbstractContextManager[object]] | None = None
    slow: bool = False

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:60]

    def run(self, sandbox: Sandbox, server: S3Server) -> CaseResult:
        """Write the input and run the command that reads it."""
        arguments = self.set_up(sandbox)
        before = sandbox.commits()
        with self.context(sandbox, server) if self.context else nullcontext():
            result = sandbox.run(arguments)
        return CaseResult(result.code, without_variable_parts(result.text, sandbox), sandbox.commits() != before)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result of a case; `text` is its output, `without_variable_parts`."""

    code: int
    text: str
    committed: bool

    @property
    def message(self) -> str:
        """The line with the error and its fix."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        with_fix = [line for line in lines if "Fix:" in line] or lines[-1:]
        return with_fix[0].removeprefix("persres-batch: ")


def without_variable_parts(text: str, sandbox: Sandbox) -> str:
    """`text` without what differs each time: the sandbox's folder, run ids, times."""
    text = text.replace(f"{sandbox.folder}/", "").replace(str(sandbox.folder), ".").replace(str(sandbox.model), "model")
    text = re.sub(r"\b\d{8}T\d{6}Z-[0-9a-f]{6}\b(?<!000000)", "<run>", text)
    text = re.sub(r"/probe/[0-9a-f]+", "/probe/<name>", text)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "<when>", text)
