"""A run spec as YAML: read with errors that name setting, value and fix; written with a comment for every setting.

The functions are handed the model (`RunSpec`), whose fields give names, bounds and descriptions.
"""

from __future__ import annotations

import difflib
import inspect
import os
import reprlib
import textwrap
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import fsspec
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ...core.errors import InvalidInput
from ...core.settings import Settings

_MAX_BYTES = 1 << 20  # a spec with every setting has a hundred lines; YAML is slow to parse

_NO_BREAK = "\xa0"  # a space at which lines are not wrapped

_Spec = TypeVar("_Spec", bound=Settings)


def load_yaml(path: str | os.PathLike[str], model: type[_Spec]) -> _Spec:
    """Read a run spec from a YAML file (a path or fsspec URI).

    Raises:
        InvalidInput: the file cannot be read, or has unknown settings or invalid values; the message names all of them.
    """
    name = os.fspath(path)
    try:
        with fsspec.open(name, "rb") as file:
            text = file.read(_MAX_BYTES + 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, ImportError, ValueError) as error:
        fix = "check the path; `persres-batch init` writes a new run spec"
        raise InvalidInput(f"run spec {name}: cannot be read: {error}", fix=fix) from error
    if len(text) > _MAX_BYTES:
        raise InvalidInput(f"run spec {name}: more than {_MAX_BYTES} bytes", fix="give a run spec's path")
    return parse_yaml(text, model, name=name)


def parse_yaml(text: str | bytes, model: type[_Spec], *, name: str) -> _Spec:
    """Read a run spec from YAML text.

    Args:
        name: what error messages call the text.

    Raises:
        InvalidInput: as `load_yaml`.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except RecursionError:
        reason = f"run spec {name}: not valid YAML: nested too deep"
        raise InvalidInput(reason, fix="write sections of settings, one level deep") from None
    except Exception as error:  # constructors of dates, numbers and tagged values raise nearly every kind
        reason = f"run spec {name}: not valid YAML: {_yaml_error(error)}"
        raise InvalidInput(reason, fix="correct it, or write a new one with `persres-batch init`") from error
    if not isinstance(values, dict | None):
        reason = f"run spec {name}: expected settings, found {short_repr(values)}"
        raise InvalidInput(reason, fix="write lines of 'name: value'")
    try:
        return model.model_validate(values or {})
    except ValidationError as error:
        raise _invalid_settings(error, model, name) from None


def format_yaml(settings: Settings) -> str:
    """All settings as YAML that `parse_yaml` reads back as an equal object."""
    return _dump(settings.model_dump(mode="json"))


def format_commented_yaml(settings: Settings, *, commented_out: Collection[str] = ()) -> str:
    """As `format_yaml`, each setting under its description.

    Args:
        commented_out: settings of the top level whose lines are comments, because their default depends on others.
    """
    head = "# A run spec for persres-batch. Settings that are left out have their default values.\n\n"
    return head + "\n".join(_commented_lines(settings, commented_out)) + "\n"


class _Loader(yaml.SafeLoader):
    """A safe loader that rejects duplicate keys, of which YAML would silently take the last, and keys that are no
    strings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise yaml.constructor.ConstructorError(None, None, "a setting's name must be a string", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_error(error: Exception) -> str:
    """The first line of a YAML error, with the line and column that it names."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    message = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return where + (str(message).splitlines() or [type(error).__name__])[0]


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # indent list items under their key


def _dump(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _commented_lines(settings: Settings, commented_out: Collection[str] = ()) -> Iterator[str]:
    """The lines of a group of settings; a nested group is an indented section."""
    values = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from ["", *_comment((inspect.getdoc(type(value)) or "").split("\n\n")[0]), f"{name}:"]
            yield from (textwrap.indent(line, "  ") for line in _commented_lines(value))
            continue
        allowed = _allowed_values(field).replace(" ", _NO_BREAK)
        yield from _comment(" ".join(filter(None, (field.description, allowed))))
        lines = _dump({name: values[name]}).rstrip("\n").split("\n")
        yield from (f"# {line}" for line in lines) if name in commented_out else lines


def _comment(text: str) -> list[str]:
    lines = textwrap.wrap(text, 110, break_long_words=False, break_on_hyphens=False)
    return [f"# {line}".replace(_NO_BREAK, " ") for line in lines]


def _allowed_values(field: FieldInfo) -> str:
    """The choices and bounds that a field declares, such as "[ddim | dpmsolver++]", "[>= 1, <= 1000]", or ""."""
    choices = [*_choices(field.annotation), ", ".join(_bounds([*field.metadata, *_nested_metadata(field.annotation)]))]
    allowed = " | ".join(filter(None, choices))
    return f"[{allowed}]" if allowed else ""


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for argument in get_args(annotation):
            yield from _choices(argument)


def _nested_metadata(annotation: Any) -> Iterator[Any]:
    """The constraints of a union's members, such as `Literal["auto"] | Annotated[int, Field(ge=1)]`."""
    for argument in get_args(annotation):
        if get_origin(argument) is Annotated:
            yield from (one for field in get_args(argument)[1:] for one in getattr(field, "metadata", ()))


def _bounds(constraints: list[Any]) -> Iterator[str]:
    for constraint in constraints:
        for symbol, attribute in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt")):
            if (limit := getattr(constraint, attribute, None)) is not None:
                yield f"{symbol} {limit}"


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 4, 4, 80, 80, 80


def short_repr(value: Any) -> str:
    """`repr(value)`, shortened: a few lines of YAML with aliases can make a value of any size."""
    return _REPR.repr(value)


def _invalid_settings(error: ValidationError, model: type[Settings], name: str) -> InvalidInput:
    """All of pydantic's errors as one, each with setting, value, reason and fix."""
    errors = [_explain(detail, model) for detail in error.errors(include_url=False)]
    if len(errors) == 1:
        reason, fix = errors[0]
        return InvalidInput(f"run spec {name}: {reason}", fix=fix)
    lines = "".join(f"\n  {reason}. Fix: {fix}" for reason, fix in errors)
    return InvalidInput(f"run spec {name} has {len(errors)} errors:{lines}\n")


def _explain(detail: ErrorDetails, model: type[Settings]) -> tuple[str, str]:
    """The reason and the fix of one of pydantic's errors."""
    location = detail["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if detail["type"] == "extra_forbidden":
        valid = sorted(_group_at(location[:-1], model).model_fields)
        near = difflib.get_close_matches(str(location[-1]), valid, n=1)
        fix = (f"did you mean {near[0]!r}? " if near else "") + f"valid names: {', '.join(valid)}"
        return f"there is no setting {key!r}", fix
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message, "change it; `persres-batch init` explains every setting"
    field = _field_at(location, model)
    reason = f"{key}: {short_repr(detail['input'])} is not accepted: {message[:1].lower()}{message[1:]}"
    if field is None or not field.description:
        return reason, "give a section of settings"
    return reason, " ".join(filter(None, ("give", _allowed_values(field) or "another value", f"({field.description})")))


def _group_at(location: tuple[str | int, ...], model: type[Settings]) -> type[Settings]:
    group = model
    for part in location:
        field = group.model_fields.get(str(part))
        if field and inspect.isclass(field.annotation) and issubclass(field.annotation, Settings):
            group = field.annotation
    return group


def _field_at(location: tuple[str | int, ...], model: type[Settings]) -> FieldInfo | None:
    names = [part for part in location if isinstance(part, str)]
    return _group_at(tuple(names[:-1]), model).model_fields.get(names[-1]) if names else None
