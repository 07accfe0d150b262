"""Digests of a catalog's results, for comparing catalogs.

Runs over the same manifest and spec must give the same digests, however concepts were packed, whichever worker ran them
and whatever was lost (laws 1, 3 and 6). So a digest covers results alone: no id of a run, shard or attempt, no file
layout, and no seconds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from io import BytesIO

import pyarrow.parquet as pq

from persres.pipeline.catalog.commit_record import CommittedConcept
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.results import read_renderings, read_residual
from persres.pipeline.catalog.store import CatalogStore


def catalog_digest(store: CatalogStore) -> str:
    """A hex sha256 over all committed concepts: fingerprints, residuals, renderings, prompts and scores.

    Reads every committed object in full.

    Raises:
        StoreError: something committed is missing or damaged.
    """
    return _sha256(concept_digests(store))


def concept_digests(store: CatalogStore) -> dict[str, str]:
    """A hex sha256 for each committed concept.

    Raises:
        StoreError: as for `catalog_digest`.
    """
    return {concept_id: _concept_digest(store, committed) for concept_id, committed in read_committed(store).items()}


def residuals_written(store: CatalogStore) -> list[str]:
    """The concept of every residual in the catalog's files, whether or not an attempt committed it."""
    tables = [pq.read_table(BytesIO(store.read(path)), columns=["concept_id"]) for path in store.list("residuals/")]
    return [name for table in tables for name in table["concept_id"].to_pylist()]


def _concept_digest(store: CatalogStore, committed: CommittedConcept) -> str:
    renderings = [
        {**asdict(row), "image": hashlib.sha256(row.image).hexdigest()} for row in read_renderings(store, committed)
    ]
    return _sha256({
        "concept_id": committed.concept_id,
        "macro_class": committed.macro_class,
        "training": committed.training_fingerprint,
        "rendering": committed.rendering_fingerprint,
        "residual": hashlib.sha256(read_residual(store, committed)).hexdigest(),
        "renderings": renderings,
    })  # fmt: skip


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
