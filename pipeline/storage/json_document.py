"""JSON objects of a catalog, parsed in one way: whatever bytes they hold, the result is a typed value or one error.

Nesting too deep for a parser, text that is not UTF-8, numbers that are not finite and surrogates without their partner
are damage like a missing bracket; so is a value of another type than the document has.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ...core.errors import StoreError

T = TypeVar("T")

_MAX_INTEGER = 1 << 63
_PART_OF_REASON = 120  # characters


class DamagedDocument(StoreError):
    """A JSON object of a catalog that cannot be used as what it should be.

    Attributes:
        is_json: whether it is whole JSON, with another content than it should have.
    """

    def __init__(self, message: str, *, fix: str, is_json: bool) -> None:
        super().__init__(message, fix=fix)
        self.is_json = is_json


def parse_json(data: bytes | str, *, name: str, fix: str) -> Any:
    """The value of a JSON text, in which every number is finite and every integer has at most 64 bits.

    Args:
        name: the object, as a person would type it, for the message.
        fix: what to do about a damaged one.

    Raises:
        DamagedDocument: it is not such a text.
    """
    try:
        value = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, str(error) or type(error).__name__, fix, is_json=False) from None
    if (number := _impossible_number(value)) is not None:
        raise _damaged(name, f"it holds the number {number}", fix, is_json=True)
    return value


def parse_document(data: bytes | str, kind: type[T], *, name: str, fix: str) -> T:
    """A JSON text as a dataclass, a pydantic model or another type; unknown fields are ignored.

    Args:
        kind: with the types of its fields; a later version may have added fields that it lacks.
        name: the object, as a person would type it, for the message.
        fix: what to do about a damaged one.

    Raises:
        DamagedDocument: it is no JSON, or not of this type; the message names the first field that is wrong.
    """
    return as_document(parse_json(data, name=name, fix=fix), kind, name=name, fix=fix)


def as_document(value: Any, kind: type[T], *, name: str, fix: str) -> T:
    """As `parse_document`, for a value that `parse_json` gave."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        reason = f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise _damaged(name, reason, fix, is_json=True) from None


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _impossible_number(value: Any) -> str | None:
    """The first number in `value` that is not finite or longer than 64 bits; without recursion."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
        elif isinstance(one, float) and not math.isfinite(one):
            return str(one)
        elif isinstance(one, int) and abs(one) >= _MAX_INTEGER:
            return f"{str(one)[:20]}…"
    return None


def _damaged(name: str, reason: str, fix: str, *, is_json: bool) -> DamagedDocument:
    return DamagedDocument(f"{name} is damaged ({reason[:_PART_OF_REASON]})", fix=fix, is_json=is_json)
