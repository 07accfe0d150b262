from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.batching import batches


@given(st.lists(st.integers()), st.integers(1, 9))
def test_batches_keep_every_item_once_and_in_order(items: list[int], size: int):
    found = batches(items, size)
    assert [item for batch in found for item in batch] == items
    assert all(len(batch) == size for batch in found[:-1]) and all(found)


def test_batch_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        batches([1], 0)
