"""One shard, from rows to a commit: load -> pack -> train -> render -> score -> commit. The file to read first.

A concept that cannot be done becomes a ConceptFailure on the way and its shard-mates go on; only what is nobody's fault
but the machine's leaves this file as an exception.
"""

from __future__ import annotations

import io
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ..core.base_model import BaseModel, load_base_model
from ..core.concept import Concept, derive_seed, expand_template
from ..core.errors import ConceptError, ConceptFailure, PersresError
from ..core.identifier_token import identifier_id, tokenize_concept_prompt
from ..core.lag_sampling import Rendering, RenderRequest, render
from ..core.latents import encode_references
from ..core.packing import pack
from ..core.quality_scores import QualityScores, Scorer, load_scorer, score_renderings
from ..core.residual import Residual, check_residual
from ..core.residual_training import TrainedResidual, TrainingRequest, train_residuals
from .base_model_files import ResolvedModel
from .catalog_store import CatalogStore
from .plan import PlannedConcept, Shard
from .reference_images import load_references
from .run_spec import RunSpec
from .schemas import RenderingRow, ResidualRow
from .shard_commit import commit_shard, read_residual

LOSSES_IN_FINAL = 10
"""`final_loss` is the mean over this many last iterations: one iteration's loss is mostly its timesteps' luck."""

Phase = Literal["load", "train", "render", "score", "commit"]


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far a shard is: the phase in hand, and the share of the whole shard's work that is done, 0 to 1."""

    phase: Phase
    fraction: float


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What one attempt at a shard gave. Small: this crosses the Ray boundary, tensors do not."""

    shard_id: str
    attempt: str
    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Personalizer:
    """What a worker keeps warm between shards. Nothing in it changes while it works (law 6)."""

    base: BaseModel
    scorer: Scorer | None


def load_personalizer(spec: RunSpec, base: ResolvedModel, scorer: ResolvedModel | None, device: str) -> Personalizer:
    """Load the frozen models of a run onto a device: bfloat16 on CUDA, float32 on the CPU.

    Raises:
        InvalidInput: a model cannot be loaded, or the spec's identifier token is not one token of its tokenizer.
    """
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model = load_base_model(base.path, name=spec.base_model, revision=base.revision, device=device, dtype=dtype)
    identifier_id(model.tokenizer, spec.training.identifier_token)
    batch_size = spec.scoring.batch_size
    return Personalizer(model, load_scorer(scorer.path, device=device, batch_size=batch_size) if scorer else None)


def personalize_shard(
    personalizer: Personalizer,
    shard: Shard,
    spec: RunSpec,
    store: CatalogStore,
    *,
    run_id: str,
    attempt: str,
    on_progress: Callable[[ShardProgress], None] = lambda progress: None,
) -> ShardSummary:
    """Carry out one attempt at a shard and commit it.

    Raises:
        StoreError: the object store failed; the attempt left nothing that a reader sees.
    """
    work = _ShardWork(personalizer, shard, spec, on_progress)
    with work.phase("load"):
        concepts = _load_concepts(work)
    with work.phase("train"):
        if shard.kind == "train":
            trained = _train(work, concepts)
            residuals = {concept_id: result.residual for concept_id, (result, _) in trained.items()}
        else:
            trained, residuals = {}, _committed_residuals(work, concepts, store)
    with work.phase("render"):
        renderings = _render(work, concepts, residuals)
    with work.phase("score"):
        scores = _score(work, concepts, renderings)
    failed = work.failures
    residual_rows = [_residual_row(work, *entry) for key, entry in trained.items() if key not in failed]
    rendering_rows = [
        _rendering_row(work, rendering, score)
        for concept_id, images in renderings.items()
        if concept_id not in failed
        for rendering, score in zip(images, scores[concept_id], strict=True)
    ]
    with work.phase("commit"):
        record = commit_shard(
            store,
            run_id=run_id,
            shard=shard,
            attempt=attempt,
            residuals=residual_rows,
            renderings=rendering_rows,
            failures=list(failed.values()),
            seconds=work.seconds,
        )
    committed = tuple(concept.concept_id for concept in record.concepts)
    return ShardSummary(shard.shard_id, attempt, committed, record.failures, dict(work.seconds))


@dataclass(eq=False)
class _ShardWork:
    """The books of one attempt: who failed, how long each phase took, how far it is."""

    personalizer: Personalizer
    shard: Shard
    spec: RunSpec
    on_progress: Callable[[ShardProgress], None]
    failures: dict[str, ConceptFailure] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    planned: dict[str, PlannedConcept] = field(init=False)
    _phase: Phase = "load"

    def __post_init__(self) -> None:
        self.planned = {planned.concept_id: planned for planned in self.shard.concepts}
        training, sampling = self.spec.training, self.spec.sampling
        concepts = self.shard.concepts
        packs = -(-len(concepts) // training.pack_size) if self.shard.kind == "train" else 0
        images = sum(len(one.row.prompts) for one in concepts) * sampling.images_per_prompt * len(sampling.variants)
        batches = -(-images // sampling.batch_size)
        # A training step passes its samples forward and back, about three times the work of a pass forward alone.
        self._train_step = 3 * training.pack_size * training.batch_size
        self._render_step = sampling.batch_size * (2 if sampling.guidance_scale > 1 else 1)
        self._train_work = packs * training.iterations * self._train_step
        self._work = max(1, self._train_work + batches * sampling.steps * self._render_step)

    def fail(self, failure: ConceptFailure) -> None:
        self.failures.setdefault(failure.concept_id, failure)

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Time a phase and announce it."""
        self._phase = phase
        started = time.perf_counter()
        before = {"load": 0, "train": 0, "render": self._train_work}.get(phase, self._work)
        self.on_progress(ShardProgress(phase, before / self._work))
        yield
        self.seconds[phase] = time.perf_counter() - started

    def trained(self, steps: int) -> None:
        self.on_progress(ShardProgress(self._phase, min(1.0, steps * self._train_step / self._work)))

    def rendered(self, steps: int) -> None:
        done = self._train_work + steps * self._render_step
        self.on_progress(ShardProgress(self._phase, min(1.0, done / self._work)))


