"""A forgotten concept is nowhere; all others are as they were, wherever the forgetting is cut off."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persres.core.errors import InvalidInput, StoreError
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.results import read_residual_row
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.traces import find_traces
from persres.pipeline.maintenance.verify import verify

from ...support.catalog_digest import concept_digests
from ...support.catalog_samples import memory_store, planned
from ...support.s3_server import s3_server
from ...support.upkeep_samples import (
    RUNS,
    dead_attempt,
    history,
    in_class,
    rendered_again,
    texts_of,
    trained,
    write_documents,
)


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as running:
        yield running.environment


def made(kind: str, request: pytest.FixtureRequest) -> CatalogStore:
    name = request.getfixturevalue("tmp_path")
    if kind == "disk":
        return CatalogStore(str(name / "catalog"))
    if kind == "memory":
        return memory_store()
    import s3fs

    for variable, value in request.getfixturevalue("server").items():
        request.getfixturevalue("monkeypatch").setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return CatalogStore(f"s3://catalogs/{name.name}")


@pytest.fixture(params=["disk", "memory"])
def store(request) -> CatalogStore:
    return made(request.param, request)


@pytest.fixture(params=["disk", "memory", "s3"])
def any_store(request) -> CatalogStore:
    return made(request.param, request)


def assert_no_trace(store: CatalogStore, *names: str) -> None:
    for path, text in texts_of(store).items():
        for name in names:
            assert not re.search(rf"\b{name}\b", text), f"{name} is still in {path}"


def without(digests: dict[str, str], *names: str) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name not in names}


def test_every_trace_goes_and_the_others_stay_as_they_were(any_store):
    store = any_store
    history(store)
    digests = concept_digests(store)
    assert set(digests) == {"anna", "ben", "cleo", "dora"}

    forgotten = forget(store, ["anna"])

    assert (forgotten.concept_ids, forgotten.rewritten, forgotten.removed) == (("anna",), 2, 3)
    assert_no_trace(store, "anna", "somebody")
    assert concept_digests(store) == without(digests, "anna")
    assert verify(store).clean
    assert set(read_committed(store)) == {"ben", "cleo", "dora"}


def test_a_compacted_catalog_forgets_as_well_and_can_go_on(any_store):
    store = any_store
    history(store)
    compact(store)
    digests = concept_digests(store)
    forget(store, ["anna", "dora"])
    assert_no_trace(store, "anna", "dora", "somebody")
    assert concept_digests(store) == without(digests, "anna", "dora")
    trained(store, planned("anna"), run=2, attempt="007")
    assert concept_digests(store).keys() == {"anna", "ben", "cleo"}


def test_rewritten_files_differ_in_the_missing_rows_alone(store):
    concepts = [planned(f"c{number}") for number in range(9)]
    record = trained(store, *concepts)
    before = {kind: pq.ParquetFile(io.BytesIO(store.read(path))) for kind, path in record.files.items()}
    forget(store, ["c3"])
    kept = read_committed(store)
    assert list(kept) == [f"c{number}" for number in range(9) if number != 3]
    assert [one.residual_row for one in kept.values()] == list(range(8))
    for kind, column in (("residuals", "residual_file"), ("renderings", "rendering_file")):
        [path] = {getattr(one, column) for one in kept.values()}
        after = pq.ParquetFile(io.BytesIO(store.read(path)))
        assert after.schema_arrow.equals(before[kind].schema_arrow, check_metadata=True)
        old = before[kind].read()
        assert after.read().equals(old.filter([name != "c3" for name in old["concept_id"].to_pylist()]))
        sizes = [
            [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            for file in (before[kind], after)
        ]
        assert sizes == ([[1] * 9, [1] * 8] if kind == "residuals" else [[16, 16, 4], [16, 16]])


def test_forgetting_all_leaves_an_empty_catalog(store):
    history(store)
    forget(store, ["anna", "ben", "cleo", "dora", "emil"])
    assert_no_trace(store, "anna", "ben", "cleo", "dora", "emil", "somebody")
    assert len(read_committed(store)) == 0
    assert {path.rsplit("/", 1)[-1] for path in store.list("")} == {
        "plan.json", "failures.json", "summary.json", "spec.yaml"
    }  # fmt: skip


def test_a_concept_that_only_failed_is_forgotten_too(store):
    history(store)
    digests = concept_digests(store)
    forget(store, ["emil"])
    assert_no_trace(store, "emil")
    assert concept_digests(store) == digests


def test_what_only_a_dead_attempt_left_is_forgotten_too(store):
    trained(store, planned("ben"))
    files = dead_attempt(store, planned("anna"), planned("ben"))
    forgotten = forget(store, ["anna"])
    assert (forgotten.rewritten, forgotten.removed) == (0, 2)
    assert not set(files) & set(store.list(""))
    assert set(read_committed(store)) == {"ben"}


def test_an_unknown_concept_is_named_with_those_near_it_and_nothing_is_removed(store):
    history(store)
    there = store.list("")
    with pytest.raises(InvalidInput, match=r"no trace of annna \(did you mean anna\?\); zoe\. Fix:"):
        forget(store, ["annna", "ben", "zoe"])
    assert store.list("") == there


def test_looking_for_traces_changes_nothing_and_names_them_all(store):
    history(store)
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


def test_half_objects_of_killed_writers_go_too(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    history(store)
    (tmp_path / "catalog/residuals/.x.parquet.0.tmp").write_bytes(b"anna")
    store.write(store.commit_record("r", "s", "1"), b'{"concepts": [{"concept_id": "anna')
    store.write(store.residual_file("r", "s", "1"), b"PAR1 anna")
    forget(store, ["anna"])
    found = [path for path in (tmp_path / "catalog").rglob("*") if path.is_file() and b"anna" in path.read_bytes()]
    assert not found


def test_a_damaged_file_with_others_in_it_stops_before_anything_is_changed(store):
    record = trained(store, planned("anna"), planned("ben"))
    data = bytearray(store.read(record.files["residuals"]))
    data[40] ^= 0xFF
    store.write(record.files["residuals"], bytes(data))
    there = store.read_many(store.list(""))
    with pytest.raises(StoreError, match=r"is damaged.*forget these as well.* ben"):
        forget(store, ["anna"])
    assert store.read_many(store.list("")).keys() == there.keys()
    forget(store, ["anna", "ben"])
    assert_no_trace(store, "anna", "ben")


def test_a_file_that_is_missing_already_stops_nobody(store):
    record = trained(store, planned("anna"))
    trained(store, planned("ben"), attempt="002")
    store.delete(record.files["residuals"])
    forget(store, ["anna"])
    assert_no_trace(store, "anna")
    assert set(read_committed(store)) == {"ben"}


class Faulty(CatalogStore):
    """A store that fails at its n-th operation, before or after it is done."""

    def __init__(self, store: CatalogStore, fail_at: int, *, after: bool) -> None:
        self.__dict__.update(store.__dict__)
        self.operations, self._fail_at, self._after = 0, fail_at, after

    def _do(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self.operations += 1
        if self.operations != self._fail_at:
            return act(*arguments, **named)
        if self._after:
            act(*arguments, **named)
        raise PowerCut

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


class PowerCut(BaseException):
    pass


def put_back(store: CatalogStore, objects: dict[str, bytes]) -> None:
    """Make a catalog hold exactly these objects."""
    for path in set(store.list("")) - objects.keys():
        store.delete(path)
    for path, data in objects.items():
        store.write(path, data)


@pytest.mark.parametrize("compacted", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cut_off_anywhere_the_others_read_and_a_second_try_ends_it(after, compacted):
    store = memory_store()
    history(store)
    if compacted:
        compact(store)
    others, objects = without(concept_digests(store), "anna"), store.read_many(store.list(""))
    cuts = 0
    while cut_off(store, cuts + 1, after=after):
        cuts += 1
        assert without(concept_digests(store), "anna") == others
        if not find_traces(store, ["anna"]).unknown:
            forget(store, ["anna"])
        assert_no_trace(store, "anna", "somebody")
        assert concept_digests(store) == others
        put_back(store, objects)
    assert cuts > 30


def cut_off(store: CatalogStore, operation: int, *, after: bool) -> bool:
    """A forgetting of anna that dies at its n-th operation; False if it had no so many."""
    try:
        forget(Faulty(store, operation, after=after), ["anna"])
    except PowerCut:
        return True
    return False


def test_an_attempt_that_commits_meanwhile_is_forgotten_as_well():
    """A worker of a dead run commits between the search and the end: the next pass finds it."""
    store = memory_store()
    history(store)
    others = without(concept_digests(store), "anna")
    calls = 0

    def straggler() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            trained(store, planned("anna"), planned("fred"), run=1, attempt="005")

    forget(store, ["anna"], check=straggler)
    assert_no_trace(store, "anna")
    assert without(concept_digests(store), "fred") == others
    assert read_residual_row(store, read_committed(store)["fred"]).concept_id == "fred"


def test_somebody_who_never_stops_committing_is_named():
    store = memory_store()
    trained(store, planned("anna"))
    attempts = iter(range(2, 1000))

    def restless() -> None:
        if "anna" not in read_committed(store):
            trained(store, planned("anna"), attempt=f"{next(attempts):03}")

    with pytest.raises(StoreError, match="somebody keeps writing"):
        forget(store, ["anna"], check=restless)


def test_a_lost_lease_ends_it_before_the_next_change():
    store = memory_store()
    history(store)
    there = store.read_many(store.list(""))

    def lost() -> None:
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        forget(store, ["anna"], check=lost)
    assert store.read_many(store.list("")) == there


def test_concepts_with_names_like_common_words_take_no_others_with_them():
    store = memory_store()
    trained(store, planned("mug"), planned("mug-1"), planned("mug."))
    write_documents(store, 0, names=("mug", "mug-1", "mug."))
    forget(store, ["mug"])
    assert set(read_committed(store)) == {"mug-1", "mug."}
    plan = store.read(store.run_file(RUNS[0], "plan.json")).decode()
    assert '"mug-1"' in plan and '"mug."' in plan and '"mug"' not in plan


NAMES = "abcd"
moves = st.lists(
    st.tuples(st.sampled_from(["train", "die", "render", "compact"]), st.sets(st.sampled_from(NAMES), min_size=1)),
    max_size=6,
)


@settings(max_examples=25)
@given(moves, st.sets(st.sampled_from(NAMES), min_size=1))
def test_after_any_history_any_concepts_can_be_forgotten(moves, unwanted):
    store = memory_store()
    trained(store, *(in_class(planned(name), f"class-{name}") for name in NAMES))
    for number, (what, names) in enumerate(moves):
        if what == "compact":
            compact(store)
        elif what == "render":
            rendered_again(store, *sorted(names), run=number % 3, rendering=f"r{number}")
        else:
            concepts = [in_class(planned(name, training=f"t{number}"), f"class-{name}") for name in sorted(names)]
            act = trained if what == "train" else dead_attempt
            act(store, *concepts, run=number % 3, attempt=f"1{number:02}")
    digests = concept_digests(store)
    forget(store, unwanted)
    assert concept_digests(store) == without(digests, *unwanted)
    assert find_traces(store, unwanted).unknown == tuple(sorted(unwanted))
    assert_no_trace(store, *(f"class-{name}" for name in unwanted))
    assert verify(store).clean
    put_back(store, {})  # what is in memory is listed by the stores of later examples too
