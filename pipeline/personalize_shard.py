"""One shard, from rows to a commit: load -> train -> render -> score -> commit. The file to read first.

A concept that cannot be done becomes a ConceptFailure on the way and its shard-mates go on; only what is nobody's fault
but the machine's leaves this file as an exception.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..core.concept import derive_seed, expand_template
from ..core.errors import ConceptError, ConceptFailure, PersresError
from ..core.latents import encode_references
from ..core.quality_scores import QualityScores, score_renderings
from ..core.residual import Residual
from ..core.sampling.lag_sampling import Rendering, RenderRequest, render
from ..core.training.residual_training import TrainedResidual, is_out_of_memory, train_residuals
from ..core.training.settings import TrainingSettings
from ..core.training.training_pack import TrainingRequest
from .catalog.commit_record import Measured
from .catalog.store import CatalogStore
from .planning.plan import Shard
from .planning.throughput import batches_of, pace_of, pack_steps
from .shard.commit import commit_shard
from .shard.loading import LoadedConcept, load_shard
from .shard.pack_size import device_name
from .shard.personalizer import Personalizer
from .shard.rows import rendering_row, residual_row
from .shard.stages import ShardStages
from .shard.work import ShardProgress, ShardSummary, ShardWork
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
    on_progress: Callable[[ShardProgress], None] = lambda progress: None,
) -> ShardSummary:
    """Carry out one attempt at a shard and commit it.

    Args:
        stages: the worker's. Shards that are given the same ones, each in a thread of its own, overlap: the next is
            loaded and the last is committed while one is on the device. What they give does not depend on that.
        on_progress: called from whatever thread the shard is in.

    Raises:
        StoreError: the object store failed; the attempt left nothing that a reader sees.
        WorkerSpoilt: an error of another shard on this worker came first; this one was not tried.
        PersresError: the device is too small for the run's settings, whatever the shard.
    """
    work = ShardWork(shard, spec, on_progress)
    return stages.pass_through(
        lambda: _load(work, personalizer, store),
        lambda loaded: _work_on_device(work, personalizer, loaded),
        lambda results: _commit(work, personalizer, store, results, run_id, attempt),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Results:
    """What the device worked out, by concept id; every rendering has its scores, or None, at the same place."""

    trained: Mapping[str, TrainedResidual]
    renderings: Mapping[str, Sequence[Rendering]]
    scores: Mapping[str, Sequence[QualityScores | None]]
    pack_size: int


def _load(work: ShardWork, personalizer: Personalizer, store: CatalogStore) -> list[LoadedConcept]:
    with work.phase("load"):
        return load_shard(work, personalizer, store)


def _work_on_device(work: ShardWork, personalizer: Personalizer, loaded: Sequence[LoadedConcept]) -> _Results:
    trained: dict[str, TrainedResidual] = {}
    pack_size = personalizer.pack_size
    with work.phase("train"):
        if work.shard.kind == "train":
            trained, pack_size = _train(work, personalizer, loaded)
            residuals = {concept_id: result.residual for concept_id, result in trained.items()}
        else:
            residuals = {one.concept.concept_id: one.residual for one in loaded if one.residual is not None}
    with work.phase("render"):
        renderings = _render(work, personalizer, loaded, residuals)
    with work.phase("score"):
        scores = _score(work, personalizer, loaded, renderings)
    return _Results(trained, renderings, scores, pack_size)


def _train(
    work: ShardWork, personalizer: Personalizer, loaded: Sequence[LoadedConcept]
) -> tuple[dict[str, TrainedResidual], int]:
    """Train all concepts, packed; by concept id, and the pack size that it ended with."""
    base, settings = personalizer.base, work.spec.training
    sizes = [personalizer.pack_size]
    all_iterations = sum(_iterations_of(settings, one.residual) for one in loaded)

    def requests() -> Iterator[TrainingRequest]:
        for one in loaded:
            concept = one.concept
            try:
                latents = encode_references(base, concept.references, mirrored=settings.mirror)
            except ConceptError as error:
                work.fail(ConceptFailure.of(concept.concept_id, error))
                continue
            yield TrainingRequest(concept.concept_id, concept.macro_class, concept.seed, latents, start=one.residual)

    def smaller(size: int) -> None:
        sizes.append(size)
        work.note(f"pack size reduced to {size} after the device ran out of memory")

    def again(request: TrainingRequest, fault: str) -> None:
        nonlocal all_iterations
        all_iterations += _iterations_of(settings, request.start)
        work.note(f"concept {request.concept_id} is trained again at a lower learning rate: {fault}")

    results: dict[str, TrainedResidual] = {}
    for result in train_residuals(
        base,
        requests(),
        settings,
        pack_size=sizes[0],
        on_step=lambda done: work.trained(done, all_iterations),
        on_smaller_pack=smaller,
        on_second_training=again,
    ):
        if isinstance(result, ConceptFailure):
            work.fail(result)
        else:
            results[result.concept_id] = result
    return results, sizes[-1]


def _iterations_of(settings: TrainingSettings, start: Residual | None) -> int:
    """How many iterations a concept is trained that starts from this residual, or from its seed."""
    return settings.warm_start.iterations if settings.warm_start and start else settings.iterations


def _render(
    work: ShardWork,
    personalizer: Personalizer,
    loaded: Sequence[LoadedConcept],
    residuals: Mapping[str, Residual],
) -> dict[str, list[Rendering]]:
    """All images of all concepts that have a residual, in mixed batches."""
    settings = work.spec.sampling
    requests = [
        RenderRequest(
            concept.concept_id,
            concept.macro_class,
            template,
            prompt_index,
            image_index,
            variant,
            # From the words of the prompt, not its place: adding a prompt leaves the others' images as they were.
            # Variants share the seed, so that they can be compared.
            derive_seed(concept.seed, concept.concept_id, f"rendering/{image_index}/{template}"),
        )
        for concept in (one.concept for one in loaded)
        if concept.concept_id in residuals
        for prompt_index, template in enumerate(concept.prompts)
        for variant in settings.variants
        for image_index in range(settings.images_per_prompt)
    ]
    token = work.spec.training.identifier_token
    try:
        rendered = render(
            personalizer.base, residuals, requests, settings, identifier_token=token, on_step=work.rendered
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
        where = f"prompt {request.template!r} ({request.variant})"
        if rendering.fault:
            fix = "lower training.learning_rate or sampling.guidance_scale"
            work.fail(ConceptFailure(request.concept_id, "render", f"{where} gave {rendering.fault}", fix))
        elif rendering.remedy:
            work.note(f"concept {request.concept_id}, {where}: made again with {rendering.remedy}")
    return renderings


def _score(
    work: ShardWork,
    personalizer: Personalizer,
    loaded: Sequence[LoadedConcept],
    renderings: Mapping[str, Sequence[Rendering]],
) -> dict[str, list[QualityScores | None]]:
    """Scores in the order of each concept's renderings; None without a scorer."""
    scorer = personalizer.scorer
    scores: dict[str, list[QualityScores | None]] = {}
    for one in loaded:
        concept_id, macro_class = one.concept.concept_id, one.concept.macro_class
        images = renderings.get(concept_id, [])
        if scorer is None or one.likenesses is None:
            scores[concept_id] = [None] * len(images)
            continue
        prompts = [expand_template(image.request.template, None, macro_class) for image in images]
        pictures = [image.image for image in images]
        judged = score_renderings(scorer, pictures, prompts, one.likenesses, work.spec.scoring)
        if not all(math.isfinite(score.prompt) and math.isfinite(score.identity) for score in judged):
            fix = "look at its reference images and renderings, or set `scorer: null`"
            work.fail(ConceptFailure(concept_id, "score", "the scorer gave a score that is not finite", fix))
        scores[concept_id] = [*judged]
    return scores


