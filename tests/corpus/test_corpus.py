"""Every bad input ends with its exit code, a message with a fix, and no commit, as docs/bad-inputs.md shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.s3_server import CREDENTIALS
from .bad_input import BadInput
from .cases import KINDS, Corpus
from .images import BadImage, bad_images, odd_images
from .sandbox import make_sandboxes
from .write_table import page, row_of

pytestmark = pytest.mark.xdist_group("corpus")  # one process makes the base model and runs each case once

CASES = [
    pytest.param(kind, case, id=f"{kind}: {case.name}", marks=[pytest.mark.slow] if case.slow else [])
    for kind, make in KINDS.items()
    for case in make()
]
PAGE = Path(__file__).parents[2] / "docs" / "bad-inputs.md"
UPDATE = "update the page: .venv/bin/python -m tests.corpus.write_table > docs/bad-inputs.md"
IMAGES = [*bad_images(), *odd_images()]


@pytest.fixture(scope="module")
def corpus() -> Iterator[Corpus]:
    with make_sandboxes() as sandboxes:
        yield Corpus(sandboxes)


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_bad_input_ends_with_its_exit_code_and_message(corpus: Corpus, kind: str, case: BadInput):
    result = corpus.result(kind, case)
    assert result.code == case.code, result.text
    assert not [text for text in case.expected if text not in result.text], result.text
    assert "Fix: " in result.message, result.text
    assert "Traceback" not in result.text
    assert not result.committed
    assert row_of(case, result) in PAGE.read_text(encoding="utf-8"), UPDATE
    assert not [secret for secret in (*CREDENTIALS.values(), "hunter22") if len(secret) > 9 and secret in result.text]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_image_is_refused_or_accepted(corpus: Corpus, image: BadImage):
    result = corpus.images[image.name][1]
    assert result.refused == bool(image.expected), result.message
    assert image.expected in result.message
    assert not result.refused or "Fix: " in result.message


def test_corpus_has_many_cases_with_unique_names():
    assert len(CASES) + len(bad_images()) >= 80
    for names in ([case.name for case in make()] for make in KINDS.values()):
        assert len(set(names)) == len(names)


@pytest.mark.slow
def test_page_is_up_to_date(corpus: Corpus):
    assert page(corpus) == PAGE.read_text(encoding="utf-8"), UPDATE
