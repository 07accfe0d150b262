"""Whether a committed concept's rows are what its record says: pure checks, each fault a sentence."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from PIL import Image

from ...core.errors import PersresError
from ...core.residual import Residual
from ..catalog.commit_record import CommittedConcept, blob_digest, rendering_digest
from ..catalog.schemas import RenderingRow, ResidualRow


def residual_faults(committed: CommittedConcept, row: ResidualRow) -> Iterator[str]:
    """What is wrong with a residual's row, judged by its record and by itself."""
    if row.concept_id != committed.concept_id:
        yield f"row {committed.residual_row} is of concept {row.concept_id}"
        return
    yield from _differences(committed, row, ("macro_class", "training_fingerprint"))
    if committed.residual_digest and blob_digest(row.residual) != committed.residual_digest:
        yield "the residual is not the one that was committed: its digest differs"
    yield from _blob_faults(row)
    if not all(map(math.isfinite, (*row.losses, row.final_loss))):
        yield "a training loss is not a finite number"
    if row.iterations != len(row.losses):
        yield f"{row.iterations} iterations, but {len(row.losses)} losses"


def rendering_faults(committed: CommittedConcept, rows: Sequence[RenderingRow]) -> Iterator[str]:
    """What is wrong with a concept's renderings, which are all of the rows that its record names."""
    strangers = sorted({row.concept_id for row in rows} - {committed.concept_id})
    if strangers:
        yield f"rows {committed.rendering_rows[0]} and following are of concept {', '.join(strangers)}"
        return
    if committed.renderings_digest and rendering_digest(row.image for row in rows) != committed.renderings_digest:
        yield "the renderings are not the ones that were committed: their digest differs"
    told = {variant: scores.images for variant, scores in committed.scores.items()}
    found = Counter(row.variant for row in rows)
    if told and told != found:
        yield f"the record counts {told} renderings, the file has {dict(found)}"
    places = Counter((row.variant, row.prompt_index, row.image_index) for row in rows)
    if twice := [place for place, count in places.items() if count > 1]:
        yield f"rendered twice: {twice[0]}"
    for row in rows:
        for fault in (*_differences(committed, row, ("training_fingerprint", "rendering_fingerprint")), *_image(row)):
            yield f"{row.image_path}: {fault}"


def _differences(committed: CommittedConcept, row: ResidualRow | RenderingRow, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        told, found = getattr(committed, name), getattr(row, name)
        if told != found:
            yield f"{name} is {found!r}, its record says {told!r}"


def _blob_faults(row: ResidualRow) -> Iterator[str]:
    try:
        residual = Residual.from_bytes(row.residual)
    except PersresError as error:
        yield error.message
        return
    odd = [
        name
        for name, a in residual.a.items()
        if (b := residual.b[name]).dim() != 2 or a.dim() != 2 or a.shape != (b.shape[1], b.shape[0])
    ]
    if odd:
        yield f"A and B of {odd[0]} do not fit each other"
    elif residual.ranks != dict(row.ranks):
        yield f"the ranks in the row ({_differing(residual.ranks, row.ranks)}) are not the residual's"
    tensors = {f"{name}.A": a for name, a in residual.a.items()} | {f"{name}.B": b for name, b in residual.b.items()}
    if residual.identifier is not None:
        tensors["the identifier token's embedding"] = residual.identifier
    infinite = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if infinite:
        yield f"{infinite[0]} is not finite" + (f", nor {len(infinite) - 1} more" if len(infinite) > 1 else "")


def _differing(found: dict[str, int], told: object) -> str:
    assert isinstance(told, dict)
    layer = min(name for name in found.keys() | told.keys() if found.get(name) != told.get(name))
    return f"{layer}: {told.get(layer)} instead of {found.get(layer)}"


def _image(row: RenderingRow) -> Iterator[str]:
    try:
        with Image.open(io.BytesIO(row.image)) as image:
            image.load()
            if image.size != (row.width, row.height):
                yield f"the image is {image.size[0]}x{image.size[1]}, its row says {row.width}x{row.height}"
    except Exception as error:  # Pillow's decoders raise whatever they like
        yield f"the image cannot be decoded ({type(error).__name__}: {error})"
    for name in ("prompt_score", "identity_score"):
        score = getattr(row, name)
        if score is not None and not math.isfinite(score):
            yield f"{name} is not a finite number"
