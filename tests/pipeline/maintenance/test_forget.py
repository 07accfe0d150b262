"""A forgotten concept leaves no trace, and all others stay unchanged, even if `forget` is killed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persres.core.errors import InvalidInput, StoreError
from persres.pipeline.catalog import layout
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.layout import AttemptPaths, RunPaths
from persres.pipeline.catalog.results import read_residual_row
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.traces import find_traces
from persres.pipeline.maintenance.verify import verify

from ...support.catalog_digest import concept_digests
from ...support.catalog_factories import memory_store, planned
from ...support.catalog_history import (
    RUNS,
    commit_rerendered,
    commit_trained,
    lost_attempt,
    object_texts,
    with_macro_class,
    write_documents,
    write_history,
)


def local_store(kind: str, folder: Path) -> CatalogStore:
    return CatalogStore(str(folder / "catalog")) if kind == "disk" else memory_store()


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path) -> CatalogStore:
    return local_store(request.param, tmp_path)


@pytest.fixture(params=["disk", "memory", "s3"])
def any_store(request, tmp_path) -> CatalogStore:
    return request.getfixturevalue("s3_store") if request.param == "s3" else local_store(request.param, tmp_path)


def assert_no_trace(store: CatalogStore, *names: str) -> None:
    for path, text in object_texts(store).items():
        for name in names:
            assert not re.search(rf"\b{name}\b", text), f"{name} is still in {path}"


def without(digests: dict[str, str], *names: str) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name not in names}


def test_forget_removes_every_trace_and_keeps_the_others(any_store):
    store = any_store
    write_history(store)
    digests = concept_digests(store)
    assert set(digests) == {"anna", "ben", "cleo", "dora"}

    forgotten = forget(store, ["anna"])

    assert (forgotten.concept_ids, forgotten.rewritten, forgotten.removed) == (("anna",), 2, 3)
    assert_no_trace(store, "anna", "somebody")
    assert concept_digests(store) == without(digests, "anna")
    assert verify(store).clean
    assert set(read_committed(store)) == {"ben", "cleo", "dora"}


def test_forget_works_on_a_compacted_catalog(any_store):
    store = any_store
    write_history(store)
    compact(store)
    digests = concept_digests(store)
    forget(store, ["anna", "dora"])
    assert_no_trace(store, "anna", "dora", "somebody")
    assert concept_digests(store) == without(digests, "anna", "dora")
    commit_trained(store, planned("anna"), run=2, attempt="007")
    assert concept_digests(store).keys() == {"anna", "ben", "cleo"}


def test_forget_rewrites_files_without_other_changes(store):
    concepts = [planned(f"c{number}") for number in range(9)]
    record = commit_trained(store, *concepts)
    before = {kind: pq.ParquetFile(io.BytesIO(store.read(path))) for kind, path in record.files.items()}
    forget(store, ["c3"])
    kept = read_committed(store)
    assert list(kept) == [f"c{number}" for number in range(9) if number != 3]
    assert [one.residual_row for one in kept.values()] == list(range(8))
    for kind, column in (("residuals", "residual_file"), ("renderings", "rendering_file")):
        [path] = {getattr(one, column) for one in kept.values()}
        after = pq.ParquetFile(io.BytesIO(store.read(path)))
        metadata = [dict(one.schema_arrow.metadata) for one in (before[kind], after)]
        for one in metadata:
            one.pop(b"persres.row_groups", None)  # digests of the rows that are there
        assert after.schema_arrow.equals(before[kind].schema_arrow) and metadata[0] == metadata[1]
        old = before[kind].read()
        assert after.read().equals(old.filter([name != "c3" for name in old["concept_id"].to_pylist()]))
        sizes = [
            [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            for file in (before[kind], after)
        ]
        assert sizes == ([[1] * 9, [1] * 8] if kind == "residuals" else [[16, 16, 4], [16, 16]])


def test_forget_of_all_leaves_an_empty_catalog(store):
    write_history(store)
    forget(store, ["anna", "ben", "cleo", "dora", "emil"])
    assert_no_trace(store, "anna", "ben", "cleo", "dora", "emil", "somebody")
    assert len(read_committed(store)) == 0
    assert {path.rsplit("/", 1)[-1] for path in store.list("") if not layout.index_version_number(path)} == {
        "plan.json", "failures.json", "summary.json", "spec.yaml"
    }  # fmt: skip


def test_forget_removes_a_concept_that_only_failed(store):
    write_history(store)
    digests = concept_digests(store)
    forget(store, ["emil"])
    assert_no_trace(store, "emil")
    assert concept_digests(store) == digests


def test_forget_removes_what_a_lost_attempt_left(store):
    commit_trained(store, planned("ben"))
    files = lost_attempt(store, planned("anna"), planned("ben"))
    forgotten = forget(store, ["anna"])
    assert (forgotten.rewritten, forgotten.removed) == (0, 2)
    assert not set(files) & set(store.list(""))
    assert set(read_committed(store)) == {"ben"}


def test_forget_of_an_unknown_concept_names_near_ids_and_removes_nothing(store):
    write_history(store)
    there = store.list("")
    with pytest.raises(InvalidInput, match=r"no trace of annna \(did you mean anna\?\); zoe\. Fix:"):
        forget(store, ["annna", "ben", "zoe"])
    assert store.list("") == there


def test_find_traces_changes_nothing_and_finds_all(store):
    write_history(store)
    there = store.read_many(store.list(""))
    traces = find_traces(store, ["anna"])
    assert (len(traces.shared), len(traces.own), traces.recorded, traces.unknown) == (2, 3, {"anna"}, ())
    assert {path.split("/", 1)[1] for path in traces.documents} == {
        f"{run}/{name}"
        for run in RUNS
        for name in ("plan.json", "failures.json", "summary.json", "report.html")
        if not (run == RUNS[2] and name == "report.html") and not (run != RUNS[2] and name == "summary.json")
    }
    assert store.read_many(store.list("")) == there


def test_forget_removes_partial_objects_of_killed_writers(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    write_history(store)
    (tmp_path / "catalog/residuals/.x.parquet.0.tmp").write_bytes(b"anna")
    store.write(AttemptPaths("r", "s", "1").record, b'{"concepts": [{"concept_id": "anna')
    store.write(AttemptPaths("r", "s", "1").residuals("0" * 32), b"PAR1 anna")
    forget(store, ["anna"])
    found = [path for path in (tmp_path / "catalog").rglob("*") if path.is_file() and b"anna" in path.read_bytes()]
    assert not found


def test_forget_stops_at_a_damaged_file_with_others_before_any_change(store):
    record = commit_trained(store, planned("anna"), planned("ben"))
    data = bytearray(store.read(record.files["residuals"]))
    data[40] ^= 0xFF
    store.write(record.files["residuals"], bytes(data))
    there = store.read_many(store.list(""))
    with pytest.raises(StoreError, match=r"is damaged.*forget these as well.* ben"):
        forget(store, ["anna"])
    assert store.read_many(store.list("")).keys() == there.keys()
    forget(store, ["anna", "ben"])
    assert_no_trace(store, "anna", "ben")


def test_forget_ignores_a_file_that_is_missing_already(store):
    record = commit_trained(store, planned("anna"))
    commit_trained(store, planned("ben"), attempt="002")
    store.delete(record.files["residuals"])
    forget(store, ["anna"])
    assert_no_trace(store, "anna")
    assert set(read_committed(store)) == {"ben"}


class Faulty(CatalogStore):
    """A store that crashes at its n-th operation, before or after it."""

    def __init__(self, store: CatalogStore, fail_at: int, *, after: bool) -> None:
        self.__dict__.update(store.__dict__)
        self.operations, self._fail_at, self._after = 0, fail_at, after

    def _do(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.operations += 1
        if self.operations != self._fail_at:
            return act(*arguments, **named)
        if self._after:
            act(*arguments, **named)
        raise Crash

    def read(self, path: str) -> bytes:
        return self._do(super().read, path)

    def read_many(self, paths: Any) -> dict[str, bytes]:
        return self._do(super().read_many, paths)

    def list(self, prefix: str) -> list[str]:
        return self._do(super().list, prefix)

    def write(self, path: str, data: bytes) -> None:
        self._do(super().write, path, data)

    def delete(self, path: str) -> None:
        self._do(super().delete, path)


class Crash(BaseException):
    pass


def restore(store: CatalogStore, objects: dict[str, bytes]) -> None:
    """Make a catalog hold exactly these objects."""
    for path in set(store.list("")) - objects.keys():
        store.delete(path)
    for path, data in objects.items():
        store.write(path, data)


@pytest.mark.parametrize("compacted", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_forget_killed_anywhere_keeps_the_others_and_can_be_repeated(after, compacted):
    store = memory_store()
    write_history(store)
    if compacted:
        compact(store)
    others, objects = without(concept_digests(store), "anna"), store.read_many(store.list(""))
    crashes = 0
    while crash_at(store, crashes + 1, after=after):
        crashes += 1
        assert without(concept_digests(store), "anna") == others
        if not find_traces(store, ["anna"]).unknown:
            forget(store, ["anna"])
        assert_no_trace(store, "anna", "somebody")
        assert concept_digests(store) == others
        restore(store, objects)
    assert crashes > 30


def crash_at(store: CatalogStore, operation: int, *, after: bool) -> bool:
    """Crash at the n-th operation of `forget`; False if it has fewer."""
    try:
        forget(Faulty(store, operation, after=after), ["anna"])
    except Crash:
        return True
    return False


def test_forget_removes_what_is_committed_meanwhile():
    """A worker of a lost run commits between the search and the end; the next pass finds it."""
    store = memory_store()
    write_history(store)
    others = without(concept_digests(store), "anna")
    calls = 0

    def straggler() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            commit_trained(store, planned("anna"), planned("fred"), run=1, attempt="005")

    forget(store, ["anna"], check=straggler)
    assert_no_trace(store, "anna")
    assert without(concept_digests(store), "fred") == others
    assert read_residual_row(store, read_committed(store)["fred"]).concept_id == "fred"


def test_forget_gives_up_on_a_process_that_keeps_committing():
    store = memory_store()
    commit_trained(store, planned("anna"))
    attempts = iter(range(2, 1000))

    def restless() -> None:
        if "anna" not in read_committed(store):
            commit_trained(store, planned("anna"), attempt=f"{next(attempts):03}")

    with pytest.raises(StoreError, match="keeps committing"):
        forget(store, ["anna"], check=restless)


def test_forget_stops_when_the_lease_is_lost():
    store = memory_store()
    write_history(store)
    there = store.read_many(store.list(""))

    def lost() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        forget(store, ["anna"], check=lost)
    assert store.read_many(store.list("")) == there


def test_forget_of_ids_like_common_words_keeps_the_others():
    store = memory_store()
    commit_trained(store, planned("mug"), planned("mug-1"), planned("mug."))
    write_documents(store, 0, names=("mug", "mug-1", "mug."))
    forget(store, ["mug"])
    assert set(read_committed(store)) == {"mug-1", "mug."}
    plan = store.read(RunPaths(RUNS[0]).plan).decode()
    assert '"mug-1"' in plan and '"mug."' in plan and '"mug"' not in plan


NAMES = "abcd"
moves = st.lists(
    st.tuples(st.sampled_from(["train", "die", "render", "compact"]), st.sets(st.sampled_from(NAMES), min_size=1)),
    max_size=6,
)


@settings(max_examples=25)
@given(moves, st.sets(st.sampled_from(NAMES), min_size=1))
def test_forget_works_after_any_history(moves, unwanted):
    store = memory_store()
    commit_trained(store, *(with_macro_class(planned(name), f"class-{name}") for name in NAMES))
    for number, (what, names) in enumerate(moves):
        if what == "compact":
            compact(store)
        elif what == "render":
            commit_rerendered(store, *sorted(names), run=number % 3, rendering=f"r{number}")
        else:
            concepts = [
                with_macro_class(planned(name, training=f"t{number}"), f"class-{name}") for name in sorted(names)
            ]
            act = commit_trained if what == "train" else lost_attempt
            act(store, *concepts, run=number % 3, attempt=f"1{number:02}")
    digests = concept_digests(store)
    forget(store, unwanted)
    assert concept_digests(store) == without(digests, *unwanted)
    assert find_traces(store, unwanted).unknown == tuple(sorted(unwanted))
    assert_no_trace(store, *(f"class-{name}" for name in unwanted))
    assert verify(store).clean
    restore(store, {})  # all catalogs in memory share one listing
