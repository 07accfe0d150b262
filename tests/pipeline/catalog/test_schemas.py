from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from persres.pipeline.catalog import schemas
from persres.pipeline.catalog.commit_record import CommittedConcept
from persres.pipeline.catalog.index import compact, read_committed
from persres.pipeline.catalog.layout import AttemptPaths
from persres.pipeline.catalog.schemas import (
    INDEX,
    MANIFEST,
    RENDERINGS,
    RESIDUALS,
    RenderingRow,
    ResidualRow,
    rendering_table,
    residual_table,
)
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.row import ManifestRow

from ...support.catalog_factories import commit, drawing, planned, rendering_rows_of, residual_row, shard_of


@pytest.fixture
def catalog(tmp_path):
    store = CatalogStore(str(tmp_path / "catalog"))
    commit(store, shard_of(planned("mug-a"), planned("mug-b")))
    commit(store, shard_of(planned("mug-c")))
    return tmp_path / "catalog"


@pytest.mark.parametrize("schema", [MANIFEST, RESIDUALS, RENDERINGS, INDEX])
def test_every_column_has_a_description(schema):
    assert all(len(column.metadata[b"description"]) > 5 for column in schema)


def test_columns_equal_the_row_fields():
    def names(row: type) -> set[str]:
        return {column.name for column in dataclasses.fields(row)}

    assert set(RESIDUALS.names) == names(ResidualRow)
    assert set(RENDERINGS.names) == names(RenderingRow) - {"image_path"}
    assert set(INDEX.names) == names(CommittedConcept) | {"run_id", "attempt", "shard_id"}
    assert set(MANIFEST.names) == names(ManifestRow) - {"row"}


def test_rows_are_read_back_from_a_parquet_file():
    concept = planned("mug-a")
    residuals = [residual_row(concept), residual_row(concept, ranks={}, metadata={}, losses=())]
    renderings = rendering_rows_of(concept)
    renderings.append(dataclasses.replace(renderings[0], prompt_score=None, identity_score=None, passed=None))
    for rows, table, back in (
        (residuals, residual_table(residuals), schemas.residual_rows),
        (renderings, rendering_table(renderings), schemas.rendering_rows),
    ):
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        assert back(pq.read_table(buffer)) == rows
        assert pq.read_schema(buffer).field("concept_id").metadata[b"description"]


def test_files_of_an_earlier_version_have_no_remedies():
    concept = planned("mug-a")
    for rows, table, back in (
        ([residual_row(concept)], residual_table, schemas.residual_rows),
        (rendering_rows_of(concept), rendering_table, schemas.rendering_rows),
    ):
        with_remedies = [dataclasses.replace(row, remedy="another seed") for row in rows]
        assert back(table(with_remedies)) == with_remedies
        older = table(with_remedies).drop_columns(["remedy"])
        assert back(older) == rows and {row.remedy for row in back(older)} == {None}


def test_row_with_a_wrong_type_is_refused():
    with pytest.raises((pa.ArrowException, TypeError)):
        residual_table([residual_row(planned("a"), iterations="many")])


def test_duckdb_reads_renderings_and_residuals(catalog):
    duckdb = pytest.importorskip("duckdb")
    images = duckdb.sql(f"select concept_id, prompt, image.bytes from '{catalog}/renderings/*.parquet'").fetchall()
    assert {row[0] for row in images} == {"mug-a", "mug-b", "mug-c"}
    assert all(Image.open(io.BytesIO(data)).size == (24, 24) for _, _, data in images)
    ranks = duckdb.sql(
        f"select concept_id, sum(entry.rank) from (select concept_id, unnest(ranks) as entry "
        f"from '{catalog}/residuals/*.parquet') group by 1 order by 1"
    ).fetchall()
    assert ranks == [("mug-a", 8), ("mug-b", 8), ("mug-c", 8)]


DOCUMENT = Path(__file__).parents[3] / "docs" / "data-contracts.md"


def sql_of_the_document(catalog: Path) -> list[str]:
    """The two statements that docs/data-contracts.md offers: one over index and records, one over renderings."""
    [block] = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return [one.replace("'catalog/", f"'{catalog}/") for one in block.strip().rstrip(";").split(";")]


@pytest.mark.parametrize("loose", ["none", "some"])
def test_duckdb_finds_the_committed_rows_among_those_of_older_runs_and_dead_attempts(catalog, loose):
    """The same choice of rows that `read_committed` makes, in plain SQL over index, records and data files."""
    duckdb = pytest.importorskip("duckdb")
    store = CatalogStore(str(catalog))
    store.delete(AttemptPaths("run-1", shard_of(planned("mug-c")).shard_id, "001").record)
    compact(store)
    commit(store, shard_of(planned("mug-a", rendering="r2", training="t2")), run_id="run-2")
    commit(store, shard_of(planned("mug-b")), attempt="002")
    if loose == "none":
        compact(store)
    connection = duckdb.connect()
    committed, renderings = sql_of_the_document(catalog)
    connection.sql(committed)
    held = connection.sql("select concept_id, rendering_fingerprint, residual_file, residual_row from committed")
    assert sorted(held.fetchall()) == [
        (name, one.rendering_fingerprint, one.residual_file, one.residual_row)
        for name, one in read_committed(store).items()
    ]
    found = connection.sql(f"select concept_id, rendering_fingerprint, count(*) from ({renderings}) group by all")
    assert sorted(found.fetchall()) == [("mug-a", "r2", 4), ("mug-b", "r1", 4)]


def test_hugging_face_datasets_shows_images(catalog, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for kind, feature in (("renderings", "image"), ("residuals", None)):
        files = sorted(str(path) for path in (catalog / kind).glob("*.parquet"))
        rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        assert set(rows["concept_id"]) == {"mug-a", "mug-b", "mug-c"}
        if feature:
            assert isinstance(rows.features["image"], datasets.Image)
            first = next(row for row in rows if row["concept_id"] == "mug-a" and row["variant"] == "lag")
            assert first["image"].convert("RGB").tobytes() == drawing("mug-alag0r1").tobytes()
