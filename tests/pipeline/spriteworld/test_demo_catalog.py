"""The demo's manifest, its references, and the metadata from which the truth is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from persres.core.errors import InvalidInput
from persres.pipeline.spriteworld.captions import BACKGROUND_PHRASES
from persres.pipeline.spriteworld.demo_catalog import (
    MANIFEST_SCHEMA,
    PROMPTS_A_CONCEPT,
    demo_identities,
    identity_from_json,
    write_demo,
)
from persres.pipeline.spriteworld.world import CLASSES


def test_manifest_names_images_that_exist(tmp_path: Path) -> None:
    write_demo(tmp_path)
    table = pq.read_table(tmp_path / "manifest.parquet")
    assert table.schema.equals(MANIFEST_SCHEMA)
    rows = table.to_pylist()
    assert len({row["concept_id"] for row in rows}) == 12
    assert [row["macro_class"] for row in rows].count("mug") == 2
    for row in rows:
        assert len(row["reference_images"]) == 4
        pictures = [np.asarray(Image.open(tmp_path / path)) for path in row["reference_images"]]
        assert all(picture.shape == (64, 64, 3) for picture in pictures)
        assert len({picture.tobytes() for picture in pictures}) == 4
        assert len(set(row["prompts"])) == PROMPTS_A_CONCEPT
        assert all(prompt.count("{concept}") == 1 for prompt in row["prompts"])
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["base_model"] == "spriteworld"


def test_prompts_ask_for_other_backgrounds_than_the_references(tmp_path: Path) -> None:
    write_demo(tmp_path, concepts=6, references=1)
    for row in pq.read_table(tmp_path / "manifest.parquet").to_pylist():
        home = dict(row["metadata"])["reference_background"]
        assert not any(phrase in prompt for prompt in row["prompts"] for phrase in BACKGROUND_PHRASES[home])


def test_metadata_gives_the_identity(tmp_path: Path) -> None:
    write_demo(tmp_path, concepts=3, references=1, seed=5)
    rows = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    found = [(row["concept_id"], identity_from_json(dict(row["metadata"])["identity"])) for row in rows]
    assert found == demo_identities(3, seed=5)


def test_files_of_a_seed_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_demo(tmp_path / name, concepts=2, references=2)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_many_concepts_have_distinct_ids() -> None:
    many = demo_identities(60)
    assert len({concept_id for concept_id, _ in many}) == 60
    assert {who.macro_class for _, who in many} == set(CLASSES)


def test_too_many_concepts_are_refused() -> None:
    with pytest.raises(InvalidInput, match="too large"):
        demo_identities(400)
