"""Catalogs with residuals that can be decoded and with several runs, for the tests of maintenance."""

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
from persres.pipeline.catalog.layout import AttemptPaths, RunPaths
from persres.pipeline.catalog.schemas import ResidualRow
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.planning.plan import PlannedConcept

from .catalog_factories import commit, planned, rendering_rows_of, residual_row, shard_of

RUNS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb", "20260103T000000Z-cccccc")
RANKS = {"down.0": 2, "mid": 3}


def seeded_residual(seed: str, *, identifier: bool = True) -> Residual:
    """A random residual that depends on `seed` alone."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big")
    generator = torch.Generator().manual_seed(number)
    a = {name: torch.randn(8, rank, generator=generator) for name, rank in RANKS.items()}
    b = {name: torch.randn(rank, 8, generator=generator) for name, rank in RANKS.items()}
    return Residual(a, b, torch.randn(4, generator=generator) if identifier else None)


def real_residual_row(concept: PlannedConcept, **changes: object) -> ResidualRow:
    seed = f"{concept.concept_id}{concept.fingerprints.training}"
    blob = seeded_residual(seed).to_bytes({"concept_id": concept.concept_id})
    return residual_row(concept, **{"residual": blob, "ranks": RANKS, **changes})


def with_macro_class(concept: PlannedConcept, macro_class: str) -> PlannedConcept:
    return dataclasses.replace(concept, row=dataclasses.replace(concept.row, macro_class=macro_class))


def commit_trained(
    store: CatalogStore, *concepts: PlannedConcept, run: int = 0, attempt: str = "001", failed: Collection[str] = ()
) -> ShardCommit:
    """Commit a train shard of `concepts` and of the `failed` ones, which have no results."""
    failures = tuple(ConceptFailure(name, "load", f"the image of {name} cannot be read") for name in failed)
    shard = shard_of(*concepts, *map(planned, failed))
    rows = [real_residual_row(concept) for concept in concepts]
    images = [row for concept in concepts for row in rendering_rows_of(concept)]
    return commit(store, shard, run_id=RUNS[run], attempt=attempt, residuals=rows, renderings=images, failures=failures)


def commit_rerendered(store: CatalogStore, *names: str, run: int = 1, rendering: str = "r2") -> ShardCommit:
    """Commit a render shard of concepts that are committed already."""
    committed = read_committed(store)
    concepts = [
        with_macro_class(
            planned(name, training=held.training_fingerprint, rendering=rendering, committed=held), held.macro_class
        )
        for name, held in ((name, committed[name]) for name in names)
    ]
    return commit(store, shard_of(*concepts, kind="render"), run_id=RUNS[run])


def lost_attempt(store: CatalogStore, *concepts: PlannedConcept, run: int = 0, attempt: str = "009") -> list[str]:
    """Write the files of an attempt that was lost before it wrote its record; returns their paths."""
    record = commit_trained(store, *concepts, run=run, attempt=attempt)
    store.delete(AttemptPaths(record.run_id, record.shard_id, record.attempt).record)
    return sorted(record.files.values())


def write_documents(store: CatalogStore, run: int, *, names: Collection[str], failed: Collection[str] = ()) -> None:
    """Write the documents of a run."""
    failures = [{"concept_id": name, "stage": "load", "reason": "gone", "fix": ""} for name in failed]
    documents = {
        "plan.json": {"run_id": RUNS[run], "train": sorted(names), "render_only": [], "failed": sorted(failed)},
        "failures.json": {
            "failures": failures,
            "incidents": [f"worker 1 was lost with {', '.join(sorted(names))}", "pack size reduced to 4"],
        },
        "summary.json": {"rows": len(names) + len(failed), "committed": len(names), "current": 0, "failed": failures},
    }
    for name, document in documents.items():
        store.write(RunPaths(RUNS[run]).folder + name, json.dumps(document).encode())
    page = "".join(f"<h3>{name}</h3>" for name in sorted(names))
    store.write(RunPaths(RUNS[run]).report, page.encode())
    store.write(RunPaths(RUNS[run]).spec, b"base_model: spriteworld\n")


def write_history(store: CatalogStore) -> None:
    """Write three runs with every kind of object that a catalog can have; each kind mentions anna.

    Run 0 trains anna (the only one of her class), ben, cleo and dora, and loses an attempt. Run 1 renders anna and ben
    again. Run 2 trains cleo again, and fails at anna and emil.
    """
    anna = with_macro_class(planned("anna"), "somebody")
    commit_trained(store, anna, planned("ben"), planned("cleo"))
    commit_trained(store, planned("dora"), attempt="002")
    lost_attempt(store, anna, planned("dora"))
    commit_rerendered(store, "anna", "ben")
    commit_trained(store, planned("cleo", training="t2"), run=2, failed=("anna", "emil"))
    write_documents(store, 0, names=("anna", "ben", "cleo", "dora"))
    write_documents(store, 1, names=("anna", "ben"))
    write_documents(store, 2, names=("cleo",), failed=("anna", "emil"))


def object_texts(store: CatalogStore) -> dict[str, str]:
    """Every object of a catalog as text: Parquet with all columns, dictionaries and statistics, the rest as it is."""
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
