"""Scores of a demo's catalog: drawings of the truth score high, other identities and copied backgrounds low."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from persres.core.errors import InvalidInput
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.scan import read_manifest
from persres.pipeline.planning.plan import PlannedConcept
from persres.pipeline.spriteworld.demo_catalog import identity_from_json, write_demo
from persres.pipeline.spriteworld.training.judge_demo import background_of, judge_catalog
from persres.pipeline.spriteworld.training.showcase import showcase
from persres.pipeline.spriteworld.world import draw, random_identity

from ...support.catalog_factories import commit, png, rendering_rows_of, shard_of


def picture_of(variant: str, row, template: str) -> np.ndarray:
    """Draw another sprite for base, the sprite on its references' background for residual, and the truth for lag."""
    who, background = identity_from_json(row.metadata["identity"]), background_of(template)
    if variant == "base":
        return draw(random_identity("somebody else", row.macro_class), background, "any")[0]
    return draw(who, row.metadata["reference_background"] if variant == "residual" else background, "any")[0]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo folder whose catalog holds drawings instead of renderings, so that their scores are predictable."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, concepts=3)
    concepts, rows = [], []
    for row in read_manifest(str(folder / "manifest.parquet"), default_prompts=()).rows:
        concept = PlannedConcept(row, Fingerprints("t1", "r1"))
        concepts.append(concept)
        rows += [
            dataclasses.replace(sample, image=png(picture_of(sample.variant, row, sample.prompt_template)))
            for sample in rendering_rows_of(concept, variants=("base", "residual", "lag"))
        ]
    commit(CatalogStore(str(folder / "manifest-catalog")), shard_of(*concepts), renderings=rows)
    return folder


def test_variants_get_the_scores_of_their_drawings(demo: Path):
    base, residual, lag = judge_catalog(str(demo / "manifest-catalog"), str(demo / "manifest.parquet"))
    assert [one.variant for one in (base, residual, lag)] == ["base", "residual", "lag"]
    assert base.images == residual.images == lag.images == 12
    assert lag.identity > 0.75 and lag.identity > base.identity + 0.3
    assert base.background == lag.background == 1.0 and residual.background == 0.0
    assert lag.prompt > residual.prompt


def test_showcase_has_a_row_per_concept(demo: Path):
    two, three = showcase(demo, concepts=2), showcase(demo, concepts=3)
    assert two.width == three.width and three.height > two.height
    assert np.asarray(three).std() > 10


def test_prompt_without_a_known_background_is_refused():
    with pytest.raises(InvalidInput, match="names no background"):
        background_of("a photo of a {concept} on the moon")
