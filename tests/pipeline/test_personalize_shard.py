"""One shard with real parts: a tiny diffusers pipeline and CLIP scorer, Parquet, and a store."""

from __future__ import annotations

import copy
import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from persres.core.base_model import load_base_model
from persres.core.concept import derive_seed
from persres.core.errors import PersresError, StoreError
from persres.core.residual import Residual, initialize_residual
from persres.core.sampling.settings import SamplingSettings
from persres.core.training import training_pack
from persres.core.training.settings import TrainingSettings
from persres.pipeline.catalog.index import read_committed, read_records
from persres.pipeline.catalog.results import read_renderings, read_residual_row
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.personalize_shard import personalize_shard
from persres.pipeline.planning.fingerprint import fingerprint
from persres.pipeline.planning.plan import PlannedConcept, Shard, plan_run
from persres.pipeline.planning.run_models import resolve_base_model, resolve_scorer
from persres.pipeline.planning.throughput import throughput_key
from persres.pipeline.shard.personalizer import Personalizer, load_personalizer
from persres.pipeline.shard.stages import ShardStages
from persres.pipeline.shard.summary import ShardProgress
from persres.pipeline.spec.run_spec import RunSpec

from ..support.catalog_digest import catalog_digest, concept_digests
from ..support.catalog_factories import commit, drawing, memory_store, png, residual_row
from ..support.damage import damage_file
from ..support.tiny_models import write_tiny_models

PROMPTS = ("a {concept} on grass", "a {concept} in the snow")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    return RunSpec(
        **write_tiny_models(tmp_path_factory.mktemp("models")),
        training=TrainingSettings(iterations=3, batch_size=2, pack_size=2, train_identifier=True),
        sampling=SamplingSettings(steps=2, batch_size=3, variants=("base", "lag")),
    )


@pytest.fixture(scope="module")
def personalizer(spec: RunSpec) -> Personalizer:
    torch.set_num_threads(1)
    return load_personalizer(spec, resolve_base_model(spec), resolve_scorer(spec), "cpu", memory_store())


def row(concept_id: str, *, prompts: tuple[str, ...] = PROMPTS, image: bytes | None = None, **more) -> ManifestRow:
    data = image or png(drawing(concept_id, 40))
    return ManifestRow(0, concept_id, "mug", (ReferenceSource(data=data),), prompts, **more)


def planned(spec: RunSpec, one: ManifestRow) -> PlannedConcept:
    digests = tuple(str(source.data) for source in one.reference_images)
    return PlannedConcept(one, fingerprint(one, digests, spec, "tiny", "tiny"))


def train_shard(spec: RunSpec, *rows: ManifestRow) -> Shard:
    return Shard.of("train", [planned(spec, one) for one in rows])


def run(
    personalizer, spec, store: CatalogStore, shard: Shard, run_id: str = "20260101T000000Z-aaaaaa", stages=None, **more
):
    stages = stages or ShardStages()
    return personalize_shard(personalizer, shard, spec, store, run_id=run_id, attempt="001", stages=stages, **more)


def test_shard_is_committed_with_residuals_renderings_and_scores(personalizer, spec):
    store = memory_store()
    summary = run(
        personalizer, spec, store, train_shard(spec, row("one", metadata={"sku": "7"}), row("two"), row("three"))
    )
    assert summary.committed == ("one", "two", "three") and summary.failures == ()
    assert set(summary.seconds) == {"load", "train", "render", "score", "commit"} and summary.notes == ()
    measured, key = summary.measured, throughput_key(spec, personalizer.base.revision)
    assert measured and (measured.training, measured.rendering) == (key.training, key.rendering)
    assert (measured.device, measured.pack_size) == ("cpu, 1 thread", 2)
    assert (measured.concepts, measured.iterations, measured.pack_steps) == (3, 9, 6), "packs of 2: one is half empty"
    assert (measured.images, measured.batches) == (12, 4)
    assert measured.train_seconds == round(summary.seconds["train"], 3) > 0 < measured.render_seconds
    (record,) = read_records(store)
    assert record.measured == measured
    committed = read_committed(store)
    kept = read_residual_row(store, committed["one"])
    residual = Residual.from_bytes(kept.residual)
    assert kept.ranks == residual.ranks and residual.identifier is not None
    assert len(kept.losses) == kept.iterations == 3 and kept.metadata == {"sku": "7"}
    renderings = read_renderings(store, committed["one"])
    assert [(one.prompt_index, one.variant) for one in renderings] == [(0, "base"), (0, "lag"), (1, "base"), (1, "lag")]
    base, lag = renderings[:2]
    assert base.prompt == "a mug on grass" and lag.prompt == "a sks mug on grass" and base.seed == lag.seed
    assert Image.open(io.BytesIO(lag.image)).size == (16, 16) == (lag.width, lag.height)
    assert lag.prompt_score is not None and -1 <= lag.prompt_score <= 1 and lag.identity_score is not None


