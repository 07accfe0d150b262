from __future__ import annotations

import dataclasses

import pytest

from persres.core.errors import StoreError
from persres.pipeline.catalog.index import read_committed

from ...support.catalog_digest import catalog_digest, concept_digests
from ...support.catalog_factories import commit, memory_store, planned, rendering_rows_of, residual_row, shard_of


def reference_catalog():
    store = memory_store()
    commit(store, shard_of(planned("a"), planned("b"), planned("c")), run_id="run-1")
    return store


def test_catalog_digest_ignores_shards_attempts_runs_and_seconds():
    other = memory_store()
    commit(other, shard_of(planned("c"), planned("a")), run_id="run-7", attempt="003", seconds=9.0)
    commit(other, shard_of(planned("b"), planned("a")), run_id="run-8", attempt="002", seconds=0.1)
    commit(other, shard_of(planned("b"), planned("a")), run_id="run-8", attempt="001")
    assert concept_digests(other) == concept_digests(reference_catalog())
    assert catalog_digest(other) == catalog_digest(reference_catalog())
    assert len(catalog_digest(other)) == 64


@pytest.mark.parametrize("change", ["residual", "image", "prompt_score", "prompt", "seed", "missing"])
def test_catalog_digest_changes_with_any_result_and_names_its_concept(change):
    store, concepts = memory_store(), [planned("a"), planned("b"), planned("c")]
    residuals = [residual_row(one) for one in concepts]
    images = [row for one in concepts for row in rendering_rows_of(one)]
    value = {"residual": b"x", "image": b"x", "prompt_score": 0.5000001, "prompt": "another", "seed": 8}
    if change == "residual":
        residuals[1] = dataclasses.replace(residuals[1], residual=b"x")
    elif change == "missing":
        images.pop(5)
    else:
        images[5] = dataclasses.replace(images[5], **{change: value[change]})
    commit(store, shard_of(*concepts), residuals=residuals, renderings=images)
    expected = concept_digests(reference_catalog())
    assert {name for name, digest in concept_digests(store).items() if digest != expected[name]} == {"b"}
    assert catalog_digest(store) != catalog_digest(reference_catalog())


def test_catalog_digest_of_an_empty_catalog():
    assert catalog_digest(memory_store()) == catalog_digest(memory_store()) != catalog_digest(reference_catalog())


def test_catalog_digest_with_a_lost_file_is_an_error():
    store = reference_catalog()
    store.delete(read_committed(store)["b"].residual_file)
    with pytest.raises(StoreError):
        catalog_digest(store)
