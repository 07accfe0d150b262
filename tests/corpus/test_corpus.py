"""Every bad input ends in its exit code, a message with a fix, and no commit; and docs/bad-inputs.md says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.s3_server import CREDENTIALS
from .bad_input import BadInput
from .cases import KINDS, Corpus
from .images import BadImage, bad_images, odd_images
from .workplace import workplaces
from .write_table import page, row_of

pytestmark = pytest.mark.xdist_group("corpus")  # one process makes the base model and runs each case once

CASES = [
    pytest.param(kind, case, id=f"{kind}: {case.name}", marks=[pytest.mark.slow] if case.slow else [])
    for kind, make in KINDS.items()
    for case in make()
]
PAGE = Path(__file__).parents[2] / "docs" / "bad-inputs.md"
AGAIN = "write the page again: .venv/bin/python -m tests.corpus.write_table > docs/bad-inputs.md"
IMAGES = [*bad_images(), *odd_images()]


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    with workplaces() as places:
        yield Corpus(places)


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_bad_input_ends_as_it_should(corpus: Corpus, kind: str, case: BadInput):
    ending = corpus.ending(kind, case)
    assert ending.code == case.code, ending.text
    assert not [words for words in case.says if words not in ending.text], ending.text
    assert "Fix: " in ending.message, ending.text
    assert "Traceback" not in ending.text
    assert not ending.committed
    assert row_of(case, ending) in PAGE.read_text(encoding="utf-8"), AGAIN
    assert not [secret for secret in (*CREDENTIALS.values(), "hunter22") if len(secret) > 9 and secret in ending.text]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_is_refused_or_read(corpus: Corpus, image: BadImage):
    ending = corpus.images[image.name][1]
    assert ending.refused == bool(image.says), ending.message
    assert image.says in ending.message
    assert not ending.refused or "Fix: " in ending.message


def test_there_are_many_and_each_has_a_name_of_its_own():
    assert len(CASES) + len(bad_images()) >= 80
    for names in ([case.name for case in make()] for make in KINDS.values()):
        assert len(set(names)) == len(names)


@pytest.mark.slow
def test_the_page_is_what_its_program_writes(corpus: Corpus):
    assert page(corpus) == PAGE.read_text(encoding="utf-8"), AGAIN
