"""The load stage: fetch and scale reference images, check prompts, and read committed residuals.

It runs while another shard is on the device, so it does all that needs no device: images are scaled to the base model's
resolution and to the scorer's. This also bounds the memory of a loaded shard, since the originals, which may have
millions of pixels, are released concept by concept.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.concept import Concept
from ...core.errors import ConceptError, ConceptFailure, PersresError, StoreObjectMissing
from ...core.identifier_token import tokenize_concept_prompt
from ...core.latents import fit_square
from ...core.residual import Residual, check_residual
from ..catalog.commit_record import CommittedConcept
from ..catalog.data_file import DamagedFile
from ..catalog.results import read_residual_row
from ..catalog.store import CatalogStore
from ..planning.fingerprint import fingerprint
from ..planning.plan import PlannedConcept
from ..references.images import digest_references, load_references
from .personalizer import Personalizer
from .thumbnails import reference_thumbnails
from .work import ShardWork

LOADING_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class LoadedConcept:
    """A concept with everything that the device stage needs.

    Attributes:
        concept: its references are square, of the base model's resolution; none unless `trains`.
        scorer_references: the references as prepared by the scorer, or None without a scorer.
        residual: the committed residual: to render with, or if `trains` for a warm start; None for a cold start.
        thumbnails: of the references, as WebP; none unless `trains`.
        trains: whether it is trained: always in a train shard, in a render shard if its committed residual is damaged.
    """

    concept: Concept
    scorer_references: Tensor | None
    residual: Residual | None
    trains: bool = True
    thumbnails: tuple[bytes, ...] = ()


def load_shard(work: ShardWork, personalizer: Personalizer, store: CatalogStore) -> list[LoadedConcept]:
    """Load the shard's concepts, in its order. A concept that cannot be loaded is recorded as a failure in `work`.

    Raises:
        StoreError: a store failed in spite of retries.
    """

    def load(planned: PlannedConcept) -> LoadedConcept | ConceptFailure:
        try:
            return _load_concept(work, personalizer, planned, store)
        except ConceptError as error:
            return ConceptFailure.of(planned.concept_id, error)

    # Prompts are checked in this thread alone: see `Personalizer.loading_tokenizer`.
    valid, loaded = [], []
    for planned in work.shard.concepts:
        try:
            _check_prompts(work, personalizer, planned)
            valid.append(planned)
        except ConceptError as error:
            work.fail(ConceptFailure.of(planned.concept_id, error))
    with ThreadPoolExecutor(LOADING_THREADS, thread_name_prefix="load") as pool:
        for outcome in pool.map(load, valid):
            if isinstance(outcome, ConceptFailure):
                work.fail(outcome)
            else:
                loaded.append(outcome)
    return loaded


def _check_prompts(work: ShardWork, personalizer: Personalizer, planned: PlannedConcept) -> None:
    """Check that all prompts of a concept can be tokenized.

    Raises:
        ConceptError: a prompt is too long, or glued to other text.
    """
    training, row = work.spec.training, planned.row
    for template in (training.prompt, *row.prompts):
        tokenize_concept_prompt(personalizer.loading_tokenizer, template, training.identifier_token, row.macro_class)


def _load_concept(
    work: ShardWork, personalizer: Personalizer, planned: PlannedConcept, store: CatalogStore
) -> LoadedConcept:
    row, scorer = planned.row, personalizer.scorer
    residual, trains = _committed_residual(work, personalizer, planned, store)
    images: tuple[np.ndarray, ...] = ()
    if trains or scorer is not None:  # the identity score compares with the references
        images = load_references(row, work.spec.references)
        _check_unchanged(work, personalizer, planned)
    side = personalizer.base.resolution
    references = tuple(fit_square(image, side) for image in images) if trains else ()
    concept = Concept(row.concept_id, row.macro_class, references, tuple(row.prompts), row.seed_for(work.spec.seed))
    scorer_references = scorer.prepare(images) if scorer is not None else None
    thumbnails = reference_thumbnails(images) if trains else ()
    return LoadedConcept(concept, scorer_references, residual, trains, thumbnails)


def _check_unchanged(work: ShardWork, personalizer: Personalizer, planned: PlannedConcept) -> None:
    """Check that a concept's local images are those of the plan, since its results get the plan's fingerprint.

    Images in an object store are not checked, which would cost a request each: if one has changed, the next run's plan
    finds its new tag.

    Raises:
        ConceptError: an image has changed.
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
) -> tuple[Residual | None, bool]:
    """Return the committed residual to render with or to start from, if there is one, and whether to train.

    One that is damaged, gone, or of another base model costs its concept a cold start, noted with the reason: in a
    render shard, too, the concept is trained again. Its fingerprint says that the result will be the same.

    Raises:
        StoreError: the store failed in spite of retries.
    """
    trains, committed = work.shard.kind == "train", planned.committed
    if trains and (work.spec.training.warm_start is None or committed is None):
        return None, True
    assert committed is not None, "plan_run gives every render-only concept its committed state"
    try:
        residual, reason = _fitting_residual(work, personalizer, committed, store)
    except (DamagedFile, StoreObjectMissing) as error:
        residual, reason = None, error.message
    if residual is None:
        work.note(f"concept {planned.concept_id} {'starts cold' if trains else 'is trained again'}: {reason}")
    return residual, trains or residual is None


def _fitting_residual(
    work: ShardWork, personalizer: Personalizer, committed: CommittedConcept, store: CatalogStore
) -> tuple[Residual | None, str]:
    """Return a committed residual that fits the spec and the base model, or None and the reason.

    Raises:
        DamagedFile, StoreObjectMissing: it is damaged or gone.
        StoreError: the store failed in spite of retries.
    """
    base, settings = personalizer.base, work.spec.training
    row = read_residual_row(store, committed)
    if row.base_model_revision != base.revision:
        return None, f"its residual belongs to base model {row.base_model} at {row.base_model_revision}"
    try:
        residual = Residual.from_bytes(row.residual)
        check_residual(residual, base.target_layers)
    except PersresError as error:
        return None, error.message
    if residual.ranks != {layer.name: layer.rank(settings.rank) for layer in base.target_layers}:
        return None, "its residual has other ranks"
    if (residual.identifier is not None) != settings.train_identifier:
        return None, f"its residual was trained {'with' if residual.identifier is not None else 'without'} V*"
    if row.identifier_token != settings.identifier_token:
        return None, f"its residual was trained with {row.identifier_token!r} for V*"
    tensors = [*residual.a.values(), *residual.b.values()]
    if residual.identifier is not None:
        tensors.append(residual.identifier)
        if residual.identifier.shape != (base.text_encoder.config.hidden_size,):
            return None, f"its residual has a V* of shape {tuple(residual.identifier.shape)}"
    if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors):
        return None, "its residual holds values that are not finite numbers of 32 bits"
    return residual, ""
