"""Compare the results of two catalogs, value by value; exits with 0 if all are the same, else with 1.

    python -m tests.programs.compare_catalogs A B

Compared are fingerprints, residuals and their tensors, losses, prompts, images and scores. Ids of runs and shards, file
layout and seconds are not: they differ between runs with the same results.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from persres.core.errors import PersresError
from persres.core.residual import IDENTIFIER_KEY, Residual
from persres.pipeline.catalog.commit_record import CommittedConcept
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.results import read_renderings, read_residual_row
from persres.pipeline.catalog.schemas import RenderingRow
from persres.pipeline.catalog.store import CatalogStore

KINDS = (
    "training fingerprints", "rendering fingerprints", "residuals (bytes)", "A and B", "V*", "losses",
    "prompts", "images (bytes)", "images (pixels)", "scores",
)  # fmt: skip
INPUTS = ("prompt_template", "prompt", "seed", "guidance_scale", "steps", "width", "height", "remedy")
"""The columns that say how an image was rendered, counted as prompts."""
SCORES = ("prompt_score", "identity_score", "passed")

Values = Iterator[tuple[str, str, Any]]
"""(kind, place, value), with one value at most for each kind and place."""


@dataclass
class Difference:
    """How the values of one kind differ.

    Attributes:
        largest: the largest absolute difference; infinite where values cannot be subtracted, or one is missing.
        place: of the largest difference.
    """

    compared: int = 0
    identical: int = 0
    largest: float = 0.0
    place: str = ""

    def add(self, place: str, one: Any, other: Any) -> None:
        self.compared += 1
        difference = distance(one, other)
        self.identical += difference == 0
        if difference > self.largest:
            self.largest, self.place = difference, place


@dataclass
class Comparison:
    """Two catalogs side by side: concepts in both, in one only, and the differences by kind."""

    both: list[str]
    only_in_a: list[str]
    only_in_b: list[str]
    differences: dict[str, Difference] = field(default_factory=lambda: {kind: Difference() for kind in KINDS})

    @property
    def same(self) -> bool:
        alike = all(one.identical == one.compared for one in self.differences.values())
        return alike and not (self.only_in_a or self.only_in_b)

    def table(self) -> str:
        """The comparison as lines of text."""
        lines = [f"concepts in both: {len(self.both)}", _listed("only in A", self.only_in_a)]
        lines += [
            _listed("only in B", self.only_in_b),
            "",
            f"{'':24}{'compared':>10}{'identical':>11}  largest difference",
        ]
        for kind, one in self.differences.items():
            size = "" if math.isinf(one.largest) else f"{one.largest:.3g} "
            largest = f"{size}in {one.place}" if one.largest else ""
            lines.append(f"{kind:24}{one.compared:10}{one.identical:11}  {largest}".rstrip())
        return "\n".join(lines)


def compare(a: CatalogStore, b: CatalogStore) -> Comparison:
    """Compare every committed concept; reads both catalogs in full.

    Raises:
        StoreError: something committed is missing or damaged.
    """
    in_a, in_b = read_committed(a), read_committed(b)
    both = sorted(in_a.keys() & in_b.keys())
    comparison = Comparison(both, sorted(in_a.keys() - in_b.keys()), sorted(in_b.keys() - in_a.keys()))
    for name in both:
        of_a, of_b = (
            {(kind, place): value for kind, place, value in concept_values(store, committed)}
            for store, committed in ((a, in_a[name]), (b, in_b[name]))
        )
        for kind, place in of_a | of_b:
            comparison.differences[kind].add(place, of_a.get((kind, place)), of_b.get((kind, place)))
    return comparison


def concept_values(store: CatalogStore, committed: CommittedConcept) -> Values:
    """All results of a concept."""
    name = committed.concept_id
    yield "training fingerprints", name, committed.training_fingerprint
    yield "rendering fingerprints", name, committed.rendering_fingerprint
    row = read_residual_row(store, committed)
    yield "residuals (bytes)", name, row.residual
    for tensor, values in _tensors(row.residual).items():
        yield "V*" if tensor == IDENTIFIER_KEY else "A and B", f"{name} {tensor}", values
    yield "losses", name, np.asarray(row.losses, np.float64)
    for rendering in read_renderings(store, committed):
        yield from _rendering_values(rendering)


def distance(one: Any, other: Any) -> float:
    """The largest absolute difference of two values: 0 if they are the same, infinite if they cannot be subtracted."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.shape == other.shape:
        if np.array_equal(one, other, equal_nan=True):
            return 0.0
        return float(np.nan_to_num(np.abs(one - other), nan=math.inf).max())
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    return 0.0 if type(one) is type(other) and np.array_equal(one, other) else math.inf


def _rendering_values(row: RenderingRow) -> Values:
    place = f"{row.concept_id} prompt {row.prompt_index} {row.variant} {row.image_index}"
    yield "prompts", place, tuple(getattr(row, name) for name in INPUTS)
    yield "images (bytes)", place, row.image
    with Image.open(io.BytesIO(row.image)) as image:
        yield "images (pixels)", place, np.asarray(image).astype(np.float64)
    for name in SCORES:
        yield "scores", f"{place} {name}", getattr(row, name)


def _tensors(blob: bytes) -> Mapping[str, np.ndarray]:
    try:
        residual = Residual.from_bytes(blob)
    except PersresError:
        return {}
    tensors = {f"{name}.A": factor for name, factor in residual.a.items()}
    tensors |= {f"{name}.B": factor for name, factor in residual.b.items()}
    if residual.identifier is not None:
        tensors[IDENTIFIER_KEY] = residual.identifier
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def _listed(title: str, names: list[str]) -> str:
    return f"{title}: {len(names)}{' (' + ', '.join(names[:5]) + ')' if names else ''}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="the URI or path of a catalog")
    parser.add_argument("b", metavar="B")
    parsed = parser.parse_args(arguments)
    comparison = compare(CatalogStore(parsed.a), CatalogStore(parsed.b))
    print(comparison.table())
    return 0 if comparison.same else 1


if __name__ == "__main__":
    sys.exit(main())