def test_catalog_does_not_depend_on_shards_packs_or_order(personalizer, spec):
    """Law 1, end to end: the same bits with other neighbours, slots, batches and shards."""
    rows = [row(name) for name in ("one", "two", "three", "four", "five")]
    together, apart = memory_store(), memory_store()
    run(personalizer, spec, together, train_shard(spec, *rows))
    run(personalizer, spec, apart, train_shard(spec, rows[4], rows[0], rows[2]))
    run(personalizer, spec, apart, train_shard(spec, rows[3]))
    run(personalizer, spec, apart, train_shard(spec, rows[1]))
    assert concept_digests(together) == concept_digests(apart)
    assert catalog_digest(together) == catalog_digest(apart)


def test_overlapping_shards_give_the_results_of_sequential_ones(personalizer, spec):
    """All stages at once, in several threads, with a shard that has a failure."""
    shards = [train_shard(spec, row(f"a{number}"), row(f"b{number}"), row(f"c{number}")) for number in range(4)]
    shards.insert(2, train_shard(spec, row("bad", image=b"no image"), row("good")))
    overlapping, quiet = memory_store(), memory_store()
    stages = ShardStages()
    with ThreadPoolExecutor(3) as threads:
        summaries = list(threads.map(lambda shard: run(personalizer, spec, overlapping, shard, stages=stages), shards))
    alone = [run(personalizer, spec, quiet, shard) for shard in shards]
    assert [one.committed for one in summaries] == [one.committed for one in alone]
    assert [one.failures for one in summaries] == [one.failures for one in alone]
    assert catalog_digest(overlapping) == catalog_digest(quiet)


class _UnwritableStore(CatalogStore):
    """A store to which the residuals of one shard cannot be written."""

    unwritable = "?"

    def write(self, path: str, data: bytes) -> None:
        if path.startswith("residuals/") and self.unwritable in path:
            raise StoreError("no space")
        super().write(path, data)


def test_error_in_a_commit_is_raised_for_its_own_shard(personalizer, spec):
    failing, other = train_shard(spec, row("one")), train_shard(spec, row("two"))
    store, stages = _UnwritableStore(memory_store().uri), ShardStages()
    store.unwritable = failing.shard_id
    with ThreadPoolExecutor(2) as threads:
        first, second = (
            threads.submit(run, personalizer, spec, store, shard, stages=stages) for shard in (failing, other)
        )
        with pytest.raises(StoreError, match="no space"):
            first.result()
        assert second.result().committed == ("two",)
    assert list(read_committed(store)) == ["two"]


def test_pack_that_does_not_fit_is_halved_and_noted(personalizer, spec, monkeypatch):
    load = training_pack.TrainingPack.load

    def without_room(pack, slot, request):
        if pack.size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load(pack, slot, request)

    monkeypatch.setattr(training_pack.TrainingPack, "load", without_room)
    summary = run(personalizer, spec, memory_store(), train_shard(spec, row("one"), row("two")))
    assert summary.committed == ("one", "two") and summary.pack_size == 1
    assert summary.notes == ("pack size reduced to 1 after the device ran out of memory",)


