from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.catalog.index import compact
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.run.run_id import later_run_id, new_run_id

from ...support.catalog_factories import commit, memory_store, planned, shard_of

moments = st.datetimes(datetime(2020, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))


@given(st.lists(moments, max_size=5), moments)
def test_new_run_id_sorts_after_every_earlier_one_whatever_the_clock(earlier, now):
    existing = [later_run_id([], moment, "ffffff") for moment in earlier]
    assert all(run_id < later_run_id(existing, now, "000000") for run_id in existing)


def test_new_run_id_has_the_clocks_time_where_it_can():
    now = datetime(2026, 11, 22, 19, 5, 1, tzinfo=UTC)
    assert later_run_id(["20251122T190501Z-abcdef", "by-hand"], now, "3fa9c1") == "20261122T190501Z-3fa9c1"


def test_run_ids_come_from_commits_and_documents():
    store = memory_store()
    commit(store, shard_of(planned("a")), run_id="20800101T000000Z-aaaaaa")
    compact(store)
    assert new_run_id(store).startswith("20800101T000001Z-"), "the index's name says whose commits are the newest"
    store.write(RunPaths("20810101T000000Z-bbbbbb").summary, b"{}")
    assert new_run_id(store).startswith("20810101T000001Z-")
