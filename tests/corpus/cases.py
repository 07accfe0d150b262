"""All cases of the corpus by kind, and their results, which the tests check and the page shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from .bad_input import BadInput, CaseResult, without_variable_parts
from .base_models import base_models
from .images import BadImage, bad_images, odd_images
from .manifests import manifests
from .sandbox import GOOD_ROW, Sandbox, Sandboxes
from .specs import specs
from .stores import stores

KINDS: dict[str, Callable[[], list[BadInput]]] = {
    "Manifests": manifests,
    "Run specs": specs,
    "Base models and scorers": base_models,
    "Stores": stores,
}


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The output of `validate` for one image: its problem or its warning, "" for neither."""

    refused: bool
    message: str


def concept_of(image: BadImage, number: int) -> str:
    """The id of the concept whose only reference is this image."""
    return f"{'odd' if not image.expected else 'bad'}-{number:02d}"


def image_rows(sandbox: Sandbox, images: Sequence[BadImage]) -> list[dict[str, object]]:
    """Write the images and return a manifest row for each."""
    rows = []
    for number, image in enumerate(images):
        path = sandbox.path(f"{concept_of(image, number)}.png")
        image.write(path)
        data, uri = (path.read_bytes(), None) if image.embedded else (None, image.uri or path.name)
        changes = {"concept_id": concept_of(image, number), "reference_images": [{"bytes": data, "path": uri}]}
        rows.append(GOOD_ROW | changes)
    return rows


class Corpus:
    """The cases; each runs once, when its result is first needed."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._results: dict[tuple[str, str], CaseResult] = {}

    def result(self, kind: str, case: BadInput) -> CaseResult:
        """The result of a case; runs it unless it has run before."""
        key = (kind, case.name)
        if key not in self._results:
            sandbox = self._sandboxes.make(f"{kind.split()[0].lower()}-{case.folder}", on_s3=case.on_s3)
            self._results[key] = case.run(sandbox, self._sandboxes.server)
        return self._results[key]

    @cached_property
    def images(self) -> dict[str, tuple[BadImage, ImageResult]]:
        """All images, bad and odd, by name, from one `validate` of a manifest with all of them."""
        sandbox = self._sandboxes.make("images")
        images = [*bad_images(), *odd_images()]
        outcome = sandbox.run(sandbox.validate(sandbox.manifest(*image_rows(sandbox, images))))
        lines = without_variable_parts(outcome.out, sandbox).splitlines()
        found = {}
        for number, image in enumerate(images):
            concept = concept_of(image, number)
            problems = [line for line in lines if f"concept {concept}," in line]
            notes = [line for line in lines if line.startswith(f"warning: row {number},")]
            found[image.name] = (image, ImageResult(bool(problems), "; ".join([*problems, *notes])))
        return found