def test_out_of_memory_in_rendering_is_an_error_of_the_settings(personalizer, spec, monkeypatch):
    def without_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(personalizer.base.vae, "decode", without_room)
    with pytest.raises(PersresError, match=r"too little memory to render 3 images.*sampling.batch_size"):
        run(personalizer, spec, memory_store(), train_shard(spec, row("one")))


def test_result_of_a_warm_worker_equals_that_of_a_new_one(personalizer, spec):
    warm, fresh = memory_store(), memory_store()
    run(personalizer, spec, memory_store(), train_shard(spec, row("other"), row("another")))
    run(personalizer, spec, warm, train_shard(spec, row("one")))
    new = load_personalizer(spec, resolve_base_model(spec), resolve_scorer(spec), "cpu", memory_store())
    run(new, spec, fresh, train_shard(spec, row("one")))
    assert catalog_digest(warm) == catalog_digest(fresh)


def test_edited_prompt_is_rendered_with_the_committed_residual(personalizer, spec):
    store = memory_store()
    run(personalizer, spec, store, train_shard(spec, row("one")))
    before = read_committed(store)["one"]
    edited = planned(spec, row("one", prompts=(PROMPTS[1], "a {concept} in sand")))
    plan = plan_run([edited], (), read_committed(store))
    assert not plan.train and [one.concept_id for one in plan.render_only] == ["one"]
    summary = run(personalizer, spec, store, Shard.of("render", plan.render_only), "20260102T000000Z-aaaaaa")
    after = read_committed(store)["one"]
    assert summary.committed == ("one",)
    assert (after.residual_file, after.residual_row) == (before.residual_file, before.residual_row)
    kept, new = (read_renderings(store, one) for one in (before, after))
    assert [one.prompt_template for one in new if one.variant == "lag"] == [PROMPTS[1], "a {concept} in sand"]
    # The kept prompt has moved from index 1 to index 0, and its image is the same.
    assert next(one.image for one in new if one.prompt_index == 0 and one.variant == "lag") == next(
        one.image for one in kept if one.prompt_index == 1 and one.variant == "lag"
    )


@pytest.mark.parametrize(
    ("fault", "stage", "reason"),
    [
        ({"image": b"not an image"}, "load", "reference_images"),
        ({"prompts": ("a {concept} " + "on grass " * 9,)}, "load", "tokens"),
    ],
    ids=["unreadable image", "long prompt"],
)
def test_bad_concept_fails_alone(personalizer, spec, fault, stage, reason):
    quiet, store = memory_store(), memory_store()
    run(personalizer, spec, quiet, train_shard(spec, row("one"), row("three")))
    summary = run(personalizer, spec, store, train_shard(spec, row("one"), row("two", **fault), row("three")))
    assert summary.committed == ("one", "three")
    [failure] = summary.failures
    assert (failure.concept_id, failure.stage) == ("two", stage) and reason in failure.reason and failure.fix
    assert catalog_digest(quiet) == catalog_digest(store)


def test_damaged_residual_is_trained_again_in_its_render_shard(personalizer, spec):
    """The results are those of a catalog without the damage, for its concept and for its shard-mates."""
    whole, store = memory_store(), memory_store()
    first, edited = [row(name) for name in ("one", "two", "three")], ("a {concept} in sand",)
    for each in (whole, store):
        for one in first:
            run(personalizer, spec, each, train_shard(spec, one))
    damage_file(store, read_committed(store)["two"].residual_file, "flipped")

    def render_again(catalog: CatalogStore):
        again = [planned(spec, row(one.concept_id, prompts=edited)) for one in first]
        plan = plan_run(again, (), read_committed(catalog))
        assert len(plan.render_only) == 3
        return run(personalizer, spec, catalog, Shard.of("render", plan.render_only), "20260102T000000Z-aaaaaa")

    assert render_again(whole).notes == ()
    summary = render_again(store)
    assert summary.committed == ("one", "two", "three") and summary.failures == ()
    [note] = summary.notes
    assert note.startswith("concept two is trained again: ") and "is damaged" in note
    assert summary.measured is not None and summary.measured.concepts == 1
    assert concept_digests(store) == concept_digests(whole)


