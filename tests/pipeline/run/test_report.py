from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from persres.core.errors import ConceptFailure
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.schemas import ResidualRow
from persres.pipeline.run.report import build_report
from persres.pipeline.run.summary import RunSummary
from persres.pipeline.shard.thumbnails import THUMBNAIL_SIDE, reference_thumbnails

from ...support.catalog_factories import (
    commit,
    drawing,
    memory_store,
    planned,
    png,
    rendering_rows_of,
    residual_row,
    shard_of,
    unscored,
)
from ...support.damage import KINDS, damage_file

FAILURE = ConceptFailure("broken", "load", "photo.jpg is cut off after 812 bytes", "upload it again")


class Page(HTMLParser):
    """Parses a page: checks that its tags nest, and collects tags and text."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def residual_with_references(concept_id: str, images: Sequence[np.ndarray] | None = None) -> ResidualRow:
    """The row of a concept that was trained on `images`, by default five drawings."""
    images = images or [drawing(f"{concept_id} reference {index}", 64) for index in range(5)]
    return residual_row(planned(concept_id), reference_thumbnails=reference_thumbnails(images))


def a_catalog():
    store = memory_store()
    residuals = [residual_with_references(name) for name in ("mug-a", "mug-b")]
    commit(store, shard_of(planned("mug-a"), planned("mug-b")), residuals=residuals)
    return store


def summary(**changes: object) -> RunSummary:
    return dataclasses.replace(RunSummary("run-1", 3, 2, (FAILURE,), 0, 1, wall_seconds=252, workers=2), **changes)  # type: ignore[arg-type]


def test_report_shows_failures_first_then_every_concept_with_its_images():
    page = Page(build_report(a_catalog(), summary=summary()))
    assert page.text.index("broken") < page.text.index("mug-a") < page.text.index("mug-b")
    for text in (FAILURE.reason, FAILURE.fix, "a photo of a mug in the snow", "Residual + LAG", "4 min 12 s", "0.250"):
        assert text in page.text
    assert len(page.images()) == 2 * (4 + 4)


def test_report_is_self_contained():
    page = Page(build_report(a_catalog(), summary=summary()))
    assert len(page.images()) == 2 * (4 + 4)
    assert all(source.startswith("data:image/webp;base64,") for source in page.images())
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "form"})
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_report_of_the_same_catalog_has_the_same_bytes():
    twice = (a_catalog(), a_catalog())
    pages = {build_report(store, summary=summary()).replace(store.uri, "") for store in twice}
    assert len(pages) == 1


def test_report_escapes_hostile_text():
    store = memory_store()
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}"
    concept = planned("mug-a")
    concept = dataclasses.replace(concept, row=dataclasses.replace(concept.row, macro_class=evil))
    images = [
        dataclasses.replace(row, prompt_template=f"{evil} {{concept}}", variant=evil)
        for row in rendering_rows_of(concept)
    ]
    images = [dataclasses.replace(row, image_index=index) for index, row in enumerate(images)]
    commit(store, shard_of(concept), renderings=images)
    failure = ConceptFailure(f"id{evil}", "load", evil, evil)
    page = Page(build_report(store, failures=(failure,), summary=summary(versions={evil: evil})))
    assert "script" not in {tag for tag, _ in page.tags}
    assert len(page.images()) == 2
    assert "49" not in page.text.replace(store.uri, "")
    assert page.text.count("alert(1)") >= 6


def test_report_thumbnails_are_small_whatever_the_rendering():
    store, concept = memory_store(), planned("mug-a")
    y, x = np.mgrid[0:384, 0:512]
    noise = np.random.default_rng(0).normal(0, 12, (384, 512, 3))
    photo = np.clip(np.stack([x / 2, y / 1.5, 255 - x / 4], -1) + noise, 0, 255).astype(np.uint8)
    image = png(photo)
    images = [dataclasses.replace(row, image=image) for row in rendering_rows_of(concept)]
    commit(store, shard_of(concept), residuals=[residual_with_references("mug-a", [photo] * 9)], renderings=images)
    html = build_report(store)
    empty = build_report(memory_store())
    assert len(html) - len(empty) < 20_000
    for source in Page(html).images():
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            assert max(image.size) == THUMBNAIL_SIDE
            assert image.size[0] / image.size[1] == pytest.approx(4 / 3, rel=0.02)


def test_report_limit_shows_the_lowest_scores_and_says_so():
    store = memory_store()
    for name, score in (("good", 0.9), ("bad", 0.1), ("fair", 0.5), ("middling", 0.6)):
        commit(store, shard_of(planned(name)), score=score)
    text = Page(build_report(store, limit=2)).text
    assert "Showing 2 of 4" in text
    assert "4 below" not in text and "2 below the gate" in text
    assert text.index("bad") < text.index("fair")
    assert "middling" not in text
    assert "0.525" in text, "the base model's mean prompt score"
    row = text[text.index("Residual + LAG") :].split()
    assert row.index("8") < row.index("6"), "of its 8 renderings 6 passed the gate"


def test_report_shows_only_the_given_concepts():
    page = Page(build_report(a_catalog(), concept_ids=["mug-b", "not-done"]))
    assert "mug-b" in page.text and "mug-a" not in page.text


def test_report_says_that_a_failed_concept_keeps_its_earlier_result():
    text = Page(build_report(a_catalog(), failures=[dataclasses.replace(FAILURE, concept_id="mug-a")])).text
    assert "still holds its earlier result" in text
    assert text.count("mug-a") == 1


def test_report_of_unscored_renderings_and_of_an_empty_catalog():
    store, concept = memory_store(), planned("mug-a")
    commit(store, shard_of(concept), renderings=unscored(rendering_rows_of(concept)))
    Page(build_report(store))
    assert "no concepts yet" in Page(build_report(memory_store())).text
    assert "Every concept is done" in Page(build_report(store, summary=summary(rows=2, failed=()))).text


def test_report_shows_the_references_of_a_failed_concepts_earlier_result():
    page = Page(build_report(a_catalog(), failures=[dataclasses.replace(FAILURE, concept_id="mug-a")]))
    assert len(page.images()) == 4 + (4 + 4)


def test_report_says_so_where_an_earlier_version_kept_no_references():
    store = a_catalog()
    assert "are not shown" not in build_report(store)
    commit(store, shard_of(planned("mug-c")))
    page = Page(build_report(store))
    assert "The references of 1 concept are not shown" in page.text and len(page.images()) == 2 * (4 + 4) + 4


def test_report_shows_no_reference_of_another_format():
    """What a catalog holds in place of a thumbnail is neither decoded nor shown."""
    store, images = memory_store(), (b"%!PS-Adobe-3.0 EPSF-3.0", b"<svg onload=alert(1)>", b"")
    commit(store, shard_of(planned("a")), residuals=[residual_row(planned("a"), reference_thumbnails=images)])
    page = Page(build_report(store))
    assert len(page.images()) == 4 and "are not shown" not in page.text


@pytest.mark.parametrize("kind", KINDS)
def test_report_shows_damaged_renderings_as_failed(kind):
    """With the reason, and the summary as it is counted then; the other concepts keep their cards."""
    store = memory_store()
    for name in ("mug-a", "mug-b"):
        commit(store, shard_of(planned(name)))
    path = read_committed(store)["mug-a"].rendering_file
    assert path is not None
    damage_file(store, path, kind)
    damaged: list[ConceptFailure] = []

    def count(found) -> RunSummary:
        damaged.extend(dataclasses.replace(one.failure, fix="make it again") for one in found)
        return summary(failed=tuple(damaged), committed=1)

    page = Page(build_report(store, summary=summary(failed=()), on_damage=count))
    assert [one.concept_id for one in damaged] == ["mug-a"] and path in damaged[0].reason
    assert "1 concept failed, 1 done" in page.text and "make it again" in page.text
    assert page.text.index("mug-a") < page.text.index("mug-b") and len(page.images()) == 4
    page = Page(build_report(store))
    assert path in page.text and "1 concept failed, 1 done" in page.text, "outside of a run, too"


def test_report_shows_renderings_that_are_no_images_as_failed():
    store, concept = memory_store(), planned("mug-a")
    rows = [dataclasses.replace(row, image=b"\x89PNG") for row in rendering_rows_of(concept)]
    commit(store, shard_of(concept, planned("mug-b")), renderings=[*rows, *rendering_rows_of(planned("mug-b"))])
    page = Page(build_report(store))
    assert "1 concept failed, 1 done" in page.text and "cannot be decoded" in page.text