def _commit(
    work: ShardWork, personalizer: Personalizer, store: CatalogStore, results: _Results, run_id: str, attempt: str
) -> ShardSummary:
    """Encode what became of every concept, and make it visible, all of it or none of it."""
    base, spec = personalizer.base, work.spec
    with work.phase("commit"):
        # In the shard's order, whatever the order in which their training was done.
        good = [planned for planned in work.shard.concepts if planned.concept_id not in work.failures]
        record = commit_shard(
            store,
            run_id=run_id,
            shard=work.shard,
            attempt=attempt,
            residuals=[
                residual_row(planned, results.trained[planned.concept_id], base, spec.training)
                for planned in good
                if planned.concept_id in results.trained
            ],
            renderings=[
                rendering_row(planned, rendering, scores, spec.sampling)
                for planned in good
                for rendering, scores in zip(
                    results.renderings.get(planned.concept_id, ()), results.scores[planned.concept_id], strict=True
                )
            ],
            failures=list(work.failures.values()),
            seconds=work.seconds,
            measured=_measured(work, personalizer, results),
        )
    committed = tuple(concept.concept_id for concept in record.concepts)
    notes = tuple(work.notes)
    return ShardSummary(
        work.shard.shard_id,
        attempt,
        committed,
        record.failures,
        dict(work.seconds),
        notes,
        results.pack_size,
        record.bytes_written,
        record.measured,
    )


def _measured(work: ShardWork, personalizer: Personalizer, results: _Results) -> Measured:
    """What the device took, for later runs to be estimated by."""
    iterations = [len(trained.losses) for trained in results.trained.values()]
    images = sum(map(len, results.renderings.values()))
    pace = pace_of(work.spec, personalizer.base.revision)
    return Measured(
        device_name(personalizer.base),
        pace.training,
        pace.rendering,
        results.pack_size,
        concepts=len(iterations),
        iterations=sum(iterations),
        pack_steps=pack_steps(iterations, results.pack_size),
        train_seconds=round(work.seconds["train"], 3),
        images=images,
        batches=batches_of(images, work.spec.sampling.batch_size),
        render_seconds=round(work.seconds["render"] + work.seconds["score"], 3),
    )
