from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pydantic
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from persres.core.errors import ConceptError, ConceptFailure
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.references.images import (
    ReferenceDigests,
    Unreachable,
    check_references,
    digest_references,
    load_references,
)
from persres.pipeline.references.settings import ReferenceSettings

from ...support.http_server import serving

SETTINGS = ReferenceSettings(allowed_schemes=("file", "memory", "http", "flaky", "nosuchstore"))


def png(color: str = "red", size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def row(
    *references: Any, masks: tuple[Any, ...] | None = None, concept_id: str = "mug-1", number: int = 2
) -> ManifestRow:
    def sources(items: tuple[Any, ...]) -> tuple[ReferenceSource, ...]:
        return tuple(ReferenceSource(data=x) if isinstance(x, bytes) else ReferenceSource(str(x)) for x in items)

    return ManifestRow(number, concept_id, "mug", sources(references), (), masks=sources(masks) if masks else None)


def settings(**changes: Any) -> ReferenceSettings:
    return SETTINGS.model_copy(update=changes)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path / "a.png"


def test_load_references_reads_every_kind_of_source_unresized(picture):
    fsspec.filesystem("memory").pipe_file("/refs/b.png", png("blue", (80, 32)))

    pictures = load_references(row(picture, picture.as_uri(), "memory://refs/b.png", png("lime")), SETTINGS)

    assert [p.shape for p in pictures] == [(48, 64, 3), (48, 64, 3), (32, 80, 3), (48, 64, 3)]
    assert [tuple(p[0, 0]) for p in pictures] == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert all(p.dtype == np.uint8 and p.flags.writeable for p in pictures)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "0 bytes"),
        (b"oops", "not an image"),
        (png()[:-30], "cut off"),
        (b"x" * 5000, "4000 bytes"),
    ],
)
def test_error_names_concept_column_place_reason_and_fix(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)

    with pytest.raises(ConceptError, match=reason) as caught:
        load_references(row(png(), tmp_path / "bad.png"), settings(max_bytes=4000))

    error = caught.value
    assert (error.concept_id, error.stage) == ("mug-1", "load")
    assert error.message.startswith(f"reference_images[1] {tmp_path}/bad.png: ")
    assert error.fix and str(error).startswith("concept mug-1: reference_images[1]")


def test_folder_forbidden_scheme_and_missing_package_are_named(tmp_path):
    for uri, reason in (
        (tmp_path, "it is a folder"),
        ("ftp://host/a.png", "not fetched from ftp://"),
        ("simplecache::memory://a.png", "not fetched from simplecache://"),
        ("nosuchstore://a.png", "cannot be read|not installed"),
    ):
        with pytest.raises(ConceptError, match=reason):
            load_references(row(uri), SETTINGS)


def test_read_stops_at_the_limit_whatever_size_the_store_claims():
    class Understated(BytesIO):
        size = 10

    class Understating(MemoryFileSystem):
        def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
            return Understated(b"x" * 10_000)

    fsspec.register_implementation("flaky", Understating, clobber=True)

    with pytest.raises(ConceptError, match="more than 4000 bytes"):
        load_references(row("flaky://a.png"), settings(max_bytes=4000))


class _Flaky(MemoryFileSystem):
    """A store whose first `failures` reads fail."""

    protocol = "flaky"
    cachable = False
    failures = 0
    error: type[BaseException] = TimeoutError

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "file", "size": len(png())}

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if type(self).failures > 0:
            type(self).failures -= 1
            raise self.error("https://user:secret@host/a.png?signature=secret")
        return BytesIO(png())


@pytest.fixture
def flaky() -> type[_Flaky]:
    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    _Flaky.error = TimeoutError
    return _Flaky


def test_transient_error_of_a_store_is_retried(flaky):
    flaky.failures = 2

    assert len(load_references(row("flaky://a.png"), SETTINGS)) == 1


def test_unavailable_store_fails_its_concept_and_shows_no_secret(flaky):
    flaky.failures = 10**6

    with pytest.raises(ConceptError, match=r"TimeoutError.*Fix: .*submit again") as caught:
        load_references(row("flaky://user:secret@host/a.png?signature=secret"), settings(retry_seconds=0.3))

    assert "secret" not in str(caught.value) and caught.value.concept_id == "mug-1"
    assert flaky.failures < 10**6 - 1, "it is retried"


def test_permission_error_is_not_retried(flaky):
    flaky.failures, flaky.error = 3, PermissionError

    with pytest.raises(ConceptError, match="PermissionError"):
        load_references(row("flaky://a.png"), SETTINGS)

    assert flaky.failures == 2


