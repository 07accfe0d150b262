"""The comparison of two catalogs by their results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from persres.core.residual import Residual
from persres.pipeline.catalog.store import CatalogStore

from ..support.catalog_factories import commit, drawing, planned, png, rendering_rows_of, shard_of
from ..support.catalog_history import real_residual_row
from .compare_catalogs import KINDS, compare, main

CONCEPTS = [planned("a"), planned("b")]


@pytest.fixture
def catalogs(tmp_path) -> tuple[CatalogStore, CatalogStore]:
    """A catalog of two concepts, and an empty one."""
    first, second = (CatalogStore(str(tmp_path / name)) for name in ("first", "second"))
    rows = [real_residual_row(concept) for concept in CONCEPTS]
    commit(first, shard_of(*CONCEPTS), residuals=rows)
    return first, second


def test_catalogs_with_the_same_results_are_the_same_however_they_were_written(catalogs, capsys):
    first, second = catalogs
    for number, concept in enumerate(reversed(CONCEPTS)):
        row = real_residual_row(concept, seconds=9.0)
        commit(second, shard_of(concept), run_id=f"run-{number + 2}", attempt="003", residuals=[row])
    assert compare(first, second).same
    assert main([first.uri, second.uri]) == 0
    assert "concepts in both: 2" in capsys.readouterr().out


def changed_tensor(blob: bytes) -> bytes:
    residual = Residual.from_bytes(blob)
    residual.b["mid"][0, 0] += 0.5
    return residual.to_bytes()


@pytest.mark.parametrize(
    ("change", "kinds", "largest"),
    [
        ({"residual": changed_tensor}, {"residuals (bytes)": 1, "A and B": 1}, ("A and B", 0.5, "b mid.B")),
        ({"losses": lambda losses: (1.0, 0.5, 0.75)}, {"losses": 1}, ("losses", 0.5, "b")),
        (
            {"image": lambda image: png(drawing("other"))},
            {"images (bytes)": 4, "images (pixels)": 4},
            ("images (pixels)", None, "b prompt 0 base 0"),
        ),
        ({"prompt_score": lambda score: 0.75}, {"scores": 4}, ("scores", 0.25, "b prompt 0 base 0 prompt_score")),
        ({"identity_score": lambda score: None}, {"scores": 4}, ("scores", np.inf, "b prompt 0 base 0 identity_score")),
        ({"seed": lambda seed: 99}, {"prompts": 4}, ("prompts", np.inf, "b prompt 0 base 0")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_changed_result_is_counted_and_measured(catalogs, change, kinds, largest, capsys):
    first, second = catalogs
    ((column, replace),) = change.items()

    def change_row(row):
        mine = row.concept_id == "b" and hasattr(row, column)
        return dataclasses.replace(row, **{column: replace(getattr(row, column))}) if mine else row

    residuals = [change_row(real_residual_row(concept)) for concept in CONCEPTS]
    renderings = [change_row(row) for concept in CONCEPTS for row in rendering_rows_of(concept)]
    commit(second, shard_of(*CONCEPTS), residuals=residuals, renderings=renderings)
    differences = compare(first, second).differences
    found = {kind: differences[kind].compared - differences[kind].identical for kind in KINDS}
    assert {kind: count for kind, count in found.items() if count} == kinds
    kind, size, place = largest
    assert differences[kind].largest == pytest.approx(size) if size else differences[kind].largest > 0
    assert place in differences[kind].place
    assert main([first.uri, second.uri]) == 1 and place in capsys.readouterr().out


def test_missing_concepts_and_images_are_differences(catalogs):
    first, second = catalogs
    concept = CONCEPTS[0]
    renderings = rendering_rows_of(concept)[:1]
    commit(second, shard_of(concept), residuals=[real_residual_row(concept)], renderings=renderings)
    commit(second, shard_of(planned("c")), run_id="run-2")
    comparison = compare(first, second)
    assert (comparison.both, comparison.only_in_a, comparison.only_in_b) == (["a"], ["b"], ["c"])
    images = comparison.differences["images (pixels)"]
    assert (images.compared, images.identical, images.largest) == (4, 1, np.inf)
    assert not comparison.same
