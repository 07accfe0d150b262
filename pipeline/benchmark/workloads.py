"""The rows of the benchmark as workloads: the peer's and our training, the peer's and our rendering.

A training workload starts with a concept's images and ends with its trained factors; a rendering workload starts with
residuals (the peer's with LoRA files) and ends with images. Images and residuals are random, which costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from ...core.base_model import BaseModel
from ...core.errors import ConceptFailure, PersresError
from ...core.latents import encode_references
from ...core.lora_export import diffusers_lora
from ...core.residual import Residual, initialize_residual
from ...core.sampling.lag_sampling import RenderRequest, render
from ...core.sampling.settings import SamplingSettings, Variant
from ...core.training.residual_training import train_residuals
from ...core.training.settings import TrainingSettings
from ...core.training.training_pack import TrainingRequest
from .batch_rendering import render_bare
from .bench_result import Unit
from .dreambooth_lora_peer import PeerModels, train_peer
from .flop_count import count_flops, count_flops_of_steps
from .peer_rendering import load_pipeline, render_peer
from .step_clock import StepClock

MACRO_CLASS = "mug"
TEMPLATES = (
    "a photo of a {concept}",
    "a photo of a {concept} on grass",
    "a photo of a {concept} on sand",
    "a photo of a {concept} in the snow",
)
"""The prompt set of every concept, as long as the demo's."""
QUICK_STEPS = 2


class PackTooLarge(Exception):
    """The device has too little memory for a pack of this size."""


class Workload(Protocol):
    """One row of the benchmark."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> Unit: ...

    def seconds(self, steps: int) -> float:
        """Execute it with `steps` optimizer or denoising steps. Returns the seconds per concept or image of all steps.

        Raises:
            PackTooLarge, torch.OutOfMemoryError: the device has too little memory.
        """
        ...

    def flops(self) -> float:
        """Return the FLOPs per concept or image of all steps, counted on a few of them."""
        ...


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """The job of all training workloads: full batches, V* frozen."""

    base: BaseModel
    settings: TrainingSettings

    @cached_property
    def references(self) -> list[np.ndarray]:
        """As many images as a batch holds, so that the peer's batches, which never repeat an image, are full."""
        return random_images(self.settings.batch_size, self.base.resolution)

    def shortened(self, steps: int) -> TrainingSettings:
        return self.settings.model_copy(update={"iterations": steps})


