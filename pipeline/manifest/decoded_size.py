"""How large an Arrow array is once its values are Python objects, and that conversion with equal values shared.

Dictionaries and run lengths let a file of a few kilobytes stand for gigabytes: a text is stored once and repeated by
every row. Arrow keeps such columns encoded; Python objects are made for the distinct values alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as pt

pc: Any = pyarrow.compute  # its functions are made when it is imported, which type checkers do not see

_ITEM_BYTES = 64  # of a list's item, as a Python object
_SHARED_FROM_BYTES = 1024

Share = Callable[[Any], Any]
"""Returns an equal object that is already there, or else its argument."""


class SharedValues:
    """Large values by themselves, so that equal ones of many batches are one object."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str | bytes) and len(value) >= _SHARED_FROM_BYTES:
            return self._values.setdefault(value, value)
        return value


def decoded_bytes(array: Any) -> np.ndarray:
    """The bytes of each value of an array, as Python objects that share nothing: int64 [len(array)]."""
    kind = array.type
    if pt.is_dictionary(kind):
        sizes = decoded_bytes(array.dictionary)
        indices = _to_numpy(pc.fill_null(array.indices, 0))
        return np.where(_valid(array), sizes[indices], 0) if len(sizes) else np.zeros(len(array), np.int64)
    if pt.is_struct(kind):
        return sum((decoded_bytes(field) for field in array.flatten()), start=np.zeros(len(array), np.int64))
    if _is_list(kind):
        items, parents = _items(array)
        sizes = decoded_bytes(items) + _ITEM_BYTES
        return np.bincount(parents, weights=sizes, minlength=len(array)).astype(np.int64)
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        array = array.cast(pa.large_binary())
        kind = array.type
    if pt.is_string(kind) or pt.is_binary(kind) or pt.is_large_string(kind) or pt.is_large_binary(kind):
        return _to_numpy(pc.fill_null(pc.call_function("binary_length", [array]), 0)).astype(np.int64)
    return np.full(len(array), 8, np.int64)


def item_counts(array: Any) -> np.ndarray:
    """How many items each list or map of an array has: int64 [len(array)]; 0 for arrays of other types."""
    if not _is_list(array.type):
        return np.zeros(len(array), np.int64)
    return np.bincount(_items(array)[1], minlength=len(array)).astype(np.int64)


def to_python(array: Any, share: Share) -> list[Any]:
    """As `array.to_pylist()`, with one object for each distinct value of a dictionary."""
    kind = array.type
    if pt.is_dictionary(kind):
        indices, valid = _to_numpy(pc.fill_null(array.indices, 0)), _valid(array)
        used, places = np.unique(indices[valid], return_inverse=True)
        values = to_python(array.dictionary.take(pa.array(used, pa.int64())), share)
        found = iter(places.tolist())
        return [values[next(found)] if is_valid else None for is_valid in valid.tolist()]
    if pt.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        columns = [to_python(field, share) for field in array.flatten()]
        rows = zip(*columns, strict=True) if columns else ([] for _ in range(len(array)))
        return [
            dict(zip(names, row, strict=True)) if is_valid else None
            for row, is_valid in zip(rows, _valid(array).tolist(), strict=True)
        ]
    if _is_list(kind):
        items, parents = _items(array)
        values = to_python(items, share)
        if pt.is_map(kind):
            values = [tuple(pair.values()) for pair in values]
        ends = np.cumsum(np.bincount(parents, minlength=len(array))).tolist()
        starts = [0, *ends][:-1]
        return [
            values[start:end] if is_valid else None
            for start, end, is_valid in zip(starts, ends, _valid(array).tolist(), strict=True)
        ]
    return [share(value) for value in array.to_pylist()]


def without_dictionaries(kind: pa.DataType) -> pa.DataType:
    """A type with every dictionary in it replaced by the type of its values."""
    if pt.is_dictionary(kind):
        return kind.value_type
    if pt.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([field.with_type(without_dictionaries(field.type)) for field in fields])
    if pt.is_map(kind):
        return pa.map_(without_dictionaries(kind.key_type), without_dictionaries(kind.item_type))
    if pt.is_list(kind):
        return pa.list_(kind.value_field.with_type(without_dictionaries(kind.value_type)))
    if pt.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(without_dictionaries(kind.value_type)))
    return kind


def _is_list(kind: pa.DataType) -> bool:
    layouts = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view, pt.is_map)
    return any(is_layout(kind) for is_layout in layouts)


def _items(array: Any) -> tuple[Any, np.ndarray]:
    """The items of all lists, one after the other, and the index of the list of each."""
    if pt.is_map(array.type):
        offsets = _to_numpy(array.offsets).astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        fields = [array.keys.slice(first, last - first), array.items.slice(first, last - first)]
        parents = np.repeat(np.arange(len(array)), np.diff(offsets))
        return pa.StructArray.from_arrays(fields, ["key", "value"]), parents
    parents = pc.call_function("list_parent_indices", [array])
    return pc.call_function("list_flatten", [array]), _to_numpy(parents).astype(np.int64)


def _valid(array: Any) -> np.ndarray:
    return _to_numpy(array.is_valid()).astype(bool)


def _to_numpy(array: Any) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
