"""Bad inputs that only a worker meets: each ends its own concept, or the run with a reason, and never a part of one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore

from ..corpus.bad_input import without_place
from ..corpus.cases import concept_of, image_rows
from ..corpus.images import bad_images, odd_images
from ..corpus.workplace import GOOD_ROW, Workplaces, workplaces
from ..support.s3_server import Fault, Request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def places() -> Iterator[Workplaces]:
    with workplaces() as made:
        yield made


def test_every_bad_image_fails_its_concept_alone(places):
    place = places.make("images")
    images = [*bad_images(), *odd_images()]
    good = GOOD_ROW | {"reference_images": [{"bytes": None, "path": "mug.png"}]}
    outcome = place.run(place.submit(place.manifest(*image_rows(place, images), good)))
    assert outcome.code == 3, outcome.text
    assert "Traceback" not in outcome.text

    store = CatalogStore(place.catalog)
    bad = {concept_of(image, number): image for number, image in enumerate(images) if image.says}
    odd = {concept_of(image, number) for number, image in enumerate(images) if not image.says}
    assert read_committed(store).keys() == odd | {"mug-1"}
    (document,) = [path for path in store.list("runs") if path.endswith("failures.json")]
    failures = {failure["concept_id"]: failure for failure in json.loads(store.read(document))["failures"]}
    assert failures.keys() == bad.keys()
    for concept_id, image in bad.items():
        failure = failures[concept_id]
        assert failure["stage"] == "load" and failure["fix"], failure
        assert image.says in failure["reason"], failure


def test_weights_that_do_not_fit_their_configuration_end_the_run_at_once(places):
    place = places.make("model")
    config = place.own_model() / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [64, 64]}))
    outcome = place.run(place.submit(spec=place.spec(base_model=str(config.parents[1]))))
    assert outcome.code == 2, outcome.text
    assert "could not be loaded" in outcome.text and "Fix: " in outcome.text and "Traceback" not in outcome.text
    assert place.commits() == []


def test_a_store_that_says_no_when_the_work_is_done_ends_the_run_without_a_commit(places):
    place = places.make("gone", on_s3=True)

    def gone(request: Request) -> Fault | None:
        of_the_data = any(folder in request.path for folder in ("/residuals/", "/renderings/", "/commits/"))
        return "403" if request.method == "PUT" and of_the_data else None

    places.server.faults.rule = gone
    try:
        outcome = place.run(place.submit())
    finally:
        places.server.faults.rule = lambda request: None
    assert outcome.code == 1, outcome.text
    assert "Fix: " in outcome.text and "Traceback" not in outcome.text
    again = place.run(place.submit())
    assert again.code == 0, without_place(again.text, place)
    assert "1 rows: 1 done, 0 failed" in again.out
