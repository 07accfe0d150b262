"""Factories of concepts, shards, rows and commits."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import uuid

import numpy as np
from PIL import Image, ImageDraw

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.commit_record import CommittedConcept, Fingerprints, ShardCommit
from persres.pipeline.catalog.schemas import RenderingRow, ResidualRow
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.shard.commit import commit_shard

PROMPTS = ("a photo of a {concept} on grass", "a photo of a {concept} in the snow")


def memory_store() -> CatalogStore:
    """An empty catalog in memory: an object store, without folders and renames."""
    return CatalogStore(f"memory://catalog-{uuid.uuid4().hex}")


def planned(
    concept_id: str,
    *,
    training: str = "t1",
    rendering: str = "r1",
    committed: CommittedConcept | None = None,
    row: int = 0,
) -> PlannedConcept:
    """A concept with the given fingerprints; `row` is its place in the manifest."""
    manifest_row = ManifestRow(row, concept_id, "mug", (ReferenceSource("one.png"),), PROMPTS)
    return PlannedConcept(manifest_row, Fingerprints(training, rendering), committed)


def shard_of(*concepts: PlannedConcept, kind: str = "train") -> Shard:
    return Shard.of(kind, concepts)  # type: ignore[arg-type]


def drawing(text: str, size: int = 24) -> np.ndarray:
    """A disc on a background, whose colours depend on `text` alone: an array of size x size x 3, uint8."""
    digest = hashlib.sha256(text.encode()).digest()
    ground, disc = tuple(digest[:3]), tuple(digest[3:6])
    image = Image.new("RGB", (size, size), ground)
    ImageDraw.Draw(image).ellipse((size // 5, size // 5, size * 4 // 5, size * 4 // 5), fill=disc)
    return np.asarray(image)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def residual_row(concept: PlannedConcept, **changes: object) -> ResidualRow:
    """The row of a trained concept. Its residual cannot be decoded; catalog_history.py has ones that can."""
    values: dict[str, object] = {
        "concept_id": concept.concept_id,
        "macro_class": concept.row.macro_class,
        "training_fingerprint": concept.fingerprints.training,
        "base_model": "spriteworld",
        "base_model_revision": "abc",
        "identifier_token": "sks",
        "ranks": {"down.0": 3, "mid": 5},
        "residual": hashlib.sha256(f"{concept.concept_id}{concept.fingerprints.training}".encode()).digest() * 8,
        "losses": (1.0, 0.5, 0.25),
        "final_loss": 0.25,
        "iterations": 3,
        "seconds": 1.5,
        "metadata": {"sku": "1"},
    }
    return ResidualRow(**{**values, **changes})  # type: ignore[arg-type]


def rendering_rows_of(
    concept: PlannedConcept, *, variants: tuple[str, ...] = ("base", "lag"), score: float = 0.5
) -> list[RenderingRow]:
    """The rows of a concept: an image for each prompt and variant."""
    return [
        RenderingRow(
            concept_id=concept.concept_id,
            training_fingerprint=concept.fingerprints.training,
            rendering_fingerprint=concept.fingerprints.rendering,
            prompt_index=index,
            image_index=0,
            prompt_template=template,
            prompt=template.replace("{concept}", "sks mug"),
            seed=7 + index,
            variant=variant,
            guidance_scale=4.0,
            steps=20,
            width=24,
            height=24,
            image=png(drawing(f"{concept.concept_id}{variant}{index}{concept.fingerprints.rendering}")),
            image_path=f"{concept.concept_id}/{variant}-{index}-0.png",
            prompt_score=score,
            identity_score=score / 2,
            passed=score > 0.3,
        )
        for index, template in enumerate(concept.row.prompts)
        for variant in variants
    ]


def unscored(rows: list[RenderingRow]) -> list[RenderingRow]:
    return [dataclasses.replace(row, prompt_score=None, identity_score=None, passed=None) for row in rows]


def commit(
    store: CatalogStore,
    shard: Shard,
    *,
    run_id: str = "run-1",
    attempt: str = "001",
    residuals: list[ResidualRow] | None = None,
    renderings: list[RenderingRow] | None = None,
    failures: tuple[ConceptFailure, ...] = (),
    score: float = 0.5,
    seconds: float = 1.0,
) -> ShardCommit:
    """Commit `shard`, by default with rows that depend on its concepts and their fingerprints alone."""
    trained = shard.concepts if shard.kind == "train" else ()
    if residuals is None:
        residuals = [residual_row(concept, seconds=seconds) for concept in trained]
    if renderings is None:
        renderings = [row for concept in shard.concepts for row in rendering_rows_of(concept, score=score)]
    return commit_shard(
        store,
        run_id=run_id,
        shard=shard,
        attempt=attempt,
        residuals=residuals,
        renderings=renderings,
        failures=failures,
        seconds={"train": seconds},
    )