def test_digests_depend_on_content_and_order_and_not_on_location(tmp_path, picture):
    moved = tmp_path / "moved.png"
    moved.write_bytes(picture.read_bytes())
    os.utime(moved, (1, 1))
    blue = png("blue")

    assert digest_references(row(picture), SETTINGS) == digest_references(row(moved), SETTINGS)
    assert digest_references(row(picture), SETTINGS) == digest_references(row(png()), SETTINGS)
    assert digest_references(row(picture, blue), SETTINGS) != digest_references(row(blue, picture), SETTINGS)
    assert digest_references(row(picture), SETTINGS) != digest_references(row(blue), SETTINGS)


def test_digests_ignore_masks(picture):
    assert digest_references(row(picture, masks=(picture,)), SETTINGS) == digest_references(row(picture), SETTINGS)


def test_stat_digest_does_not_read_the_file(picture):
    stat = settings(digest="stat")
    before = digest_references(row(picture), stat)
    status = picture.stat()
    picture.write_bytes(bytes(status.st_size))
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert digest_references(row(picture), stat) == before
    os.utime(picture, (1, 1))
    assert digest_references(row(picture), stat) != before


@pytest.mark.parametrize("mode", ["auto", "content", "stat"])
def test_digest_refuses_what_load_refuses(tmp_path, mode):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(b"x" * 5000)

    for name, reason in (("empty.png", "0 bytes"), ("large.png", "4000 bytes"), ("none.png", "no such file")):
        with pytest.raises(ConceptError, match=reason):
            digest_references(row(tmp_path / name), settings(digest=mode, max_bytes=4000))


class _Tagging(SimpleHTTPRequestHandler):
    """Serves a folder over HTTP and counts what is fetched; `weak.png` has only a weak tag."""

    fetched: list[str]

    def end_headers(self) -> None:
        self.send_header("ETag", 'W/"1"' if "weak" in self.path else '"strong-1"')
        super().end_headers()

    def do_GET(self) -> None:
        self.fetched.append(self.path)
        if "forbidden" in self.path:
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    for name in ("a.png", "weak.png", "forbidden.png"):
        (tmp_path / name).write_bytes(png())
    fetched: list[str] = []
    handler = partial(type("Handler", (_Tagging,), {"fetched": fetched}), directory=str(tmp_path))
    with serving(handler) as url:
        yield url, fetched


def test_digest_uses_a_strong_content_tag_and_no_weak_one(web):
    address, fetched = web

    [digest] = digest_references(row(f"{address}/a.png"), SETTINGS)
    assert "tag:strong-1:" in digest and fetched == []
    [digest] = digest_references(row(f"{address}/weak.png"), SETTINGS)
    assert "sha256:" in digest and fetched == ["/weak.png"]
    [picture] = load_references(row(f"{address}/a.png"), SETTINGS)
    assert picture.shape == (48, 64, 3)


def test_http_errors_name_the_status_and_hide_the_signature(web):
    address, _ = web

    with pytest.raises(ConceptError, match="HTTP 403") as caught:
        load_references(row(f"{address}/forbidden.png?signature=secret"), SETTINGS)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConceptError, match="HTTP 404"):
        load_references(row(f"{address}/none.png"), SETTINGS)


def test_reference_digests_of_many_rows_give_failures_as_rows(tmp_path, picture, flaky):
    flaky.failures = 1000
    rows = [row(picture, concept_id=f"c{n}", number=n) for n in range(20)]
    rows += [row(tmp_path / "none.png", concept_id="missing"), row(picture, "flaky://a.png", concept_id="unavailable")]
    rows += [row(b"inline", concept_id="inline"), row(b"", concept_id="empty")]

    with ReferenceDigests(SETTINGS) as digests:
        found = dict(zip([one.concept_id for one in rows], digests.of_rows(rows), strict=True))
        unreachable = {name: one.failure for name, one in found.items() if isinstance(one, Unreachable)}
        failures = {name: one for name, one in found.items() if isinstance(one, ConceptFailure)} | unreachable
        flaky.failures = 0

        assert (list(failures), list(unreachable)) == (["missing", "empty", "unavailable"], ["unavailable"])
        assert all((one.stage, bool(one.reason), bool(one.fix)) == ("load", True, True) for one in failures.values())
        assert "reference_images[1] flaky://a.png" in failures["unavailable"].reason
        for one in rows:
            if one.concept_id not in failures:
                assert found[one.concept_id] == digest_references(one, SETTINGS)
        [again] = digests.of_rows([rows[-3]])
        assert again == digest_references(rows[-3], SETTINGS), "a failure is not cached"


