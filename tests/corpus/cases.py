"""All cases of the corpus by kind, and how each of them ends: what the tests check and the page shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from .bad_input import BadInput, Ending, without_place
from .base_models import base_models
from .images import BadImage, bad_images, odd_images
from .manifests import manifests
from .specs import specs
from .stores import stores
from .workplace import GOOD_ROW, Workplace, Workplaces

KINDS: dict[str, Callable[[], list[BadInput]]] = {
    "Manifests": manifests,
    "Run specs": specs,
    "Base models and scorers": base_models,
    "Stores": stores,
}


@dataclass(frozen=True, slots=True)
class ImageEnding:
    """What `validate` says of one picture: its problem or its warning, "" for neither."""

    refused: bool
    message: str


def concept_of(image: BadImage, number: int) -> str:
    """The concept whose only reference is this picture."""
    return f"{'odd' if not image.says else 'bad'}-{number:02d}"


def image_rows(place: Workplace, images: Sequence[BadImage]) -> list[dict[str, object]]:
    """Write the pictures and make a manifest's row of each."""
    rows = []
    for number, image in enumerate(images):
        path = place.path(f"{concept_of(image, number)}.png")
        image.write(path)
        data, uri = (path.read_bytes(), None) if image.embedded else (None, image.uri or path.name)
        changes = {"concept_id": concept_of(image, number), "reference_images": [{"bytes": data, "path": uri}]}
        rows.append(GOOD_ROW | changes)
    return rows


class Corpus:
    """The cases, each run once, when it is first asked about."""

    def __init__(self, places: Workplaces) -> None:
        self._places = places
        self._endings: dict[tuple[str, str], Ending] = {}

    def ending(self, kind: str, case: BadInput) -> Ending:
        """Run a case, or recall how it ended."""
        key = (kind, case.name)
        if key not in self._endings:
            place = self._places.make(f"{kind.split()[0].lower()}-{case.folder}", on_s3=case.on_s3)
            self._endings[key] = case.run(place, self._places.server)
        return self._endings[key]

    @cached_property
    def images(self) -> dict[str, tuple[BadImage, ImageEnding]]:
        """Every picture, bad and odd, by name: one `validate` of a manifest that has them all."""
        place = self._places.make("images")
        images = [*bad_images(), *odd_images()]
        outcome = place.run(place.validate(place.manifest(*image_rows(place, images))))
        lines = without_place(outcome.out, place).splitlines()
        found = {}
        for number, image in enumerate(images):
            concept = concept_of(image, number)
            problems = [line for line in lines if f"concept {concept}," in line]
            notes = [line for line in lines if line.startswith(f"warning: row {number},")]
            found[image.name] = (image, ImageEnding(bool(problems), "; ".join([*problems, *notes])))
        return found
