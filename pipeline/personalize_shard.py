"""Execute one shard: load -> pack and train -> render -> score -> commit. The file to read first.

A concept that cannot be done becomes a ConceptFailure, and its shard-mates go on. Only errors that are not a concept's
fault, such as those of the store or the device, leave `personalize_shard` as exceptions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..core.base_model import BaseModel
from ..core.concept import derive_seed, expand_template
from ..core.errors import ConceptError, ConceptFailure, PersresError
from ..core.latents import encode_references
from ..core.residual import Residual
from ..core.sampling.lag_sampling import Rendering, RenderRequest, render
from ..core.scoring.quality_scores import QualityScores, score_renderings
from ..core.training.residual_training import TrainedResidual, is_out_of_memory, train_residuals
from ..core.training.training_pack import TrainingRequest, iterations_of
from .catalog.commit_record import Measured
from .catalog.store import CatalogStore
from .planning.plan import Shard
from .planning.throughput import batch_count, pack_steps, throughput_key
from .shard.commit import commit_shard
from .shard.loading import LoadedConcept, load_shard
from .shard.pack_size import device_kind
from .shard.personalizer import Personalizer
from .shard.rows import rendering_row, residual_row
from .shard.stages import ShardStages
from .shard.summary import ShardProgress, ShardSummary
from .shard.work import ShardWork
from .spec.run_spec import RunSpec


def personalize_shard(
    personalizer: Personalizer,
    shard: Shard,
    spec: RunSpec,
    store: CatalogStore,
    *,
    run_id: str,
    attempt: str,
    stages: ShardStages,
    lease_generation: int = 0,
    on_progress: Callable[[ShardProgress], None] = lambda progress: None,
) -> ShardSummary:
    """Execute one attempt at a shard and commit its results.

    Args:
        store: the catalog.
        attempt: a name that no other attempt at this shard in this run has.
        stages: the worker's stages. Shards that share them, each in a thread of its own, overlap: one is loaded and
            another committed while a third is on the device. Their results do not depend on it.
        lease_generation: of the run's lease.
        on_progress: called from the thread of the shard's current stage.

    Raises:
        CatalogHeld: the run has lost its lease, and its commits are refused.
        StoreError: a store failed in spite of retries. Readers of the catalog see nothing of the attempt.
        WorkerCorrupted: another shard raised an error on this worker before this one had left the device.
        PersresError: the device has too little memory for the run's settings.
    """
    work = ShardWork(shard, spec, on_progress)
    return stages.run_shard(
        lambda: _load(work, personalizer, store),
        lambda loaded: _train_render_score(work, personalizer, loaded),
        lambda results: _commit(work, personalizer, store, results, run_id, attempt, lease_generation),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Results:
    """The results of the device stage, by concept id. `scores` has one entry per rendering, None without a scorer."""

    trained: Mapping[str, TrainedResidual]
    renderings: Mapping[str, Sequence[Rendering]]
    scores: Mapping[str, Sequence[QualityScores | None]]
    pack_size: int
    thumbnails: Mapping[str, Sequence[bytes]]


def _load(work: ShardWork, personalizer: Personalizer, store: CatalogStore) -> list[LoadedConcept]:
    with work.phase("load"):
        return load_shard(work, personalizer, store)


def _train_render_score(work: ShardWork, personalizer: Personalizer, loaded: Sequence[LoadedConcept]) -> _Results:
    trained: dict[str, TrainedResidual] = {}
    pack_size = personalizer.pack_size
    with work.phase("train"):
        if to_train := [one for one in loaded if one.trains]:
            trained, pack_size = _train(work, personalizer, to_train)
        residuals = {one.concept.concept_id: one.residual for one in loaded if one.residual and not one.trains}
        residuals |= {concept_id: result.residual for concept_id, result in trained.items()}
    with work.phase("render"):
        renderings = _render(work, personalizer, loaded, residuals)
    with work.phase("score"):
        scores = _score(work, personalizer, loaded, renderings)
    thumbnails = {one.concept.concept_id: one.thumbnails for one in loaded}
    return _Results(trained, renderings, scores, pack_size, thumbnails)


def _train(
    work: ShardWork, personalizer: Personalizer, loaded: Sequence[LoadedConcept]
) -> tuple[dict[str, TrainedResidual], int]:
    """Train all concepts in packs. Returns the residuals by concept id, and the pack size with which training ended."""
    settings, pack_size = work.spec.training, personalizer.pack_size
    all_iterations = sum(iterations_of(settings, one.residual) for one in loaded)

    def on_smaller_pack(size: int) -> None:
        nonlocal pack_size
        pack_size = size
        work.note(f"pack size reduced to {size} after the device ran out of memory")

    def on_retry(request: TrainingRequest, fault: str) -> None:
        nonlocal all_iterations
        all_iterations += iterations_of(settings, request.start)
        work.note(f"concept {request.concept_id} is trained again at a lower learning rate: {fault}")

    trained: dict[str, TrainedResidual] = {}
    for result in train_residuals(
        personalizer.base,
        _training_requests(work, personalizer.base, loaded),
        settings,
        pack_size=pack_size,
        on_step=lambda done: work.report_iterations(done, all_iterations),
        on_smaller_pack=on_smaller_pack,
        on_retry=on_retry,
    ):
        if isinstance(result, ConceptFailure):
            work.fail(result)
        else:
            trained[result.concept_id] = result
    return trained, pack_size


def _training_requests(work: ShardWork, base: BaseModel, loaded: Iterable[LoadedConcept]) -> Iterator[TrainingRequest]:
    """Encode the references of each concept when a slot of the pack is free for it."""
    for one in loaded:
        concept = one.concept
        try:
            latents = encode_references(base, concept.references, mirrored=work.spec.training.mirror)
        except ConceptError as error:
            work.fail(ConceptFailure.of(concept.concept_id, error))
            continue
        yield TrainingRequest(concept.concept_id, concept.macro_class, concept.seed, latents, start=one.residual)


def _render(
    work: ShardWork,
    personalizer: Personalizer,
    loaded: Sequence[LoadedConcept],
    residuals: Mapping[str, Residual],
) -> dict[str, list[Rendering]]:
    """Render all images of the concepts that have a residual, in mixed batches; a faulty image fails its concept."""
    settings = work.spec.sampling
    try:
        rendered = render(
            personalizer.base,
            residuals,
            _render_requests(work, [one for one in loaded if one.concept.concept_id in residuals]),
            settings,
            identifier_token=work.spec.training.identifier_token,
            on_step=work.report_denoising_steps,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PersresError(
            f"the device has too little memory to render {settings.batch_size} images at a time",
            fix="set a smaller sampling.batch_size",
        ) from error
    renderings: dict[str, list[Rendering]] = defaultdict(list)
    for rendering in rendered:
        request = rendering.request
        renderings[request.concept_id].append(rendering)
        name = f"prompt {request.template!r} ({request.variant})"
        if rendering.fault:
            fix = "lower training.learning_rate or sampling.guidance_scale"
            work.fail(ConceptFailure(request.concept_id, "render", f"{name} gave {rendering.fault}", fix))
        elif rendering.remedy:
            work.note(f"concept {request.concept_id}, {name}: made again with {rendering.remedy}")
    return renderings


def _render_requests(work: ShardWork, loaded: Iterable[LoadedConcept]) -> list[RenderRequest]:
    settings = work.spec.sampling
    return [
        RenderRequest(
            concept.concept_id,
            concept.macro_class,
            template,
            prompt_index,
            image_index,
            variant,
            # From the prompt's text, not its index, so that adding a prompt does not change the others' images.
            # The variants share the seed, so that they can be compared.
            derive_seed(concept.seed, concept.concept_id, f"rendering/{image_index}/{template}"),
        )
        for concept in (one.concept for one in loaded)
        for prompt_index, template in enumerate(concept.prompts)
        for variant in settings.variants
        for image_index in range(settings.images_per_prompt)
    ]


def _score(
    work: ShardWork,
    personalizer: Personalizer,
    loaded: Sequence[LoadedConcept],
    renderings: Mapping[str, Sequence[Rendering]],
) -> dict[str, list[QualityScores | None]]:
    """Score the renderings of each concept, in their order; a score that is not finite fails the concept."""
    scorer = personalizer.scorer
    scores: dict[str, list[QualityScores | None]] = {}
    for one in loaded:
        concept_id, macro_class = one.concept.concept_id, one.concept.macro_class
        own = renderings.get(concept_id, [])
        if scorer is None or one.scorer_references is None:
            scores[concept_id] = [None] * len(own)
            continue
        prompts = [expand_template(rendering.request.template, None, macro_class) for rendering in own]
        images = [rendering.image for rendering in own]
        found = score_renderings(scorer, images, prompts, one.scorer_references, work.spec.scoring)
        if not all(math.isfinite(score.prompt) and math.isfinite(score.identity) for score in found):
            fix = "look at its reference images and renderings, or set `scorer: null`"
            work.fail(ConceptFailure(concept_id, "score", "the scorer gave a score that is not finite", fix))
        scores[concept_id] = [*found]
    return scores


def _commit(
    work: ShardWork,
    personalizer: Personalizer,
    store: CatalogStore,
    results: _Results,
    run_id: str,
    attempt: str,
    lease_generation: int,
) -> ShardSummary:
    """Encode the results and the failures of all concepts, and commit them."""
    base, spec = personalizer.base, work.spec
    with work.phase("commit"):
        # In the shard's order, not in the order in which trainings ended.
        succeeded = [planned for planned in work.shard.concepts if planned.concept_id not in work.failures]
        record = commit_shard(
            store,
            run_id=run_id,
            shard=work.shard,
            attempt=attempt,
            residuals=[
                residual_row(
                    planned,
                    results.trained[planned.concept_id],
                    base,
                    spec.training,
                    results.thumbnails[planned.concept_id],
                )
                for planned in succeeded
                if planned.concept_id in results.trained
            ],
            renderings=[
                rendering_row(planned, rendering, scores, spec.sampling)
                for planned in succeeded
                for rendering, scores in zip(
                    results.renderings.get(planned.concept_id, ()), results.scores[planned.concept_id], strict=True
                )
            ],
            failures=list(work.failures.values()),
            seconds=work.seconds,
            measured=_measured(work, base, results),
            lease_generation=lease_generation,
        )
    return ShardSummary(
        work.shard.shard_id,
        attempt,
        tuple(concept.concept_id for concept in record.concepts),
        record.failures,
        dict(work.seconds),
        tuple(work.notes),
        results.pack_size,
        record.bytes_written,
        record.measured,
    )


def _measured(work: ShardWork, base: BaseModel, results: _Results) -> Measured:
    """Return the work done and the seconds it took, from which the duration and cost of later runs are estimated."""
    iterations = [len(trained.losses) for trained in results.trained.values()]
    images = sum(map(len, results.renderings.values()))
    key = throughput_key(work.spec, base.revision)
    return Measured(
        device_kind(base),
        key.training,
        key.rendering,
        results.pack_size,
        concepts=len(iterations),
        iterations=sum(iterations),
        pack_steps=pack_steps(iterations, results.pack_size),
        train_seconds=round(work.seconds["train"], 3),
        images=images,
        batches=batch_count(images, work.spec.sampling.batch_size),
        render_seconds=round(work.seconds["render"] + work.seconds["score"], 3),
    )
