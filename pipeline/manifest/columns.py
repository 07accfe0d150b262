"""A manifest's columns, their types, and the problems of a file's columns."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

import pyarrow as pa
import pyarrow.types as pt

from ...core.errors import Problem

REQUIRED_COLUMNS = ("concept_id", "macro_class", "reference_images")
OPTIONAL_COLUMNS = ("prompts", "masks", "seed", "metadata")
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS


def column_problems(schema: pa.Schema) -> Iterator[Problem]:
    """A problem for each manifest column of an Arrow schema that is duplicated or has the wrong type."""
    for name, count in Counter(schema.names).items():
        if name in COLUMNS and count > 1:
            yield Problem(f"the column {name} appears {count} times", "keep one", "manifest", column=name)
        elif name in COLUMNS:
            kind = schema.field(name).type
            expected, fits = _TYPES[name]
            if not fits(kind):
                reason, fix = f"the column is not {expected}", f"cast it to {expected}"
                yield Problem(reason, fix, "manifest", column=name, value=str(kind))


def missing_columns(names: Collection[str]) -> Iterator[Problem]:
    """A problem for each required column that is not among `names`."""
    for column in REQUIRED_COLUMNS:
        if column not in names:
            near = difflib.get_close_matches(column, [name for name in names if name not in COLUMNS], n=1)
            fix = f"rename the column {near[0]!r} to {column!r}" if near else f"add the column {column!r}"
            yield Problem("the column is missing", fix, "manifest", column=column)


def unused_columns(names: Iterable[str]) -> Iterator[str]:
    """A warning for each name that is not a manifest column."""
    for name in names:
        if name not in COLUMNS and not name.startswith("__index_level_"):  # pandas' row labels
            yield f"the column {name!r} is not used; a manifest's columns are {', '.join(COLUMNS)}"


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)


def _is_list(kind: pa.DataType, item: Callable[[pa.DataType], bool]) -> bool:
    layouts = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view)
    return any(is_layout(kind) for is_layout in layouts) and (pt.is_null(kind.value_type) or item(kind.value_type))


def _is_source(kind: pa.DataType) -> bool:
    """A URI, or the struct that Hugging Face `datasets` writes for an image."""
    if not pt.is_struct(kind):
        return _is_text(kind)
    return {"bytes", "path"} & {kind.field(index).name for index in range(kind.num_fields)} != set()


def _optional(fits: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: pt.is_null(kind) or fits(kind)


_IMAGES = "a list of strings or of structs {bytes, path}"
_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "concept_id": ("a string", _is_text),
    "macro_class": ("a string", _is_text),
    "reference_images": (_IMAGES, lambda kind: _is_list(kind, _is_source)),
    "prompts": ("a list of strings", _optional(lambda kind: _is_list(kind, _is_text))),
    "masks": (_IMAGES, _optional(lambda kind: _is_list(kind, _is_source))),
    "seed": ("an integer", _optional(lambda kind: pt.is_integer(kind) or pt.is_floating(kind))),
    "metadata": ("a map of strings", _optional(lambda kind: pt.is_map(kind) or pt.is_struct(kind))),
}
