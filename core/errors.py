"""The kinds of errors, and what each one means for the run.

`InvalidInput` stops a run before it starts, `ConceptError` ends one concept and never its shard-mates, `StoreError` is
an infrastructure error and is retried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .exit_codes import ExitCode

Stage = Literal["load", "train", "render", "score", "quarantine"]


class PersresError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: what is wrong, with the name and the value of the thing.
        fix: what the user can do about it.
        concept_id: the concept concerned, if any.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, fix: str | None = None, concept_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.concept_id = concept_id

    def __str__(self) -> str:
        where = f"concept {self.concept_id}: " if self.concept_id else ""
        return f"{where}{self.message}" + (f". Fix: {self.fix}" if self.fix else "")

    def __reduce__(self):  # Ray pickles exceptions; the default cannot rebuild keyword-only arguments
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[PersresError], args: tuple, state: dict) -> PersresError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInput(PersresError):
    """The command, the manifest or the run spec cannot be used; nothing was started."""

    exit_code = ExitCode.INVALID_INPUT


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a manifest, with its row and column.

    `level` is "manifest" if the problem makes the whole manifest unusable (a missing column, a duplicate id), "concept"
    if it affects one row only.
    """

    reason: str
    fix: str
    level: Literal["manifest", "concept"] = "concept"
    row: int | None = None
    concept_id: str | None = None
    column: str | None = None
    value: str = ""


class ManifestInvalid(InvalidInput):
    """A manifest with problems; `problems` lists all of them."""

    def __init__(self, message: str, problems: tuple[Problem, ...], *, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.problems = problems


class ConceptError(PersresError):
    """One concept cannot be trained or rendered. An application error: a retry would fail the same way."""

    def __init__(self, message: str, *, stage: Stage, fix: str | None = None, concept_id: str | None = None) -> None:
        super().__init__(message, fix=fix, concept_id=concept_id)
        self.stage: Stage = stage


class CatalogHeld(PersresError):
    """Another run holds the catalog's lease."""

    exit_code = ExitCode.CATALOG_HELD


class StoreError(PersresError):
    """An operation of the object store (or the disk) failed. An infrastructure error: a retry may succeed.

    Args:
        reason: the store's error in short and without secrets, such as "HTTP 403".
    """

    def __init__(
        self, message: str, *, fix: str | None = None, concept_id: str | None = None, reason: str = ""
    ) -> None:
        super().__init__(message, fix=fix, concept_id=concept_id)
        self.reason = reason


class StoreUnavailable(StoreError):
    """The store still failed with a transient error when the retry time was over."""


class StoreObjectMissing(StoreError):
    """The object does not exist."""


class StoreRefused(StoreError):
    """The store refused the operation, as it would refuse a retry: no permission, no such bucket, no space."""


@dataclass(frozen=True, slots=True)
class ConceptFailure:
    """A concept without a result: at which stage it failed, why, and what the user can do about it."""

    concept_id: str
    stage: Stage
    reason: str
    fix: str = ""

    @classmethod
    def of(cls, concept_id: str, error: ConceptError) -> ConceptFailure:
        return cls(concept_id, error.stage, error.message, error.fix or "")
