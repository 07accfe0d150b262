"""The kinds of things that go wrong, and what each one means for the run.

A `PersresError` always says what to do next. Its subclasses differ in who is to act: `InvalidInput` stops a run before
it starts, `ConceptError` ends one concept and never its shard-mates, `StoreError` is infrastructure worth another try.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Stage = Literal["load", "train", "render", "score", "quarantine"]


class PersresError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: what is wrong, naming the thing and its value.
        fix: what the reader should do about it.
        concept_id: the concept it is about, where there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str | None = None, concept_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.concept_id = concept_id

    def __str__(self) -> str:
        where = f"concept {self.concept_id}: " if self.concept_id else ""
        return f"{where}{self.message}" + (f". Fix: {self.fix}" if self.fix else "")

    def __reduce__(self):  # Ray carries exceptions between processes; keyword-only arguments need this
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[PersresError], args: tuple, state: dict) -> PersresError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInput(PersresError):
    """The manifest or the run spec as a whole cannot be used; nothing was started."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a manifest, addressed so that a person can find and mend it.

    `level` is "manifest" when no concept of the manifest can be trusted (a missing column, a duplicate id),
    "concept" when only this row is affected.
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
    """One concept cannot be done. An application error: trying again would end the same way."""

    def __init__(self, message: str, *, stage: Stage, fix: str | None = None, concept_id: str | None = None) -> None:
        super().__init__(message, fix=fix, concept_id=concept_id)
        self.stage: Stage = stage


class CatalogHeld(PersresError):
    """Another run holds the catalog's lease."""

    exit_code = 4


class StoreError(PersresError):
    """The object store (or disk) did not do what was asked: infrastructure, worth another try."""


class StoreUnavailable(StoreError):
    """The store was asked again for as long as patience allows, and did not answer as it should."""


class StoreRefused(StoreError):
    """The store says no for a reason that asking again does not change: no permission, no such bucket, no space."""


@dataclass(frozen=True, slots=True)
class ConceptFailure:
    """A concept that ended without a result, as a row: which, where, why, and what to do about it."""

    concept_id: str
    stage: Stage
    reason: str
    fix: str = ""

    @classmethod
    def of(cls, concept_id: str, error: ConceptError) -> ConceptFailure:
        return cls(concept_id, error.stage, error.message, error.fix or "")
