"""The commands `gc`, `forget` and `verify`: their output, their exit codes, and a catalog that a run holds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from persres.pipeline.catalog.lease import hold_lease, lease_holder
from persres.pipeline.catalog.store import CatalogStore

from ...support.catalog_digest import concept_digests
from ...support.catalog_factories import planned
from ...support.catalog_history import commit_trained, lost_attempt, write_history


@pytest.fixture
def catalog(tmp_path) -> Path:
    return tmp_path / "catalog"


@pytest.fixture
def store(catalog) -> CatalogStore:
    return CatalogStore(str(catalog))


def set_age(catalog: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for path in catalog.rglob("*"):
        os.utime(path, (then, then))


def test_gc_lists_by_default_and_removes_with_delete(command, catalog, store):
    commit_trained(store, planned("a"))
    lost = lost_attempt(store, planned("b"))
    set_age(catalog, 25)
    code, out, _ = command("gc", catalog)
    assert code == 0 and all(f"{path}  " in out for path in lost) and "--delete removes them" in out
    assert set(lost) <= set(store.list(""))

    code, out, _ = command("gc", catalog, "--delete", "--json")
    result = json.loads(out)
    assert code == 0 and result["removed"] == lost and result["bytes"] > 0 and result["too_young"] == 0
    assert not set(lost) & set(store.list(""))
    assert lease_holder(store) is None
    assert command("gc", catalog)[1] == f"{catalog}: no garbage\n"


def test_gc_keeps_young_objects(command, catalog, store):
    commit_trained(store, planned("a"))
    lost = lost_attempt(store, planned("b"))
    code, out, _ = command("gc", catalog, "--delete", "--older-than", "1h", "--json")
    assert code == 0 and json.loads(out)["removed"] == [] and json.loads(out)["too_young"] == 2
    assert "2 more objects" in command("gc", catalog)[1]
    assert json.loads(command("gc", catalog, "--delete", "--older-than", "0s", "--json")[1])["removed"] == lost


@pytest.mark.parametrize("age", ["24", "h", "1 week", "-1h", ""])
def test_gc_refuses_an_invalid_age(command, catalog, store, age):
    commit_trained(store, planned("a"))
    code, _, err = command("gc", catalog, f"--older-than={age}")
    assert code == 2 and "24h" in err


def test_gc_and_forget_exit_while_a_run_holds_the_catalog(command, catalog, store):
    commit_trained(store, planned("a"))
    lost_attempt(store, planned("b"))
    there = store.list("")
    with hold_lease(store, "run-9", "ana@here"):
        for arguments in (("gc", catalog, "--delete", "--older-than", "0s"), ("forget", catalog, "a")):
            code, _, err = command(*arguments)
            assert code == 4 and "held by run run-9 of ana@here" in err
        assert command("gc", catalog, "--older-than", "0s")[0] == 0, "listing disturbs nobody"
        assert command("forget", catalog, "a", "--dry-run")[0] == 0
        assert command("verify", catalog)[0] == 0
    assert set(there) <= set(store.list(""))


def test_forget_lists_its_changes_and_then_makes_them(command, catalog, store):
    write_history(store)
    digests = concept_digests(store)
    code, out, _ = command("forget", catalog, "anna", "emil", "--dry-run")
    assert (
        code == 0 and "to be rewritten, because it holds other concepts too" in out and "nothing is changed yet" in out
    )
    assert concept_digests(store) == digests

    code, out, _ = command("forget", catalog, "anna", "emil")
    assert code == 0 and "forgot anna, emil: 2 data files rewritten, 3 removed" in out
    assert "manifest that still lists a concept brings it back" in out and "versioning" not in out
    assert set(concept_digests(store)) == {"ben", "cleo", "dora"}
    assert command("verify", catalog)[0] == 0


def test_forget_refuses_an_unknown_concept(command, catalog, store):
    write_history(store)
    code, out, err = command("forget", catalog, "anne", "ben")
    assert code == 2 and out == "" and "did you mean anna?" in err
    assert "ben" in concept_digests(store)


def test_verify_lists_concept_file_fault_and_fix(command, catalog, store):
    commit_trained(store, planned("a"), planned("b"))
    code, out, _ = command("verify", catalog)
    assert code == 0 and out == f"{catalog}: 2 concepts, 2 files, 8 renderings: everything is as it was committed\n"

    record = commit_trained(store, planned("c"), attempt="002")
    store.delete(record.files["renderings"])
    code, out, _ = command("verify", catalog)
    assert code == 1
    assert f"concept c, {record.files['renderings']}: the file is missing. Fix: persres-batch forget {catalog} c" in out
    assert "1 fault in 1 concept" in out
    code, out, _ = command("verify", catalog, "--json")
    result = json.loads(out)
    assert code == 1 and not result["clean"] and [one["concept_id"] for one in result["findings"]] == ["c"]
    assert (result["concepts"], result["files"]) == (3, 4)


def test_fix_that_verify_gives_makes_the_catalog_clean(command, catalog, store):
    record = commit_trained(store, planned("a"), planned("b"))
    commit_trained(store, planned("c"), attempt="002")
    store.write(record.files["residuals"], b"PAR1 nothing")
    found = json.loads(command("verify", catalog, "--json")[1])["findings"]
    result = {one["fix"].split(";")[0] for one in found}
    assert result == {f"persres-batch forget {catalog} a b"}
    assert command("forget", catalog, "a", "b")[0] == 0
    assert command("verify", catalog)[0] == 0 and set(concept_digests(store)) == {"c"}


@pytest.mark.parametrize("arguments", [("gc",), ("forget",), ("verify",)])
def test_commands_refuse_a_missing_catalog(command, tmp_path, arguments):
    more = ("a",) if arguments == ("forget",) else ()
    code, _, err = command(*arguments, tmp_path / "nowhere", *more)
    assert code == 2 and "there is no catalog at" in err
    assert not (tmp_path / "nowhere").exists()