def test_damaged_residual_whose_references_are_gone_fails_its_concept_alone(personalizer, spec):
    store = memory_store()
    for name in ("one", "two"):
        run(personalizer, spec, store, train_shard(spec, row(name)))
    damage_file(store, read_committed(store)["two"].residual_file, "truncated")
    edited = [planned(spec, row(name, prompts=PROMPTS[:1])) for name in ("one", "two")]
    gone = (ReferenceSource(uri="memory://nowhere/gone.png"),)
    edited[1] = dataclasses.replace(edited[1], row=dataclasses.replace(edited[1].row, reference_images=gone))
    plan = plan_run(edited, (), read_committed(store))
    summary = run(personalizer, spec, store, Shard.of("render", plan.render_only), "20260102T000000Z-aaaaaa")
    assert summary.committed == ("one",)
    [failure] = summary.failures
    assert (failure.concept_id, failure.stage) == ("two", "load") and "gone.png" in failure.reason


def test_shard_of_bad_concepts_commits_their_failures(personalizer, spec):
    store = memory_store()
    summary = run(personalizer, spec, store, train_shard(spec, row("one", image=b"x"), row("two", image=b"y")))
    assert summary.committed == () and len(summary.failures) == 2 and read_committed(store) == {}


def changed_base(personalizer: Personalizer, **parts: torch.nn.Module) -> Personalizer:
    return dataclasses.replace(personalizer, base=dataclasses.replace(personalizer.base, **parts))


def test_diverged_training_is_retried_and_its_row_has_the_remedy(personalizer, spec):
    diverging = {"learning_rate": 1.0, "iterations": 6, "max_residual_norm": 100.0}
    diverging_spec = spec.model_copy(update={"training": spec.training.model_copy(update=diverging)})
    store, seen = memory_store(), []
    shard = train_shard(diverging_spec, row("one"))
    summary = run(personalizer, diverging_spec, store, shard, on_progress=seen.append)
    assert summary.committed == ("one",)
    [note] = summary.notes
    assert note.startswith("concept one is trained again at a lower learning rate: its residual diverged")
    kept = read_residual_row(store, read_committed(store)["one"])
    assert kept.remedy is not None and kept.remedy.startswith("learning rate x 0.25, because at first its residual div")
    steps = [one.steps for one in seen]
    assert steps == sorted(steps) and 2 * 6 in steps
    given_up = diverging_spec.training.model_copy(update={"max_residual_norm": 0.1})
    again = run(
        personalizer, spec.model_copy(update={"training": given_up}), memory_store(), train_shard(spec, row("one"))
    )
    [failure] = again.failures
    assert failure.stage == "train" and failure.reason.count("diverged") == 2 and "0.25" in failure.reason


def test_image_that_the_vae_cannot_encode_fails_its_concept(personalizer, spec):
    vae = copy.deepcopy(personalizer.base.vae)
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 5e19  # its squares overflow float32, except for an almost gray image
    gray, white = (png(np.full((40, 40, 3), level, np.uint8)) for level in (127, 255))
    broken = changed_base(personalizer, vae=vae)
    summary = run(
        broken,
        spec,
        memory_store(),
        train_shard(spec, row("one", image=gray), row("two", image=white), row("three", image=gray)),
    )
    assert summary.committed == ("one", "three"), summary.failures
    [failure] = summary.failures
    assert (failure.concept_id, failure.stage) == ("two", "train") and "reference image 0" in failure.reason


def test_black_image_fails_its_concept_with_prompt_and_variant(personalizer, spec):
    vae = copy.deepcopy(personalizer.base.vae)
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
        vae.decoder.conv_out.bias.fill_(-1.0)
    store = memory_store()
    summary = run(changed_base(personalizer, vae=vae), spec, store, train_shard(spec, row("one"), row("two")))
    assert summary.committed == () and read_committed(store) == {}
    assert [one.concept_id for one in summary.failures] == ["one", "two"]
    for failure in summary.failures:
        assert failure.stage == "render" and failure.reason == (
            "prompt 'a {concept} on grass' (base) gave a black image, "
            "and with guidance scale 4.25 and another seed a black image"
        )


