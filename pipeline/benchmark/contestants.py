"""The rows of the benchmark as things to run: the peer's and our training, the peer's and our rendering.

Every training row is given a concept's pictures and ends with its trained factors; every rendering row is given
residuals (the peer: as files) and ends with images. Pictures and residuals are random: they cost what real ones cost.
"""

from __future__ import annotations

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
from ...core.residual import initialize_residual
from ...core.sampling.lag_sampling import RenderRequest, render
from ...core.sampling.settings import SamplingSettings, Variant
from ...core.training.residual_training import train_residuals
from ...core.training.settings import TrainingSettings
from ...core.training.training_pack import TrainingRequest
from .batch_rendering import render_bare
from .bench_result import Unit
from .dreambooth_lora_peer import PeerModels, train_peer
from .flop_count import flops_of, flops_of_steps
from .peer_rendering import load_pipeline, render_peer
from .step_clock import StepClock

MACRO_CLASS = "mug"
TEMPLATES = (
    "a photo of a {concept}",
    "a photo of a {concept} on grass",
    "a photo of a {concept} on sand",
    "a photo of a {concept} in the snow",
)
"""One concept's prompt set; as long as the demo's."""
QUICK_STEPS = 2


class MemoryEnded(Exception):
    """The device has no room for a pack of this size."""


class Contestant(Protocol):
    """One row, ready to run."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> Unit: ...

    def seconds(self, steps: int) -> float:
        """Run it with `steps` optimizer or denoising steps: seconds for one concept or image of the full job.

        Raises:
            MemoryEnded, torch.OutOfMemoryError: it does not fit.
        """
        ...

    def flops(self) -> float:
        """FLOPs of one concept or image of the full job, counted on a small piece of it."""
        ...


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """What all training rows are asked to do: full batches, V* frozen."""

    base: BaseModel
    settings: TrainingSettings

    @cached_property
    def references(self) -> list[np.ndarray]:
        """As many pictures as a batch holds, so that the peer's batches, which never repeat a picture, are full."""
        return random_pictures(self.settings.batch_size, self.base.resolution)

    def shortened(self, steps: int) -> TrainingSettings:
        return self.settings.model_copy(update={"iterations": steps})


