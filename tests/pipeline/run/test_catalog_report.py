"""The report of a catalog as a local file."""

from __future__ import annotations

import json

import pytest

from persres.core.errors import ConceptFailure, InvalidInput
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.run.catalog_report import write_report
from persres.pipeline.shard.thumbnails import reference_thumbnails

from ...support.catalog_factories import commit, drawing, planned, rendering_rows_of, residual_row, shard_of

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


def test_write_report_fetches_no_reference(store, tmp_path):
    """The manifest's references are gone, and the report of its concepts is made all the same, with what was kept."""
    rows = [
        {"concept_id": name, "macro_class": "mug", "reference_images": ["http://127.0.0.1:1/gone.png"]}
        for name in ("a", "not-done")
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(json.dumps(row | {"prompts": ["a {concept}"]}) for row in rows))
    thumbnails = reference_thumbnails([drawing("a")] * 3)
    residuals = [residual_row(planned("a"), reference_thumbnails=thumbnails)]
    commit(store, shard_of(planned("a")), run_id=RUN, attempt="000", residuals=residuals)
    write_report(str(tmp_path), tmp_path / "page.html", manifest_uri=str(tmp_path / "manifest.jsonl"))
    assert (tmp_path / "page.html").read_text().count('alt="reference') == 3


def test_write_report_replaces_a_link_and_leaves_its_target(store, tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "page.html").symlink_to(tmp_path / "target")
    write_report(str(tmp_path), tmp_path / "page.html")
    assert (tmp_path / "target").read_text() == "precious" and "<!" in (tmp_path / "page.html").read_text()


def test_write_report_refuses_what_is_no_file_at_once(store, tmp_path):
    for out in (tmp_path, tmp_path / "page.html" / "below"):
        (tmp_path / "page.html").write_text("")
        with pytest.raises(InvalidInput, match=r"Fix: "):
            write_report(str(tmp_path / "no catalog"), out)