def test_retried_image_is_committed_with_its_own_seed_and_guidance(personalizer, spec):
    """A UNet in float16 that overflows under strong guidance with a residual, and not without one."""
    half = load_base_model(spec.base_model, name="half", revision="half", dtype=torch.float16)
    with torch.no_grad():
        half.unet.conv_out.weight *= 2000
    strong = initialize_residual(half.target_layers, rank_fraction=0.1, a_std=5.0, seed=3)
    sampling = SamplingSettings(steps=3, batch_size=4, guidance_scale=50.0, variants=("base", "residual"))
    training = spec.training.model_copy(update={"rank": 0.1, "train_identifier": False})
    strong_spec = spec.model_copy(update={"sampling": sampling, "training": training})
    store, one = memory_store(), planned(strong_spec, row("one", prompts=PROMPTS[:1], seed=7))
    rows = [residual_row(one, residual=strong.to_bytes(), base_model_revision="half")]
    commit(store, Shard.of("train", [one]), run_id="20260101T000000Z-aaaaaa", residuals=rows)
    shard = Shard.of("render", [dataclasses.replace(one, committed=read_committed(store)["one"])])
    worker = dataclasses.replace(personalizer, base=half)
    summary = run(worker, strong_spec, store, shard, "20260102T000000Z-aaaaaa")
    assert summary.committed == ("one",)
    base, residual = read_renderings(store, read_committed(store)["one"])
    assert (base.guidance_scale, base.remedy) == (50.0, None)
    assert residual.guidance_scale == 25.5 and residual.seed == derive_seed(base.seed, "one", "again")
    assert (
        residual.remedy == "guidance scale 25.5 and another seed, because at first it was an image that is not finite"
    )
    assert summary.notes == (
        f"concept one, prompt 'a {{concept}} on grass' (residual): made again with {residual.remedy}",
    )


def test_score_of_nan_fails_the_concept(personalizer, spec):
    model = copy.deepcopy(personalizer.scorer.model)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    broken = dataclasses.replace(personalizer, scorer=dataclasses.replace(personalizer.scorer, model=model))
    summary = run(broken, spec, memory_store(), train_shard(spec, row("one")))
    [failure] = summary.failures
    assert failure.stage == "score" and "not finite" in failure.reason and "scorer: null" in failure.fix


def test_progress_rises_from_zero_to_one(personalizer, spec):
    seen: list[ShardProgress] = []
    run(
        personalizer,
        spec,
        memory_store(),
        train_shard(spec, row("one"), row("two"), row("three")),
        on_progress=seen.append,
    )
    fractions = [one.fraction for one in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert list(dict.fromkeys(one.phase for one in seen)) == ["load", "train", "render", "score", "commit"]


def test_renderings_without_a_scorer_have_no_scores(personalizer, spec):
    store = memory_store()
    run(dataclasses.replace(personalizer, scorer=None), spec, store, train_shard(spec, row("one")))
    assert {one.prompt_score for one in read_renderings(store, read_committed(store)["one"])} == {None}


def test_large_reference_is_scaled_to_the_models_resolution(personalizer, spec):
    large = png(np.kron(drawing("one", 32), np.ones((4, 4, 1), np.uint8)))
    summary = run(personalizer, spec, memory_store(), train_shard(spec, row("one", image=large)))
    assert summary.committed == ("one",)


def test_catalog_in_a_local_folder_is_the_same(personalizer, spec, tmp_path: Path):
    memory, disk = memory_store(), CatalogStore(str(tmp_path / "catalog"))
    for store in (memory, disk):
        run(personalizer, spec, store, train_shard(spec, row("one")))
    assert catalog_digest(memory) == catalog_digest(disk)
