from __future__ import annotations

import dataclasses
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persres.core.errors import StoreUnavailable
from persres.pipeline.catalog.commit_record import ShardCommit
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.layout import AttemptPaths
from persres.pipeline.catalog.sealed_json import unseal
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.verify import Verification, verify

from ...support.catalog_factories import memory_store, planned
from ...support.catalog_history import RUNS, commit_rerendered, commit_trained, lost_attempt, write_history


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path) -> CatalogStore:
    return CatalogStore(str(tmp_path / "catalog")) if request.param == "disk" else memory_store()


def faults(found: Verification) -> set[tuple[str, str, str]]:
    return {(one.concept_id, one.file, one.fault) for one in found.findings}


def test_verify_of_an_intact_catalog_is_clean(store):
    write_history(store)
    for _ in range(2):
        found = verify(store)
        assert found.clean and found.findings == ()
        assert (found.concepts, found.images, found.without_digest) == (4, 16, 0)
        compact(store)
    assert found.files == 6


def test_verify_progress_counts_the_files(store):
    write_history(store)
    seen = []
    found = verify(store, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, found.files) for number in range(1, found.files + 1)]


def test_verify_lists_garbage_as_no_fault(store):
    commit_trained(store, planned("a"))
    dead = lost_attempt(store, planned("a"))
    torn = AttemptPaths("r", "s", "1").record
    store.write(torn, b"{")
    found = verify(store)
    assert found.clean
    assert {one.path for one in found.garbage.objects} == {*dead, torn}


@pytest.mark.parametrize("kind", ["residuals", "renderings"])
def test_verify_finds_a_missing_file_for_each_of_its_concepts(store, kind):
    record = commit_trained(store, planned("a"), planned("b"))
    commit_trained(store, planned("c"), attempt="002")
    path = record.files[kind]
    store.delete(path)
    found = verify(store)
    assert faults(found) == {("a", path, "the file is missing"), ("b", path, "the file is missing")}
    assert all("forget" in one.fix and "a b" in one.fix for one in found.findings)


@pytest.mark.parametrize("kind", ["residuals", "renderings"])
def test_verify_finds_any_flipped_bit_that_readers_would_see(store, kind):
    record = commit_trained(store, planned("a"), planned("b"))
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
def test_verify_finds_a_truncated_file(store, size):
    record = commit_trained(store, planned("a"))
    path = record.files["residuals"]
    store.write(path, store.read(path)[:size])
    [finding] = verify(store).findings
    assert (finding.concept_id, finding.file) == ("a", path) and "damaged" in finding.fault


def of_an_earlier_release(store: CatalogStore, record: ShardCommit) -> ShardCommit:
    """Replace a commit by one whose data files have no digest in their names."""
    store.delete(record.paths.record)
    files = {kind: f"{path[: path.rindex('-')]}.parquet" for kind, path in record.files.items()}
    for kind, path in files.items():
        store.write(path, store.read(record.files[kind]))
        store.delete(record.files[kind])
    concepts = tuple(
        dataclasses.replace(one, residual_file=files["residuals"], rendering_file=files["renderings"])
        for one in record.concepts
    )
    old = dataclasses.replace(record, version=1, files=files, concepts=concepts)
    store.write(old.paths.record, old.to_json())
    return old


def rewrite(store: CatalogStore, path: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1)
    store.write(path, buffer.getvalue())


def test_verify_finds_rows_in_another_place_than_recorded(store):
    record = of_an_earlier_release(store, commit_trained(store, planned("a"), planned("b"), planned("c")))
    assert verify(store).clean
    for kind, count in (("residuals", 3), ("renderings", 12)):
        path = record.files[kind]
        whole = store.read(path)
        table = pq.read_table(io.BytesIO(whole))
        rewrite(store, path, table.take(list(reversed(range(count)))))
        assert {one.concept_id for one in verify(store).findings} >= {"a", "c"}
        rewrite(store, path, table.slice(0, count - 1))
        assert faults(verify(store)) == {("c", path, f"the file ends before row {count}")}
        rewrite(store, path, table.drop_columns(["training_fingerprint"]))
        assert all("do not have the catalog" in one.fault for one in verify(store).findings)
        store.write(path, whole)


def test_verify_finds_a_file_of_another_commit(store):
    record = commit_trained(store, planned("a"))
    other = commit_trained(store, planned("a", training="t2"), run=0, attempt="002")
    store.write(record.files["residuals"], store.read(other.files["residuals"]))
    assert any("is not the one that was written" in one.fault for one in verify(store).findings)
    store.delete(other.paths.record)
    old = of_an_earlier_release(store, record)
    store.write(old.files["residuals"], store.read(other.files["residuals"]))
    found = {one.fault for one in verify(store).findings}
    assert any("training_fingerprint" in fault for fault in found) and any("digest" in fault for fault in found)


def test_verify_counts_concepts_without_digests(store):
    record = commit_trained(store, planned("a"))
    raw = {**unseal(record.to_json(), sealed_since=2), "version": 1}
    for concept in raw["concepts"]:
        del concept["residual_digest"], concept["renderings_digest"]
    store.write(record.paths.record, json.dumps(raw).encode())
    found = verify(store)
    assert found.clean and found.without_digest == 1


def test_verify_finds_a_damaged_record(store):
    record = commit_trained(store, planned("a"))
    path = AttemptPaths(record.run_id, record.shard_id, record.attempt).record
    store.write(path, b'{"version": 1, "concepts": "none"}')
    [finding] = verify(store).findings
    assert path in finding.fault and finding.fix


def test_verify_of_an_unreachable_store_is_an_error(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    commit_trained(store, planned("a"))

    class Unreachable(CatalogStore):
        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)

        def read(self, path: str) -> bytes:
            raise StoreUnavailable("cannot read: the network is down", fix="wait")

    with pytest.raises(StoreUnavailable, match="network"):
        verify(Unreachable())


def test_verify_checks_moved_rows_again():
    store = memory_store()
    commit_trained(store, planned("a"), planned("b"))

    class Busy(CatalogStore):
        """Forgets b and renders a again when the first data file is read."""

        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)
            self.is_first_read = True

        def read(self, path: str) -> bytes:
            if self.is_first_read and path.startswith("re"):
                self.is_first_read = False
                commit_rerendered(store, "a")
                forget(store, ["b"])
            return super().read(path)

    found = verify(Busy())
    assert found.clean and read_committed(store)["a"].rendering_fingerprint == "r2"


def test_verify_findings_are_independent():
    store = memory_store()
    record = commit_trained(store, *(planned(name) for name in "abc"))
    for path in record.files.values():
        store.delete(path)
    assert commit_trained(store, planned("d"), run=1).run_id == RUNS[1]
    found = verify(store)
    assert [(one.concept_id, one.file) for one in found.findings] == sorted(
        (name, path) for name in "abc" for path in record.files.values()
    )
    assert all(dataclasses.asdict(one)["fix"] for one in found.findings)