def random_pictures(count: int, side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


@dataclass(frozen=True, eq=False)
class PeerTraining:
    """`peer` and `peer_cached`."""

    job: TrainingJob
    cached: bool
    unit: Unit = "concept"

    @property
    def name(self) -> str:
        return "peer_cached" if self.cached else "peer"

    def seconds(self, steps: int) -> float:
        models = PeerModels.load(self.job.base)  # not timed, in the peer's favour
        clock = StepClock(self.job.base.device, steps)
        self._train(models, steps, clock.stepped)
        return clock.scaled_to(self.job.settings.iterations)

    def flops(self) -> float:
        return flops_of_steps(
            lambda steps: self._train(PeerModels.load(self.job.base), steps), self.job.settings.iterations
        )

    def _train(self, models: PeerModels, steps: int, on_step: Callable[[int], None] = lambda done: None) -> None:
        settings = self.job.shortened(steps)
        train_peer(models, self.job.references, MACRO_CLASS, settings, cached=self.cached, on_step=on_step)


@dataclass(frozen=True, eq=False)
class OurTraining:
    """`alone` and `packed_<K>`: K concepts trained together; encoding their pictures is part of it."""

    job: TrainingJob
    pack_size: int
    unit: Unit = "concept"

    @property
    def name(self) -> str:
        return "alone" if self.pack_size == 1 else f"packed_{self.pack_size}"

    def seconds(self, steps: int) -> float:
        encoding = StepClock(self.job.base.device, 1)
        latents = encode_references(self.job.base, self.job.references)
        encoding.stepped(1)
        clock = StepClock(self.job.base.device, steps)
        requests = [TrainingRequest(f"bench-{slot}", MACRO_CLASS, slot, latents) for slot in range(self.pack_size)]
        self.train(requests, self.job.shortened(steps), lambda done: clock.stepped(done // self.pack_size))
        # One concept's encoding was timed; every concept of the pack needs its own.
        return encoding.scaled_to(1) + clock.scaled_to(self.job.settings.iterations) / self.pack_size

    def flops(self) -> float:
        # Counted on one concept: each of K concepts takes as many. What is computed twice to save memory counts once.
        return _flops_of_our_training(self.job)

    def train(
        self,
        requests: Sequence[TrainingRequest],
        settings: TrainingSettings,
        on_step: Callable[[int], None] = lambda done: None,
    ) -> None:
        def smaller(pack_size: int) -> None:
            raise MemoryEnded(f"it goes on with {pack_size}")

        trained = train_residuals(
            self.job.base, requests, settings, pack_size=self.pack_size, on_step=on_step, on_smaller_pack=smaller
        )
        for result in trained:
            if isinstance(result, ConceptFailure):
                raise PersresError(f"{self.name}: {result.reason}", fix=result.fix)


@cache
def _flops_of_our_training(job: TrainingJob) -> float:
    latents = encode_references(job.base, job.references)
    requests = [TrainingRequest("bench", MACRO_CLASS, 0, latents)]

    def train(steps: int) -> None:
        settings = job.shortened(steps).model_copy(update={"gradient_checkpointing": False})
        OurTraining(job, 1).train(requests, settings)

    encoding = flops_of(lambda: encode_references(job.base, job.references))
    return encoding + flops_of_steps(train, job.settings.iterations)


@dataclass(frozen=True, eq=False)
class RenderingJob:
    """What all rendering rows are asked to make: two full batches of ours, one prompt set a concept."""

    base: BaseModel
    settings: SamplingSettings
    folder: Path
    identifier_token: str

    @property
    def concepts(self) -> list[str]:
        return [f"bench-{number}" for number in range(-(-2 * self.settings.batch_size // len(TEMPLATES)))]

    @cached_property
    def residuals(self):
        fraction = TrainingSettings().rank_fraction
        layers = self.base.target_layers
        return {
            concept: initialize_residual(layers, rank_fraction=fraction, a_std=0.01, seed=number)
            for number, concept in enumerate(self.concepts)
        }

    @cached_property
    def lora_files(self) -> dict[str, Path]:
        files = {concept: self.folder / f"{concept}.safetensors" for concept in self.concepts}
        for concept, path in files.items():
            path.write_bytes(diffusers_lora(self.residuals[concept], self.base.target_layers))
        return files

    def requests(self, variant: Variant) -> list[RenderRequest]:
        """Concepts mixed as much as can be: prompt by prompt, not concept by concept."""
        return [
            RenderRequest(concept, MACRO_CLASS, template, prompt, 0, variant, prompt * 1000 + number)
            for prompt, template in enumerate(TEMPLATES)
            for number, concept in enumerate(self.concepts)
        ]


@dataclass(frozen=True, eq=False)
class Rendering:
    """`make` renders the given requests with the given settings; `a_call`: requests that fill its batches once."""

    name: str
    job: RenderingJob
    variant: Variant
    make: Callable[[Sequence[RenderRequest], SamplingSettings], object]
    a_call: Sequence[RenderRequest]
    unit: Unit = "image"

    def seconds(self, steps: int) -> float:
        requests = self.job.requests(self.variant)
        clock = StepClock(self.job.base.device, 1)
        self.make(requests, self.job.settings.model_copy(update={"steps": steps}))
        clock.stepped(1)
        return clock.scaled_to(1) / len(requests)

    def flops(self) -> float:
        settings = self.job.settings
        counted = flops_of_steps(
            lambda steps: self.make(self.a_call, settings.model_copy(update={"steps": steps})), settings.steps
        )
        return counted / len(self.a_call)


def training_contestants(base: BaseModel, settings: TrainingSettings, pack_sizes: Sequence[int]) -> list[Contestant]:
    job = TrainingJob(base, settings)
    peers = [PeerTraining(job, cached) for cached in (False, True)]
    return [*peers, OurTraining(job, 1), *(OurTraining(job, size) for size in pack_sizes)]


@contextmanager
def rendering_contestants(
    base: BaseModel, settings: SamplingSettings, identifier_token: str
) -> Iterator[list[Contestant]]:
    """The files that the peer reads live as long as this is open."""
    with TemporaryDirectory() as folder:
        job = RenderingJob(base, settings, Path(folder), identifier_token)
        yield [_peer(job), _bare(job), _ours(job, "render", "residual"), _ours(job, "render_lag", "lag")]


def _peer(job: RenderingJob) -> Rendering:
    pipeline = cache(lambda: load_pipeline(job.base, job.settings))

    def make(requests: Sequence[RenderRequest], settings: SamplingSettings) -> object:
        files = {concept: job.lora_files[concept] for concept in {request.concept_id for request in requests}}
        return render_peer(pipeline(), job.base, files, requests, settings, identifier_token=job.identifier_token)

    one_concept = [request for request in job.requests("residual") if request.concept_id == job.concepts[0]]
    return Rendering("peer_render", job, "residual", make, one_concept)


def _bare(job: RenderingJob) -> Rendering:
    make = partial(render_bare, job.base, identifier_token=job.identifier_token)
    return Rendering("render_base", job, "residual", make, job.requests("residual")[: job.settings.batch_size])


def _ours(job: RenderingJob, name: str, variant: Variant) -> Rendering:
    make = partial(render, job.base, job.residuals, identifier_token=job.identifier_token)
    return Rendering(name, job, variant, make, job.requests(variant)[: job.settings.batch_size])
