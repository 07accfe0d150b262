"""gc, forget and verify as a person calls them: what they print, what they exit with, and who may be at work."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from persres.pipeline.catalog.lease import hold_lease, lease_holder
from persres.pipeline.catalog.store import CatalogStore

from ...support.catalog_digest import concept_digests
from ...support.catalog_samples import planned
from ...support.upkeep_samples import dead_attempt, history, trained


@pytest.fixture
def catalog(tmp_path) -> Path:
    return tmp_path / "catalog"


@pytest.fixture
def store(catalog) -> CatalogStore:
    return CatalogStore(str(catalog))


def made_old(catalog: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for path in catalog.rglob("*"):
        os.utime(path, (then, then))


def test_gc_lists_first_and_removes_when_told_to(command, catalog, store):
    trained(store, planned("a"))
    dead = dead_attempt(store, planned("b"))
    made_old(catalog, 25)
    code, out, _ = command("gc", catalog)
    assert code == 0 and all(f"{path}  " in out for path in dead) and "--delete removes them" in out
    assert set(dead) <= set(store.list(""))

    code, out, _ = command("gc", catalog, "--delete", "--json")
    told = json.loads(out)
    assert code == 0 and told["removed"] == dead and told["bytes"] > 0 and told["too_young"] == 0
    assert not set(dead) & set(store.list(""))
    assert lease_holder(store) is None
    assert command("gc", catalog)[1] == f"{catalog}: no garbage\n"


def test_gc_leaves_alone_what_is_young(command, catalog, store):
    trained(store, planned("a"))
    dead = dead_attempt(store, planned("b"))
    code, out, _ = command("gc", catalog, "--delete", "--older-than", "1h", "--json")
    assert code == 0 and json.loads(out)["removed"] == [] and json.loads(out)["too_young"] == 2
    assert "2 more objects" in command("gc", catalog)[1]
    assert json.loads(command("gc", catalog, "--delete", "--older-than", "0s", "--json")[1])["removed"] == dead


@pytest.mark.parametrize("age", ["24", "h", "1 week", "-1h", ""])
def test_an_age_that_is_none_is_refused(command, catalog, store, age):
    trained(store, planned("a"))
    code, _, err = command("gc", catalog, f"--older-than={age}")
    assert code == 2 and "24h" in err


def test_gc_and_forget_wait_for_nobody_while_a_run_holds_the_catalog(command, catalog, store):
    trained(store, planned("a"))
    dead_attempt(store, planned("b"))
    there = store.list("")
    with hold_lease(store, "run-9", "ana@here"):
        for arguments in (("gc", catalog, "--delete", "--older-than", "0s"), ("forget", catalog, "a")):
            code, _, err = command(*arguments)
            assert code == 4 and "held by run run-9 of ana@here" in err
        assert command("gc", catalog, "--older-than", "0s")[0] == 0, "listing disturbs nobody"
        assert command("forget", catalog, "a", "--dry-run")[0] == 0
        assert command("verify", catalog)[0] == 0
    assert set(there) <= set(store.list(""))


def test_forget_says_what_it_would_take_and_then_what_it_took(command, catalog, store):
    history(store)
    digests = concept_digests(store)
    code, out, _ = command("forget", catalog, "anna", "emil", "--dry-run")
    assert code == 0 and "to be rewritten, for others lie in it too" in out and "nothing is changed yet" in out
    assert concept_digests(store) == digests

    code, out, _ = command("forget", catalog, "anna", "emil")
    assert code == 0 and "forgot anna, emil: 2 data files rewritten, 3 removed" in out
    assert "manifest that still lists a concept brings it back" in out and "versioning" not in out
    assert set(concept_digests(store)) == {"ben", "cleo", "dora"}
    assert command("verify", catalog)[0] == 0


def test_forget_knows_who_is_not_there(command, catalog, store):
    history(store)
    code, out, err = command("forget", catalog, "anne", "ben")
    assert code == 2 and out == "" and "did you mean anna?" in err
    assert "ben" in concept_digests(store)


def test_verify_names_concept_file_fault_and_fix(command, catalog, store):
    trained(store, planned("a"), planned("b"))
    code, out, _ = command("verify", catalog)
    assert code == 0 and out == f"{catalog}: 2 concepts, 2 files, 8 renderings: everything is as it was committed\n"

    record = trained(store, planned("c"), attempt="002")
    store.delete(record.files["renderings"])
    code, out, _ = command("verify", catalog)
    assert code == 1
    assert f"concept c, {record.files['renderings']}: the file is missing. Fix: persres-batch forget {catalog} c" in out
    assert "1 fault in 1 concept" in out
    code, out, _ = command("verify", catalog, "--json")
    told = json.loads(out)
    assert code == 1 and not told["clean"] and [one["concept_id"] for one in told["findings"]] == ["c"]
    assert (told["concepts"], told["files"]) == (3, 4)


def test_the_fix_that_verify_names_leads_to_a_clean_catalog(command, catalog, store):
    record = trained(store, planned("a"), planned("b"))
    trained(store, planned("c"), attempt="002")
    store.write(record.files["residuals"], b"PAR1 nothing")
    found = json.loads(command("verify", catalog, "--json")[1])["findings"]
    told = {one["fix"].split(";")[0] for one in found}
    assert told == {f"persres-batch forget {catalog} a b"}
    assert command("forget", catalog, "a", "b")[0] == 0
    assert command("verify", catalog)[0] == 0 and set(concept_digests(store)) == {"c"}


@pytest.mark.parametrize("arguments", [("gc",), ("forget",), ("verify",)])
def test_there_has_to_be_a_catalog(command, tmp_path, arguments):
    more = ("a",) if arguments == ("forget",) else ()
    code, _, err = command(*arguments, tmp_path / "nowhere", *more)
    assert code == 2 and "there is no catalog at" in err
    assert not (tmp_path / "nowhere").exists()