def test_reference_digests_read_a_shared_image_once(web):
    address, fetched = web
    rows = [row(f"{address}/weak.png", concept_id=f"c{n}") for n in range(50)]

    with ReferenceDigests(SETTINGS) as digests:
        found = [*digests.of_rows(rows[:25]), *digests.of_rows(rows[25:])]

    assert len(found) == 50 and len(set(found)) == 1
    assert fetched == ["/weak.png"]


def test_check_references_finds_every_bad_image_of_a_row(tmp_path, picture):
    (tmp_path / "cut.png").write_bytes(png()[:-30])

    problems = check_references([row(tmp_path / "cut.png", picture, tmp_path / "none.png", b"")], SETTINGS).problems

    assert [(p.row, p.concept_id, p.column, p.level) for p in problems] == [
        (2, "mug-1", "reference_images", "concept")
    ] * 3
    assert [p.reason.split(":")[0] for p in problems] == [f"reference_images[{n}]" for n in (0, 2, 3)]
    assert problems[1].value == str(tmp_path / "none.png")
    assert all(p.fix for p in problems)


def test_check_references_compares_masks_with_their_images():
    good, wide = png(), png("white", (80, 48))

    [problem] = check_references([row(good, good, masks=(good, wide))], SETTINGS).problems

    assert (problem.column, problem.reason) == ("masks", "masks[1] is 80 x 48 pixels, its image 64 x 48")


def test_check_references_keeps_row_order_and_warns_of_animations(tmp_path, picture):
    frames = [Image.linear_gradient("L"), Image.new("L", (256, 256))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(picture)
    rows = [row(tmp_path / "a.gif", number=0), row(picture, number=1), row(b"", number=2), row(b"", number=3)]

    check = check_references(rows, SETTINGS)

    assert [p.row for p in check.problems] == [2, 3]
    assert len(check.warnings) == 1 and check.warnings[0].startswith("row 0, reference_images[0]")


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_check_references_warns_of_pictures_that_show_nothing():
    white_on_nothing = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    white_on_nothing.paste((255, 255, 255, 255), (16, 16, 48, 48))
    drawing = encoded(white_on_nothing)

    [flat] = check_references([row(png("red"))], SETTINGS).warnings
    assert "nothing can be seen in it: all of its pixels are #ff0000" in flat
    [hidden] = check_references([row(drawing)], SETTINGS).warnings
    assert "nothing can be seen" in hidden and "references.matte_color" in hidden
    assert not check_references([row(drawing)], settings(matte_color="black")).warnings
    assert not check_references([row(encoded(noise()), masks=(png("white", (64, 64)),))], SETTINGS).warnings


def test_check_references_warns_of_the_same_picture_twice(tmp_path):
    picture = noise()
    for name in ("a.png", "b.png", "c.bmp"):
        picture.save(tmp_path / name)
    other = encoded(noise(32))

    [warning] = check_references(
        [row(tmp_path / "a.png", other, tmp_path / "b.png", tmp_path / "c.bmp")], SETTINGS
    ).warnings

    assert warning.startswith("row 2, reference_images[0, 2, 3]") and "the same picture 3 times" in warning


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_equal_but_for_their_unicode_form_are_found(tmp_path, forms):
    stored, named = (unicodedata.normalize(form, "Fotos für Zoë/größe é.png") for form in forms)
    assert stored != named
    (tmp_path / stored).parent.mkdir()
    (tmp_path / stored).write_bytes(png())
    fsspec.filesystem("memory").pipe_file(f"/{stored}", png())

    for uri in (tmp_path / named, f"memory://{named}"):
        assert len(load_references(row(uri), SETTINGS)) == 1
        assert digest_references(row(uri), SETTINGS) == digest_references(row(png()), SETTINGS)
    with pytest.raises(ConceptError, match="no such file"):
        load_references(row(tmp_path / named.replace("Zo", "Za")), SETTINGS)


def test_stat_digest_is_bound_to_the_whole_path(tmp_path):
    for folder, color in (("a", "red"), ("b", "blue")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.bmp").write_bytes(encoded(Image.new("RGB", (64, 64), color), "BMP"))
        os.utime(tmp_path / folder / "1.bmp", (1, 1))

    stat = settings(digest="stat")
    assert digest_references(row(tmp_path / "a" / "1.bmp"), stat) != digest_references(
        row(tmp_path / "b" / "1.bmp"), stat
    )


def test_reference_settings_fingerprint_only_what_changes_pixels():
    assert ReferenceSettings().fingerprint_fields() == {"matte_color": "white"}
    with pytest.raises(pydantic.ValidationError, match="unknown color specifier"):
        ReferenceSettings(matte_color="no colour")