def _load_concepts(work: _ShardWork) -> list[Concept]:
    """Every concept of the shard that can be loaded; the others are recorded as failures."""
    concepts = []
    for planned in work.shard.concepts:
        try:
            concepts.append(_load_concept(work, planned))
        except ConceptError as error:
            work.fail(ConceptFailure.of(planned.concept_id, error))
    return concepts


def _load_concept(work: _ShardWork, planned: PlannedConcept) -> Concept:
    row, spec = planned.row, work.spec
    # A worker that only renders needs the references too where it scores: identity is measured against them.
    wanted = work.shard.kind == "train" or work.personalizer.scorer is not None
    references = load_references(row, spec.references) if wanted else ()
    concept = Concept(row.concept_id, row.macro_class, references, tuple(row.prompts), row.seed_for(spec.seed))
    tokenizer = work.personalizer.base.tokenizer
    for template in (spec.training.prompt, *concept.prompts):  # a prompt that does not fit must not reach a pack
        tokenize_concept_prompt(tokenizer, template, spec.training.identifier_token, concept.macro_class)
    return concept


def _train(work: _ShardWork, concepts: Sequence[Concept]) -> dict[str, tuple[TrainedResidual, float]]:
    """Train the concepts in packs: {concept_id: (what it learned, its share of the pack's seconds)}."""
    base, settings = work.personalizer.base, work.spec.training
    requests = [
        TrainingRequest(
            concept.concept_id,
            concept.macro_class,
            concept.seed,
            encode_references(base, concept.references, mirrored=settings.mirror),
        )
        for concept in concepts
    ]
    trained: dict[str, tuple[TrainedResidual, float]] = {}
    for number, members in enumerate(pack(requests, settings.pack_size)):

        def report(step: int, done: int = number * settings.iterations) -> None:
            work.trained(done + step)

        started = time.perf_counter()
        results = train_residuals(base, members, settings, on_step=report)
        share = (time.perf_counter() - started) / len(members)
        for result in results:
            if isinstance(result, ConceptFailure):
                work.fail(result)
            else:
                trained[result.concept_id] = (result, share)
    return trained


def _committed_residuals(work: _ShardWork, concepts: Sequence[Concept], store: CatalogStore) -> dict[str, Residual]:
    """The residuals that an earlier run committed, for concepts that only need rendering."""
    residuals = {}
    for concept in concepts:
        committed = work.planned[concept.concept_id].committed
        assert committed is not None, "plan_run gives every render-only concept its committed residual"
        blob = read_residual(store, committed)
        try:
            residual = Residual.from_bytes(blob)
            check_residual(residual, work.personalizer.base.target_layers)
        except PersresError as error:
            work.fail(
                ConceptFailure(concept.concept_id, "load", f"committed residual: {error.message}", error.fix or "")
            )
        else:
            residuals[concept.concept_id] = residual
    return residuals


