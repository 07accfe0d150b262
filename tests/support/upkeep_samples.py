"""Catalogs whose residuals are real ones, with a history: what upkeep has to do with."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from persres.core.errors import ConceptFailure
from persres.core.residual import Residual
from persres.pipeline.catalog.commit_record import ShardCommit
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.schemas import ResidualRow
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.planning.plan import PlannedConcept

from .catalog_samples import commit, planned, rendering_rows_of, residual_row, shard_of

RUNS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb", "20260103T000000Z-cccccc")
RANKS = {"down.0": 2, "mid": 3}


def residual_of(seed: str, *, identifier: bool = True) -> Residual:
    """A residual that depends on its seed alone."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(number)
    a = {name: torch.randn(8, rank, generator=generator) for name, rank in RANKS.items()}
    b = {name: torch.randn(rank, 8, generator=generator) for name, rank in RANKS.items()}
    return Residual(a, b, torch.randn(4, generator=generator) if identifier else None)


def real_row(concept: PlannedConcept, **changes: object) -> ResidualRow:
    seed = f"{concept.concept_id}{concept.fingerprints.training}"
    blob = residual_of(seed).to_bytes({"concept_id": concept.concept_id})
    return residual_row(concept, **{"residual": blob, "ranks": RANKS, **changes})


def in_class(concept: PlannedConcept, macro_class: str) -> PlannedConcept:
    return dataclasses.replace(concept, row=dataclasses.replace(concept.row, macro_class=macro_class))


def trained(
    store: CatalogStore, *concepts: PlannedConcept, run: int = 0, attempt: str = "001", failed: Collection[str] = ()
) -> ShardCommit:
    """Commit a train shard; `failed` are further concepts of it without a result."""
    failures = tuple(ConceptFailure(name, "load", f"the image of {name} cannot be read") for name in failed)
    shard = shard_of(*concepts, *map(planned, failed))
    rows = [real_row(concept) for concept in concepts]
    images = [row for concept in concepts for row in rendering_rows_of(concept)]
    return commit(store, shard, run_id=RUNS[run], attempt=attempt, residuals=rows, renderings=images, failures=failures)


def rendered_again(store: CatalogStore, *names: str, run: int = 1, rendering: str = "r2") -> ShardCommit:
    """Commit a render shard, whose residuals stay where they are."""
    committed = read_committed(store)
    concepts = [
        in_class(
            planned(name, training=held.training_fingerprint, rendering=rendering, committed=held), held.macro_class
        )
        for name, held in ((name, committed[name]) for name in names)
    ]
    return commit(store, shard_of(*concepts, kind="render"), run_id=RUNS[run])


def dead_attempt(store: CatalogStore, *concepts: PlannedConcept, run: int = 0, attempt: str = "009") -> list[str]:
    """The files of an attempt that died before its record; returns their paths."""
    record = trained(store, *concepts, run=run, attempt=attempt)
    store.delete(store.commit_record(record.run_id, record.shard_id, record.attempt))
    return sorted(record.files.values())


def write_documents(store: CatalogStore, run: int, *, names: Collection[str], failed: Collection[str] = ()) -> None:
    """What a run leaves about itself."""
    failures = [{"concept_id": name, "stage": "load", "reason": "gone", "fix": ""} for name in failed]
    documents = {
        "plan.json": {"run_id": RUNS[run], "train": sorted(names), "render_only": [], "failed": sorted(failed)},
        "failures.json": {
            "failures": failures,
            "incidents": [f"worker 1 died with {', '.join(sorted(names))} in hand", "pack size reduced to 4"],
        },
        "summary.json": {"rows": len(names) + len(failed), "committed": len(names), "current": 0, "failed": failures},
    }
    for name, document in documents.items():
        store.write(store.run_file(RUNS[run], name), json.dumps(document).encode())
    page = "".join(f"<h3>{name}</h3>" for name in sorted(names))
    store.write(store.run_file(RUNS[run], "report.html"), page.encode())
    store.write(store.run_file(RUNS[run], "spec.yaml"), b"base_model: spriteworld\n")


def history(store: CatalogStore) -> None:
    """Three runs over concepts a to f, with everything that can be left of one; `anna` is in all of it.

    Run 0 trains anna, ben, cleo (anna as the only one of her class) and dora; an attempt of it died. Run 1 renders anna
    and ben again. Run 2 trains cleo again, and fails at anna and emil.
    """
    anna = in_class(planned("anna"), "somebody")
    trained(store, anna, planned("ben"), planned("cleo"))
    trained(store, planned("dora"), attempt="002")
    dead_attempt(store, anna, planned("dora"))
    rendered_again(store, "anna", "ben")
    trained(store, planned("cleo", training="t2"), run=2, failed=("anna", "emil"))
    write_documents(store, 0, names=("anna", "ben", "cleo", "dora"))
    write_documents(store, 1, names=("anna", "ben"))
    write_documents(store, 2, names=("cleo",), failed=("anna", "emil"))


def texts_of(store: CatalogStore) -> dict[str, str]:
    """Every object of a catalog as text: JSON as it is, Parquet with all columns, dictionaries and statistics."""
    return {path: _text(path, data) for path, data in store.read_many(store.list("")).items()}


def _text(path: str, data: bytes) -> str:
    if not path.endswith(".parquet"):
        return data.decode()
    with pq.ParquetFile(io.BytesIO(data)) as file:
        table = file.read()
        dictionaries = [
            chunk.dictionary.to_pylist()
            for column in table.columns
            for chunk in column.chunks
            if pa.types.is_dictionary(chunk.type)
        ]
        plain = table.cast(pa.schema([_decoded(field) for field in table.schema]))
        return f"{file.metadata.to_dict()} {dictionaries} {plain.to_pylist()}"


def _decoded(field: pa.Field) -> pa.Field:
    return field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
