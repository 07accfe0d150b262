"""Everything a shard needs that is not on the device yet: pictures, prompts that fit, residuals committed before.

This runs beside another shard's training, so whatever can be done without the device is done here: pictures are scaled
to the base model's size, and to the scorer's. That also bounds the memory of a shard that waits for its turn, for the
originals, which may have millions of pixels, are let go one after the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...core.concept import Concept
from ...core.errors import ConceptError, ConceptFailure, PersresError, StoreError
from ...core.identifier_token import tokenize_concept_prompt
from ...core.latents import fit_square
from ...core.residual import Residual, check_residual
from ..catalog.commit_record import CommittedConcept
from ..catalog.results import read_residual, read_residual_row
from ..catalog.store import CatalogStore
from ..planning.fingerprint import fingerprint
from ..planning.plan import PlannedConcept
from ..references.images import digest_references, load_references
from .personalizer import Personalizer
from .work import ShardWork

LOADING_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class LoadedConcept:
    """A concept with all that the device will be asked to work with.

    Attributes:
        concept: its references are square, of the base model's resolution; none where nothing is trained.
        likenesses: the references as the scorer reads them, or None without a scorer.
        residual: from the catalog: what a concept that only needs rendering is rendered with, or what one to be
            trained starts from; None to start cold.
    """

    concept: Concept
    likenesses: Tensor | None
    residual: Residual | None


def load_shard(work: ShardWork, personalizer: Personalizer, store: CatalogStore) -> list[LoadedConcept]:
    """Every concept of the shard that can be loaded, in the shard's order; the others are recorded as failures.

    Raises:
        StoreError: a store did not answer, even when asked again.
    """

    def load(planned: PlannedConcept) -> LoadedConcept | ConceptFailure:
        try:
            return _load_concept(work, personalizer, planned, store)
        except ConceptError as error:
            return ConceptFailure.of(planned.concept_id, error)

    readable = [planned for planned in work.shard.concepts if _prompts_fit(work, personalizer, planned)]
    loaded = []
    with ThreadPoolExecutor(LOADING_THREADS, thread_name_prefix="load") as pool:
        for outcome in pool.map(load, readable):
            if isinstance(outcome, ConceptFailure):
                work.fail(outcome)
            else:
                loaded.append(outcome)
    return loaded


def _prompts_fit(work: ShardWork, personalizer: Personalizer, planned: PlannedConcept) -> bool:
    """Whether the tokenizer can read all of a concept's prompts; one that it cannot must not reach a pack."""
    training, row = work.spec.training, planned.row
    try:
        for template in (training.prompt, *row.prompts):
            tokenize_concept_prompt(
                personalizer.loading_tokenizer, template, training.identifier_token, row.macro_class
            )
    except ConceptError as error:
        work.fail(ConceptFailure.of(planned.concept_id, error))
        return False
    return True


def _load_concept(
    work: ShardWork, personalizer: Personalizer, planned: PlannedConcept, store: CatalogStore
) -> LoadedConcept:
    row, scorer, trains = planned.row, personalizer.scorer, work.shard.kind == "train"
    pictures: tuple[np.ndarray, ...] = ()
    if trains or scorer is not None:  # identity is measured against the references
        pictures = load_references(row, work.spec.references)
        _check_unchanged(work, personalizer, planned)
    side = personalizer.base.resolution
    references = tuple(fit_square(picture, side) for picture in pictures) if trains else ()
    concept = Concept(row.concept_id, row.macro_class, references, tuple(row.prompts), row.seed_for(work.spec.seed))
    likenesses = scorer.prepare(pictures) if scorer is not None else None
    residual = (_warm_start if trains else _committed_residual)(work, personalizer, planned, store)
    return LoadedConcept(concept, likenesses, residual)


def _check_unchanged(work: ShardWork, personalizer: Personalizer, planned: PlannedConcept) -> None:
    """Refuse a concept whose local images are not what was planned: its results would go by a false fingerprint.

    Images in a store are not asked about again, which would cost a request each; where one of them has changed, the
    next run's plan finds another tag.
    """
    settings, sources = work.spec.references, planned.row.reference_images
    uris = [source.uri for source in sources if source.data is None and source.uri is not None]
    if settings.digest == "stat" or not uris or not all(_is_local(uri) for uri in uris):
        return
    digests = digest_references(planned.row, settings)
    now = fingerprint(planned.row, digests, work.spec, personalizer.base.revision, None)
    if now.training != planned.fingerprints.training:
        raise ConceptError(
            "its reference images have changed since the run was planned",
            stage="load",
            fix="submit again, which plans with the images as they are now",
            concept_id=planned.concept_id,
        )


def _is_local(uri: str) -> bool:
    return "::" not in uri and ("://" not in uri or uri.startswith("file://"))


def _committed_residual(
    work: ShardWork, personalizer: Personalizer, planned: PlannedConcept, store: CatalogStore
) -> Residual:
    """The residual that an earlier run committed, for a concept that only needs rendering."""
    assert planned.committed is not None, "plan_run gives every render-only concept its committed residual"
    blob = read_residual(store, planned.committed)
    try:
        residual = Residual.from_bytes(blob)
        check_residual(residual, personalizer.base.target_layers)
    except PersresError as error:
        raise ConceptError(f"committed residual: {error.message}", stage="load", fix=error.fix) from error
    return residual


def _warm_start(
    work: ShardWork, personalizer: Personalizer, planned: PlannedConcept, store: CatalogStore
) -> Residual | None:
    """The concept's older residual, where the spec asks for warm starts and it fits; training can always start cold."""
    if work.spec.training.warm_start is None or planned.committed is None:
        return None
    try:
        residual, reason = _fitting_residual(work, personalizer, planned.committed, store)
    except (PersresError, StoreError) as error:
        residual, reason = None, str(error)
    if residual is None:
        work.note(f"concept {planned.concept_id} starts cold: {reason}")
    return residual


def _fitting_residual(
    work: ShardWork, personalizer: Personalizer, committed: CommittedConcept, store: CatalogStore
) -> tuple[Residual | None, str]:
    """A committed residual that training can go on from, or None and why not."""
    base, settings = personalizer.base, work.spec.training
    row = read_residual_row(store, committed)
    if row.base_model_revision != base.revision:
        return None, f"its residual belongs to base model {row.base_model} at {row.base_model_revision}"
    residual = Residual.from_bytes(row.residual)
    check_residual(residual, base.target_layers)
    if residual.ranks != {layer.name: layer.rank(settings.rank_fraction) for layer in base.target_layers}:
        return None, "its residual has other ranks"
    if (residual.identifier is not None) != settings.train_identifier:
        return None, f"its residual was trained {'with' if residual.identifier is not None else 'without'} V*"
    if row.identifier_token != settings.identifier_token:
        return None, f"its residual was trained with {row.identifier_token!r} for V*"
    return residual, ""
