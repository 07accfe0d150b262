"""The report of a catalog as a local file."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from persres.core.errors import ConceptFailure, InvalidInput
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.references.settings import ReferenceSettings
from persres.pipeline.run.catalog_report import write_report
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_factories import commit, planned, rendering_rows_of, residual_row, shard_of

RUN = "20261122T190501Z-3fa9c1"


@pytest.fixture
def store(tmp_path) -> CatalogStore:
    """A run of two concepts, of which one is committed and one failed."""
    store = CatalogStore(str(tmp_path))
    plan = {"run_id": RUN, "train": ["a", "b"], "render_only": [], "failed": []}
    store.write(RunPaths(RUN).plan, json.dumps(plan).encode())
    commit(
        store,
        shard_of(planned("a"), planned("b")),
        run_id=RUN,
        residuals=[residual_row(planned("a"))],
        renderings=rendering_rows_of(planned("a")),
        failures=(ConceptFailure("b", "train", "loss is NaN"),),
    )
    return store


def test_write_report_shows_what_is_committed_and_what_failed(store, tmp_path):
    assert write_report(str(tmp_path), tmp_path / "page.html") == 1
    page = (tmp_path / "page.html").read_text()
    assert "loss is NaN" in page and page.startswith("<!")


def test_write_report_refuses_an_empty_catalog(tmp_path):
    with pytest.raises(InvalidInput, match="there is no catalog"):
        write_report(str(tmp_path), tmp_path / "page.html")


def test_write_report_reads_references_with_the_runs_settings(store, tmp_path):
    """The default settings refuse this image, those of the run's spec accept it."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "small.png")
    row = {"concept_id": "a", "macro_class": "mug", "reference_images": ["small.png"], "prompts": ["a {concept}"]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))

    def references_shown() -> int:
        write_report(str(tmp_path), tmp_path / "page.html", manifest_uri=str(tmp_path / "manifest.jsonl"))
        return (tmp_path / "page.html").read_text().count('alt="reference')

    assert references_shown() == 0
    spec = RunSpec(references=ReferenceSettings(min_side=8))
    store.write(RunPaths(RUN).spec, spec.to_yaml().encode())
    assert references_shown() == 1
    store.write(RunPaths(RUN).spec, b"setting_of_a_later_version: 1")
    assert references_shown() == 0
