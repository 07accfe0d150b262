"""Bad inputs that only a worker can detect: each fails its concept, or ends the run with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore

from ..corpus.bad_input import without_variable_parts
from ..corpus.cases import concept_of, image_rows
from ..corpus.images import bad_images, odd_images
from ..corpus.sandbox import GOOD_ROW, Sandboxes, make_sandboxes
from ..support.s3_server import Fault, Request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[Sandboxes]:
    with make_sandboxes() as made:
        yield made


def test_bad_images_fail_their_concepts_alone(sandboxes):
    sandbox = sandboxes.make("images")
    images = [*bad_images(), *odd_images()]
    good = GOOD_ROW | {"reference_images": [{"bytes": None, "path": "mug.png"}]}
    outcome = sandbox.run(sandbox.submit(sandbox.manifest(*image_rows(sandbox, images), good)))
    assert outcome.code == 3, outcome.text
    assert "Traceback" not in outcome.text

    store = CatalogStore(sandbox.catalog)
    bad = {concept_of(image, number): image for number, image in enumerate(images) if image.expected}
    odd = {concept_of(image, number) for number, image in enumerate(images) if not image.expected}
    assert read_committed(store).keys() == odd | {"mug-1"}
    (document,) = [path for path in store.list("runs") if path.endswith("failures.json")]
    failures = {failure["concept_id"]: failure for failure in json.loads(store.read(document))["failures"]}
    assert failures.keys() == bad.keys()
    for concept_id, image in bad.items():
        failure = failures[concept_id]
        assert failure["stage"] == "load" and failure["fix"], failure
        assert image.expected in failure["reason"], failure


def test_weights_that_do_not_fit_their_configuration_end_the_run(sandboxes):
    sandbox = sandboxes.make("model")
    config = sandbox.own_model() / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [64, 64]}))
    outcome = sandbox.run(sandbox.submit(spec=sandbox.spec(base_model=str(config.parents[1]))))
    assert outcome.code == 2, outcome.text
    assert "could not be loaded" in outcome.text and "Fix: " in outcome.text and "Traceback" not in outcome.text
    assert sandbox.commits() == []


def test_store_that_refuses_the_commit_ends_the_run(sandboxes):
    sandbox = sandboxes.make("denied", on_s3=True)

    def deny_writes(request: Request) -> Fault | None:
        is_data = any(folder in request.path for folder in ("/residuals/", "/renderings/", "/commits/"))
        return "403" if request.method == "PUT" and is_data else None

    sandboxes.server.faults.rule = deny_writes
    try:
        outcome = sandbox.run(sandbox.submit())
    finally:
        sandboxes.server.faults.rule = lambda request: None
    assert outcome.code == 1, outcome.text
    assert "Fix: " in outcome.text and "Traceback" not in outcome.text
    again = sandbox.run(sandbox.submit())
    assert again.code == 0, without_variable_parts(again.text, sandbox)
    assert "1 rows: 1 done, 0 failed" in again.out
