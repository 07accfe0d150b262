"""One digest of everything a catalog holds, for comparing catalogs.

Two runs over the same manifest and spec must end with the same digest, whatever was packed with what, which worker ran
it and what died on the way (laws 1, 3 and 6). So the digest covers results alone: nothing that names a run, a shard
or an attempt, no file layout, and no seconds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

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
    """The same, concept by concept, so that a difference between two catalogs has a name.

    Raises:
        StoreError: as for `catalog_digest`.
    """
    return {concept_id: _concept_digest(store, committed) for concept_id, committed in read_committed(store).items()}


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