def _render(
    work: _ShardWork, concepts: Sequence[Concept], residuals: Mapping[str, Residual]
) -> dict[str, list[Rendering]]:
    """All images of all concepts that have a residual, in mixed batches."""
    settings, base = work.spec.sampling, work.personalizer.base
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
        for concept in concepts
        if concept.concept_id in residuals
        for prompt_index, template in enumerate(concept.prompts)
        for variant in settings.variants
        for image_index in range(settings.images_per_prompt)
    ]
    renderings: dict[str, list[Rendering]] = defaultdict(list)
    token = work.spec.training.identifier_token
    for rendering in render(base, residuals, requests, settings, identifier_token=token, on_step=work.rendered):
        request = rendering.request
        renderings[request.concept_id].append(rendering)
        if not rendering.finite:
            reason = f"prompt {request.template!r} ({request.variant}) gave an image that is not finite"
            fix = "lower training.learning_rate or sampling.guidance_scale"
            work.fail(ConceptFailure(request.concept_id, "render", reason, fix))
    return renderings


def _score(
    work: _ShardWork, concepts: Sequence[Concept], renderings: Mapping[str, Sequence[Rendering]]
) -> dict[str, list[QualityScores | None]]:
    """Scores in the order of each concept's renderings; None without a scorer."""
    scorer = work.personalizer.scorer
    if scorer is None:
        return {concept_id: [None] * len(images) for concept_id, images in renderings.items()}
    scores: dict[str, list[QualityScores | None]] = {}
    for concept in concepts:
        images = renderings.get(concept.concept_id, [])
        prompts = [expand_template(image.request.template, None, concept.macro_class) for image in images]
        pictures = [image.image for image in images]
        judged = score_renderings(scorer, pictures, prompts, concept.references, work.spec.scoring)
        if not all(math.isfinite(score.prompt) and math.isfinite(score.identity) for score in judged):
            fix = "look at its reference images and renderings, or set `scorer: null`"
            work.fail(ConceptFailure(concept.concept_id, "score", "the scorer gave a score that is not finite", fix))
        scores[concept.concept_id] = [*judged]
    return scores


def _residual_row(work: _ShardWork, result: TrainedResidual, seconds: float) -> ResidualRow:
    planned = work.planned[result.concept_id]
    base, settings = work.personalizer.base, work.spec.training
    blob = result.residual.to_bytes(
        {
            "concept_id": result.concept_id,
            "macro_class": planned.row.macro_class,
            "identifier_token": settings.identifier_token,
            "base_model": base.name,
            "base_model_revision": base.revision,
            "training_fingerprint": planned.fingerprints.training,
        }
    )
    losses = tuple(float(loss) for loss in result.losses)
    return ResidualRow(
        concept_id=result.concept_id,
        macro_class=planned.row.macro_class,
        training_fingerprint=planned.fingerprints.training,
        base_model=base.name,
        base_model_revision=base.revision,
        identifier_token=settings.identifier_token,
        ranks=result.residual.ranks,
        residual=blob,
        losses=losses,
        final_loss=float(np.mean(losses[-LOSSES_IN_FINAL:])),
        iterations=settings.iterations,
        seconds=seconds,
        metadata=dict(planned.row.metadata),
    )


def _rendering_row(work: _ShardWork, rendering: Rendering, scores: QualityScores | None) -> RenderingRow:
    request, settings = rendering.request, work.spec.sampling
    planned = work.planned[request.concept_id]
    height, width = rendering.image.shape[:2]
    return RenderingRow(
        concept_id=request.concept_id,
        training_fingerprint=planned.fingerprints.training,
        rendering_fingerprint=planned.fingerprints.rendering,
        prompt_index=request.prompt_index,
        image_index=request.image_index,
        prompt_template=request.template,
        prompt=rendering.prompt,
        seed=request.seed,
        variant=request.variant,
        guidance_scale=settings.guidance_scale,
        steps=settings.steps,
        width=width,
        height=height,
        image=_png(rendering.image),
        image_path=f"{request.concept_id}/{request.variant}-{request.prompt_index}-{request.image_index}.png",
        prompt_score=scores.prompt if scores else None,
        identity_score=scores.identity if scores else None,
        passed=scores.passed if scores else None,
    )


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