def random_images(count: int, side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


@dataclass(frozen=True, eq=False)
class PeerTraining:
    """The rows `peer` and `peer_cached`."""

    job: TrainingJob
    cached: bool
    unit: Unit = "concept"

    @property
    def name(self) -> str:
        return "peer_cached" if self.cached else "peer"

    def seconds(self, steps: int) -> float:
        models = PeerModels.load(self.job.base)  # not measured, in the peer's favour
        clock = StepClock(self.job.base.device, steps)
        self._train(models, steps, clock.step_done)
        return clock.seconds_for(self.job.settings.iterations)

    def flops(self) -> float:
        return count_flops_of_steps(
            lambda steps: self._train(PeerModels.load(self.job.base), steps), self.job.settings.iterations
        )

    def _train(self, models: PeerModels, steps: int, on_step: Callable[[int], None] = lambda done: None) -> None:
        settings = self.job.shortened(steps)
        train_peer(models, self.job.references, MACRO_CLASS, settings, cached=self.cached, on_step=on_step)


@dataclass(frozen=True, eq=False)
class OurTraining:
    """The rows `alone` and `packed_<K>`: K concepts trained together, with the encoding of their references."""

    job: TrainingJob
    pack_size: int
    unit: Unit = "concept"

    @property
    def name(self) -> str:
        return "alone" if self.pack_size == 1 else f"packed_{self.pack_size}"

    def seconds(self, steps: int) -> float:
        encoding = StepClock(self.job.base.device, 1)
        latents = encode_references(self.job.base, self.job.references)
        encoding.step_done(1)
        clock = StepClock(self.job.base.device, steps)
        requests = [TrainingRequest(f"bench-{slot}", MACRO_CLASS, slot, latents) for slot in range(self.pack_size)]
        self.train(requests, self.job.shortened(steps), lambda done: clock.step_done(done // self.pack_size))
        # The encoding was measured for one concept.
        return encoding.seconds_for(1) + clock.seconds_for(self.job.settings.iterations) / self.pack_size

    def flops(self) -> float:
        # Counted on one concept, since a pack needs as many per concept; without recomputation by checkpointing.
        return _our_training_flops(self.job)

    def train(
        self,
        requests: Sequence[TrainingRequest],
        settings: TrainingSettings,
        on_step: Callable[[int], None] = lambda done: None,
    ) -> None:
        def on_smaller_pack(pack_size: int) -> None:
            raise PackTooLarge(f"{self.name}: {pack_size} concepts at most")

        trained = train_residuals(
            self.job.base,
            requests,
            settings,
            pack_size=self.pack_size,
            on_step=on_step,
            on_smaller_pack=on_smaller_pack,
        )
        for result in trained:
            if isinstance(result, ConceptFailure):
                raise PersresError(f"{self.name}: {result.reason}", fix=result.fix)


@cache
def _our_training_flops(job: TrainingJob) -> float:
    latents = encode_references(job.base, job.references)
    requests = [TrainingRequest("bench", MACRO_CLASS, 0, latents)]

    def train(steps: int) -> None:
        settings = job.shortened(steps).model_copy(update={"gradient_checkpointing": False})
        OurTraining(job, 1).train(requests, settings)

    encoding = count_flops(lambda: encode_references(job.base, job.references))
    return encoding + count_flops_of_steps(train, job.settings.iterations)


@dataclass(frozen=True, eq=False)
class RenderingJob:
    """The job of all rendering workloads: two full batches of ours, with one prompt set per concept."""

    base: BaseModel
    settings: SamplingSettings
    folder: Path
    identifier_token: str

    @property
    def concepts(self) -> list[str]:
        return [f"bench-{number}" for number in range(math.ceil(2 * self.settings.batch_size / len(TEMPLATES)))]

    @cached_property
    def residuals(self) -> dict[str, Residual]:
        rank = TrainingSettings().rank
        layers = self.base.target_layers
        return {
            concept: initialize_residual(layers, rank_fraction=rank, a_std=0.01, seed=number)
            for number, concept in enumerate(self.concepts)
        }

    @cached_property
    def lora_files(self) -> dict[str, Path]:
        files = {concept: self.folder / f"{concept}.safetensors" for concept in self.concepts}
        for concept, path in files.items():
            path.write_bytes(diffusers_lora(self.residuals[concept], self.base.target_layers))
        return files

    def requests(self, variant: Variant) -> list[RenderRequest]:
        """Requests in an order that mixes concepts: prompt by prompt, not concept by concept."""
        return [
            RenderRequest(concept, MACRO_CLASS, template, prompt, 0, variant, prompt * 1000 + number)
            for prompt, template in enumerate(TEMPLATES)
            for number, concept in enumerate(self.concepts)
        ]


@dataclass(frozen=True, eq=False)
class RenderingWorkload:
    """A row of rendering.

    Attributes:
        render: renders the given requests with the given settings.
        batch: requests that fill its batch once, on which FLOPs are counted.
    """

    name: str
    job: RenderingJob
    variant: Variant
    render: Callable[[Sequence[RenderRequest], SamplingSettings], object]
    batch: Sequence[RenderRequest]
    unit: Unit = "image"

    def seconds(self, steps: int) -> float:
        requests = self.job.requests(self.variant)
        clock = StepClock(self.job.base.device, 1)
        self.render(requests, self.job.settings.model_copy(update={"steps": steps}))
        clock.step_done(1)
        return clock.seconds_for(1) / len(requests)

    def flops(self) -> float:
        settings = self.job.settings
        counted = count_flops_of_steps(
            lambda steps: self.render(self.batch, settings.model_copy(update={"steps": steps})), settings.steps
        )
        return counted / len(self.batch)


def training_workloads(base: BaseModel, settings: TrainingSettings, pack_sizes: Sequence[int]) -> list[Workload]:
    job = TrainingJob(base, settings)
    peers = [PeerTraining(job, cached) for cached in (False, True)]
    return [*peers, OurTraining(job, 1), *(OurTraining(job, size) for size in pack_sizes)]


@contextmanager
def rendering_workloads(base: BaseModel, settings: SamplingSettings, identifier_token: str) -> Iterator[list[Workload]]:
    """Context manager with all rendering workloads; the peer's LoRA files exist until it ends."""
    with TemporaryDirectory() as folder:
        job = RenderingJob(base, settings, Path(folder), identifier_token)
        yield [
            _peer_rendering(job),
            _bare_rendering(job),
            _our_rendering(job, "render", "residual"),
            _our_rendering(job, "render_lag", "lag"),
        ]


def _peer_rendering(job: RenderingJob) -> RenderingWorkload:
    pipeline = cache(lambda: load_pipeline(job.base, job.settings))

    def render_by_concept(requests: Sequence[RenderRequest], settings: SamplingSettings) -> object:
        files = {concept: job.lora_files[concept] for concept in {request.concept_id for request in requests}}
        return render_peer(pipeline(), job.base, files, requests, settings, identifier_token=job.identifier_token)

    one_concept = [request for request in job.requests("residual") if request.concept_id == job.concepts[0]]
    return RenderingWorkload("peer_render", job, "residual", render_by_concept, one_concept)


def _bare_rendering(job: RenderingJob) -> RenderingWorkload:
    bare = partial(render_bare, job.base, identifier_token=job.identifier_token)
    return RenderingWorkload("render_base", job, "residual", bare, job.requests("residual")[: job.settings.batch_size])


def _our_rendering(job: RenderingJob, name: str, variant: Variant) -> RenderingWorkload:
    ours = partial(render, job.base, job.residuals, identifier_token=job.identifier_token)
    return RenderingWorkload(name, job, variant, ours, job.requests(variant)[: job.settings.batch_size])
