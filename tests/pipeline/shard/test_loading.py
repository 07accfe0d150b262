"""The load stage: scaled references, committed residuals, and failures of concepts that cannot be loaded."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from persres.core.errors import StoreUnavailable
from persres.core.residual import Residual, initialize_residual
from persres.core.training.settings import TrainingSettings, WarmStart
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.fingerprint import fingerprint
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.planning.run_models import resolve_base_model, resolve_scorer
from persres.pipeline.references.images import digest_references
from persres.pipeline.references.settings import ReferenceSettings
from persres.pipeline.shard.loading import LoadedConcept, load_shard
from persres.pipeline.shard.personalizer import Personalizer, load_personalizer
from persres.pipeline.shard.work import ShardWork
from persres.pipeline.spec.run_spec import RunSpec

from ...support.catalog_factories import commit, drawing, memory_store, png, rendering_rows_of, residual_row, shard_of
from ...support.damage import KINDS, damage_file, replace_residual
from ...support.tiny_models import write_tiny_models

PROMPTS = ("a {concept} on grass",)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return RunSpec(
        **write_tiny_models(tmp_path_factory.mktemp("models")),
        training=TrainingSettings(iterations=3, pack_size=2, warm_start=WarmStart(iterations=2)),
    )


@pytest.fixture(scope="module")
def personalizer(spec: RunSpec) -> Personalizer:
    return load_personalizer(spec, resolve_base_model(spec), resolve_scorer(spec), "cpu", memory_store())


def planned(spec: RunSpec, personalizer: Personalizer, row: ManifestRow, committed=None) -> PlannedConcept:
    digests = digest_references(row, spec.references)
    return PlannedConcept(row, fingerprint(row, digests, spec, personalizer.base.revision, None), committed)


def inline(name: str, size: int = 40) -> ManifestRow:
    return ManifestRow(0, name, "mug", (ReferenceSource(data=png(drawing(name, size))),), PROMPTS)


def load(spec, personalizer, *concepts: PlannedConcept, kind="train", store: CatalogStore | None = None):
    work = ShardWork(Shard.of(kind, concepts), spec, lambda progress: None)
    return work, load_shard(work, personalizer, store or memory_store())


def test_references_are_scaled_for_the_base_model_and_for_the_scorer(spec, personalizer):
    large = planned(spec, personalizer, inline("large", 320))
    work, [loaded] = load(spec, personalizer, large)
    side = personalizer.base.resolution
    assert [image.shape for image in loaded.concept.references] == [(side, side, 3)]
    assert loaded.scorer_references is not None and loaded.scorer_references.shape[0] == 1 and not work.failures
    original = np.asarray(Image.open(io.BytesIO(large.row.reference_images[0].data or b"")))
    assert torch.equal(loaded.scorer_references, personalizer.scorer.prepare([original])), "prepared from the original"


def test_render_shard_loads_no_references_for_training(spec, personalizer):
    store = memory_store()
    again = trained_before(spec, personalizer, store, inline("one"))
    _, [loaded] = load(spec, personalizer, again, kind="render", store=store)
    assert loaded.concept.references == () and loaded.scorer_references is not None and loaded.residual is not None
    unscored = dataclasses.replace(personalizer, scorer=None)
    _, [loaded] = load(spec, unscored, again, kind="render", store=store)
    assert loaded.scorer_references is None


# -- a local image that changes after the plan ---------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "one.png"
    path.write_bytes(png(drawing("one", 40)))
    return path


def local(picture: Path) -> ManifestRow:
    return ManifestRow(0, "one", "mug", (ReferenceSource(str(picture)),), PROMPTS)


def test_local_image_that_changed_after_the_plan_fails_its_concept(spec, personalizer, picture):
    before = planned(spec, personalizer, local(picture))
    other = planned(spec, personalizer, inline("other"))
    assert not load(spec, personalizer, before)[0].failures
    picture.write_bytes(png(drawing("another", 40)))
    work, loaded = load(spec, personalizer, before, other)
    assert [one.concept.concept_id for one in loaded] == ["other"]
    [failure] = work.failures.values()
    assert failure.stage == "load" and "have changed since" in failure.reason and "submit again" in failure.fix


def test_local_image_with_another_time_is_unchanged(spec, personalizer, picture):
    before = planned(spec, personalizer, local(picture))
    os.utime(picture, (1, 1))
    assert not load(spec, personalizer, before)[0].failures


def test_images_planned_by_size_and_time_are_not_checked(spec, personalizer, picture):
    by_time = spec.model_copy(update={"references": ReferenceSettings(digest="stat")})
    before = planned(by_time, personalizer, local(picture))
    picture.write_bytes(png(drawing("another", 40)))
    assert not load(by_time, personalizer, before)[0].failures


# -- residuals committed before --------------------------------------------------------------------------------------


def trained_before(spec, personalizer, store, row: ManifestRow, *, fraction=None, identifier=False, **columns):
    """Commit a residual with the given properties and row values, and return the concept with it."""
    one = planned(spec, personalizer, row)
    residual = initialize_residual(
        personalizer.base.target_layers,
        rank_fraction=fraction or spec.training.rank_fraction,
        a_std=0.01,
        seed=1,
    )
    residual = dataclasses.replace(residual, identifier=torch.zeros(32) if identifier else None)
    values = {"base_model_revision": personalizer.base.revision, "residual": residual.to_bytes()} | columns
    commit(store, shard_of(one), residuals=[residual_row(one, **values)], renderings=rendering_rows_of(one))
    return dataclasses.replace(one, committed=read_committed(store)[row.concept_id])


def test_changed_concept_starts_from_its_committed_residual(spec, personalizer):
    store = memory_store()
    again = trained_before(spec, personalizer, store, inline("one"))
    work, [loaded] = load(spec, personalizer, again, store=store)
    assert loaded.residual is not None and not work.notes
    cold = spec.model_copy(update={"training": spec.training.model_copy(update={"warm_start": None})})
    _, [loaded] = load(cold, personalizer, again, store=store)
    assert loaded.residual is None, "only if the spec has warm starts"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"base_model_revision": "older"}, "belongs to base model spriteworld at older"),
        ({"fraction": 0.2}, "has other ranks"),
        ({"identifier": True}, "was trained with V*"),
        ({"identifier_token": "zwx"}, "was trained with 'zwx'"),
        ({"residual": b"torn"}, "not a residual"),
    ],
)
def test_residual_that_does_not_fit_gives_a_cold_start_and_a_note(spec, personalizer, made, reason):
    store = memory_store()
    again = trained_before(spec, personalizer, store, inline("one"), **made)
    work, [loaded] = load(spec, personalizer, again, store=store)
    assert loaded.residual is None and not work.failures
    [note] = work.notes
    assert note.startswith("concept one starts cold: ") and reason in note


def test_deleted_residual_gives_a_cold_start_and_a_note(spec, personalizer):
    store = memory_store()
    again = trained_before(spec, personalizer, store, inline("one"))
    assert again.committed is not None
    store.delete(again.committed.residual_file)
    work, [loaded] = load(spec, personalizer, again, store=store)
    assert loaded.residual is None and "starts cold" in work.notes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_residual_in_a_render_shard_is_trained_again(spec, personalizer, kind):
    """It is loaded as in a train shard: cold, with its references."""
    store = memory_store()
    again, other = (trained_before(spec, personalizer, store, inline(name)) for name in ("one", "two"))
    assert again.committed is not None
    damage_file(store, again.committed.residual_file, kind)
    work, [loaded, good] = load(spec, personalizer, again, other, kind="render", store=store)
    assert loaded.trains and loaded.residual is None and len(loaded.concept.references) == 1
    assert not good.trains and good.residual is not None and good.concept.references == ()
    [note] = work.notes
    assert note.startswith("concept one is trained again: ") and again.committed.residual_file in note


@pytest.mark.parametrize("tensor", ["a", "b", "identifier"])
@pytest.mark.parametrize("fault", ["nan", "infinite", "short", "scalar", "half"])
def test_residual_with_wrong_tensors_is_trained_again(spec, personalizer, tensor, fault):
    """Its file and its digests are right: it was committed like this."""
    trained = spec.training.model_copy(update={"train_identifier": True})
    spec, store = spec.model_copy(update={"training": trained}), memory_store()
    again = trained_before(spec, personalizer, store, inline("one"), identifier=True)
    work, [loaded] = load(spec, personalizer, again, kind="render", store=store)
    assert not loaded.trains and not work.notes

    def damaged(values: torch.Tensor) -> torch.Tensor:
        match fault:
            case "nan" | "infinite":
                return torch.full_like(values, float("nan" if fault == "nan" else "inf"))
            case "short":
                return values[..., :-1].contiguous()
            case "scalar":
                return torch.zeros(())
            case _:
                return values.half()

    def change(residual: Residual) -> Residual:
        if tensor == "identifier":
            assert residual.identifier is not None
            return dataclasses.replace(residual, identifier=damaged(residual.identifier))
        factors = dict(getattr(residual, tensor))
        name = min(factors)
        return dataclasses.replace(residual, **{tensor: {**factors, name: damaged(factors[name])}})

    replace_residual(store, "one", change)
    again = dataclasses.replace(again, committed=read_committed(store)["one"])
    work, [loaded] = load(spec, personalizer, again, kind="render", store=store)
    assert loaded.trains and loaded.residual is None and work.notes and not work.failures


@pytest.mark.parametrize("kind", ["train", "render"])
def test_store_that_fails_is_no_damage(spec, personalizer, monkeypatch, kind):
    """The attempt is retried: whether a training starts warm must not depend on an outage."""
    store = memory_store()
    again = trained_before(spec, personalizer, store, inline("one"))

    def unavailable(path: str):
        raise StoreUnavailable(f"{path}: SlowDown")

    monkeypatch.setattr(store, "open_input", unavailable)
    with pytest.raises(StoreUnavailable):
        load(spec, personalizer, again, kind=kind, store=store)


def test_concepts_are_loaded_in_the_shards_order(spec, personalizer):
    names = [f"c{number}" for number in range(9)]
    _, loaded = load(spec, personalizer, *(planned(spec, personalizer, inline(name)) for name in names))
    assert [one.concept.concept_id for one in loaded] == names and isinstance(loaded[0], LoadedConcept)
