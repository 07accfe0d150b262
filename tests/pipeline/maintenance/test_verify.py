"""Whatever happens to an object of a catalog, reading it back says so: which concept, which file, what to do."""

from __future__ import annotations

import dataclasses
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persres.core.errors import StoreUnavailable
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.verify import Verification, verify

from ...support.catalog_samples import memory_store, planned
from ...support.upkeep_samples import RUNS, dead_attempt, history, rendered_again, trained


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog")) if request.param == "disk" else memory_store()


def faults(found: Verification) -> set[tuple[str, str, str]]:
    return {(one.concept_id, one.file, one.fault) for one in found.findings}


def test_a_catalog_as_it_was_committed_is_clean(store):
    history(store)
    for _ in range(2):
        found = verify(store)
        assert found.clean and found.findings == ()
        assert (found.concepts, found.images, found.without_digest) == (4, 16, 0)
        compact(store)
    assert found.files == 6


def test_progress_counts_the_files(store):
    history(store)
    seen = []
    found = verify(store, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, found.files) for number in range(1, found.files + 1)]


def test_what_nobody_needs_is_told_and_is_no_fault(store):
    trained(store, planned("a"))
    dead = dead_attempt(store, planned("a"))
    torn = store.commit_record("r", "s", "1")
    store.write(torn, b"{")
    found = verify(store)
    assert found.clean
    assert {one.path for one in found.garbage.objects} == {*dead, torn}


@pytest.mark.parametrize("kind", ["residuals", "renderings"])
def test_a_missing_file_is_missing_for_each_of_its_concepts(store, kind):
    record = trained(store, planned("a"), planned("b"))
    trained(store, planned("c"), attempt="002")
    path = record.files[kind]
    store.delete(path)
    found = verify(store)
    assert faults(found) == {("a", path, "the file is missing"), ("b", path, "the file is missing")}
    assert all("forget" in one.fix and "a b" in one.fix for one in found.findings)


@pytest.mark.parametrize("kind", ["residuals", "renderings"])
def test_a_bit_changed_anywhere_in_the_pages_is_found_unless_readers_see_no_difference(store, kind):
    record = trained(store, planned("a"), planned("b"))
    path = record.files[kind]
    whole = store.read(path)
    with pq.ParquetFile(io.BytesIO(whole)) as file:
        metadata, table = file.metadata, file.read()
        spans = [
            metadata.row_group(group).column(column)
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
    chosen = random.Random(0)
    for _ in range(40):
        span = chosen.choice(spans)
        place = chosen.randrange(span.data_page_offset, span.data_page_offset + span.total_compressed_size)
        data = bytearray(whole)
        data[place] ^= 1 << chosen.randrange(8)
        store.write(path, bytes(data))
        if verify(store).clean:  # a page's header has fields that change nothing, and no checksum
            assert pq.read_table(io.BytesIO(bytes(data))).equals(table), f"byte {place} of {path}"
    store.write(path, whole)
    assert verify(store).clean


@pytest.mark.parametrize("size", [0, 3, 500])
def test_a_shortened_file_is_found(store, size):
    record = trained(store, planned("a"))
    path = record.files["residuals"]
    store.write(path, store.read(path)[:size])
    [finding] = verify(store).findings
    assert (finding.concept_id, finding.file) == ("a", path) and "damaged" in finding.fault


def rewrite(store: CatalogStore, path: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1)
    store.write(path, buffer.getvalue())


def test_rows_that_are_not_where_the_record_says_are_found(store):
    record = trained(store, planned("a"), planned("b"), planned("c"))
    for kind, count in (("residuals", 3), ("renderings", 12)):
        path = record.files[kind]
        whole = store.read(path)
        table = pq.read_table(io.BytesIO(whole))
        rewrite(store, path, table.take(list(reversed(range(count)))))
        assert {one.concept_id for one in verify(store).findings} >= {"a", "c"}
        rewrite(store, path, table.slice(0, count - 1))
        assert faults(verify(store)) == {("c", path, f"the file ends before row {count}")}
        rewrite(store, path, table.drop_columns(["training_fingerprint"]))
        assert all("not those of a catalog" in one.fault for one in verify(store).findings)
        store.write(path, whole)


def test_a_whole_file_of_another_commit_in_place_of_it_is_found(store):
    record = trained(store, planned("a"))
    other = trained(store, planned("a", training="t2"), run=0, attempt="002")
    store.write(record.files["residuals"], store.read(other.files["residuals"]))
    found = {one.fault for one in verify(store).findings}
    assert any("training_fingerprint" in fault for fault in found) and any("digest" in fault for fault in found)


def test_concepts_committed_without_digests_are_counted_and_judged_by_the_rest(store):
    record = trained(store, planned("a"))
    path = store.commit_record(record.run_id, record.shard_id, record.attempt)
    told = json.loads(store.read(path))
    for concept in told["concepts"]:
        del concept["residual_digest"], concept["renderings_digest"]
    store.write(path, json.dumps(told).encode())
    found = verify(store)
    assert found.clean and found.without_digest == 1


def test_a_record_that_is_wrong_is_a_finding(store):
    record = trained(store, planned("a"))
    path = store.commit_record(record.run_id, record.shard_id, record.attempt)
    store.write(path, b'{"version": 1, "concepts": "none"}')
    [finding] = verify(store).findings
    assert path in finding.fault and finding.fix


def test_a_store_out_of_reach_is_an_error_and_no_finding(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    trained(store, planned("a"))

    class Unreachable(CatalogStore):
        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)

        def read(self, path: str) -> bytes:
            raise StoreUnavailable("cannot read: the network is down", fix="wait")

    with pytest.raises(StoreUnavailable, match="network"):
        verify(Unreachable())


def test_what_a_run_or_a_forgetting_moves_meanwhile_is_looked_up_again():
    store = memory_store()
    trained(store, planned("a"), planned("b"))

    class Busy(CatalogStore):
        """Forgets b and renders a again just when the first data file is to be read."""

        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)
            self.quiet = True

        def read(self, path: str) -> bytes:
            if self.quiet and path.startswith("re"):
                self.quiet = False
                rendered_again(store, "a")
                forget(store, ["b"])
            return super().read(path)

    found = verify(Busy())
    assert found.clean and read_committed(store)["a"].rendering_fingerprint == "r2"


def test_every_finding_stands_alone():
    store = memory_store()
    record = trained(store, *(planned(name) for name in "abc"))
    for path in record.files.values():
        store.delete(path)
    assert trained(store, planned("d"), run=1).run_id == RUNS[1]
    found = verify(store)
    assert [(one.concept_id, one.file) for one in found.findings] == sorted(
        (name, path) for name in "abc" for path in record.files.values()
    )
    assert all(dataclasses.asdict(one)["fix"] for one in found.findings)
