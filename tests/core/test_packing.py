from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.core.packing import pack


@given(st.lists(st.integers()), st.integers(1, 9))
def test_packs_keep_every_item_once_and_in_order(items: list[int], size: int):
    packs = pack(items, size)
    assert [item for members in packs for item in members] == items
    assert all(len(members) == size for members in packs[:-1]) and all(packs)


def test_a_pack_of_nothing_is_refused():
    with pytest.raises(ValueError, match="pack_size is 0"):
        pack([1], 0)
