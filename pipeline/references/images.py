"""Reference images: fetch, bound, decode, digest.

Everything here works on one manifest row, or on many rows with threads; a bad image is its concept's error alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import fsspec.core
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from PIL import ImageColor
from pydantic import Field, field_validator
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from ...core.errors import ConceptError, ConceptFailure, PersresError, Problem, StoreError
from ...core.settings import Settings
from ..manifest.row import ManifestRow, ReferenceSource
from .decoding import DecodedImage, decode_image, refused

OnProgress = Callable[[int, int], None]

_DEFINITE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
_DEFINITE_ERRNOS = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.EISDIR, errno.ENOTDIR})
_NOT_A_FILE = {
    "directory": ("it is a folder", "name the pictures in it"),
    "other": ("it is neither a file nor a folder", "give a regular file: a pipe or a device may never end"),
}
_CONTENT_TAGS = ("md5Hash", "ETag", "etag")
_TIME_TAGS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated")
_THREADS = 8
_DIGESTS_REMEMBERED = 65_536

_Result = TypeVar("_Result")


class ReferenceSettings(Settings):
    """Which reference images are accepted, and how they are read."""

    max_bytes: int = Field(default=32 * 2**20, ge=1, description="a larger image file is refused")
    # Pillow itself warns from 89 million pixels on and refuses from twice that
    max_pixels: int = Field(
        default=64_000_000, ge=1, le=89_000_000, description="a larger image is refused by its header, unread"
    )
    min_side: int = Field(default=32, ge=1, description="an image with a shorter side has too little to learn from")
    max_aspect_ratio: float = Field(
        default=8, ge=1, description="a longer strip is refused: cropping it would lose most of the picture"
    )
    matte_color: str = Field(
        default="white", description="what shows through transparent pixels: a colour name or '#rrggbb'"
    )
    allowed_schemes: tuple[str, ...] = Field(
        default=("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https"),
        description="where references may be fetched from",
    )
    digest: Literal["auto", "content", "stat"] = Field(
        default="auto",
        description="how a changed image is noticed; content: every byte is read; stat: by size and time, where the "
        "store has no content tag; auto: by the store's content tag, else by content",
    )

    @classmethod
    def not_fingerprinted(cls) -> frozenset[str]:
        # these decide whether an image is accepted and how a change is noticed, never what its pixels are
        return frozenset({"max_bytes", "max_pixels", "min_side", "max_aspect_ratio", "allowed_schemes", "digest"})

    @field_validator("matte_color")
    @classmethod
    def _is_a_color(cls, value: str) -> str:
        ImageColor.getrgb(value)  # ValueError names the value
        return value


def load_references(row: ManifestRow, settings: ReferenceSettings) -> tuple[np.ndarray, ...]:
    """Fetch and decode a concept's reference images: uint8 [H, W, 3] RGB each, of their own sizes.

    Raises:
        ConceptError: one of them is missing, forbidden, damaged or outside the limits; stage "load".
        StoreError: the store did not answer, even when asked again.
    """
    return tuple(
        _of(row, "reference_images", index, lambda source=source: _decode(source, settings).pixels)
        for index, source in enumerate(row.reference_images)
    )


def digest_references(row: ManifestRow, settings: ReferenceSettings) -> tuple[str, ...]:
    """What identifies a concept's reference images, in order, independent of where they are stored.

    Masks do not count: nothing is made from them yet, and adding them must not train a catalog again.

    Raises:
        ConceptError: one of them is missing, forbidden, empty or too large; stage "load".
        StoreError: the store did not answer, even when asked again.
    """
    return tuple(
        _of(row, "reference_images", index, lambda source=source: _digest(source, settings))
        for index, source in enumerate(row.reference_images)
    )


class ReferenceDigests:
    """`digest_references` for many rows, in threads; an image that many rows name is looked at once.

    Use it as a context, which ends its threads.
    """

    def __init__(self, settings: ReferenceSettings, *, threads: int = _THREADS) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="references")
        self._known: dict[str, str] = {}  # by URI

    def __enter__(self) -> ReferenceDigests:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def of_rows(self, rows: Iterable[ManifestRow]) -> Iterator[tuple[str, ...] | ConceptFailure]:
        """The digests of every row's images, in order; where that is not possible, the row's failure.

        Nothing raises: where a store does not answer, that is the failure of the rows that needed it. Meant to be
        called with some thousand rows at a time, whose images are fetched concurrently.
        """
        rows = list(rows)
        new = dict.fromkeys(source for row in rows for source in row.reference_images if not self._remembered(source))
        arriving = zip(new, self._pool.map(self._outcome, new), strict=True)
        outcomes: dict[ReferenceSource, str | PersresError] = {}
        for row in rows:
            yield self._of_row(row, outcomes, arriving)
        if len(self._known) > _DIGESTS_REMEMBERED:
            self._known.clear()
        for source, outcome in outcomes.items():  # a failure is not remembered: a store may answer the next time
            if source.uri and source.data is None and isinstance(outcome, str):
                self._known[source.uri] = outcome

    def _outcome(self, source: ReferenceSource) -> str | PersresError:
        try:
            return _digest(source, self._settings)
        except PersresError as error:
            return error

    def _remembered(self, source: ReferenceSource) -> str | None:
        return self._known.get(source.uri) if source.uri and source.data is None else None

    def _of_row(
        self,
        row: ManifestRow,
        outcomes: dict[ReferenceSource, str | PersresError],
        arriving: Iterator[tuple[ReferenceSource, str | PersresError]],
    ) -> tuple[str, ...] | ConceptFailure:
        """The row's digests, waiting only for the images it needs: the rest of its portion may still be under way."""
        digests = []
        for index, source in enumerate(row.reference_images):
            digest = self._remembered(source)
            if digest is None:
                while source not in outcomes:
                    outcomes.update([next(arriving)])
                digest = outcomes[source]
            if isinstance(digest, PersresError):
                reason = f"reference_images[{index}] {source.label}: {digest.message}"
                return ConceptFailure(row.concept_id, "load", reason, digest.fix or "")
            digests.append(digest)
        return tuple(digests)


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """`problems`: the images that cannot be used. `warnings`: those that are used in an unexpected way."""

    problems: list[Problem]
    warnings: list[str]


def check_row_references(row: ManifestRow, settings: ReferenceSettings) -> list[Problem]:
    """Open and fully decode all images of a row; every one that a run would refuse is a problem."""
    return _check_row(row, settings).problems


def check_references(
    rows: Sequence[ManifestRow],
    settings: ReferenceSettings,
    *,
    threads: int = _THREADS,
    on_progress: OnProgress | None = None,
) -> ReferenceCheck:
    """`check_row_references` for many rows, in threads; `on_progress(done, total)` counts rows."""
    checks = list(_in_threads(lambda row: _check_row(row, settings), rows, threads, on_progress))
    problems = [problem for check in checks for problem in check.problems]
    return ReferenceCheck(problems, [warning for check in checks for warning in check.warnings])


def _check_row(row: ManifestRow, settings: ReferenceSettings) -> ReferenceCheck:
    found = ReferenceCheck([], [])
    sizes: dict[tuple[str, int], tuple[int, ...]] = {}
    for column, index, source in _sources(row):
        try:
            image = _decode(source, settings)
        except PersresError as error:
            reason = f"{column}[{index}]: {error.message}"
            problem = Problem(reason, error.fix or "", "concept", row.row, row.concept_id, column, source.label)
            found.problems.append(problem)
            continue
        sizes[column, index] = image.pixels.shape[:2]
        found.warnings.extend(f"row {row.row}, {column}[{index}] {source.label}: {note}" for note in image.notes)
        reference_size = sizes.get(("reference_images", index))
        if column == "masks" and reference_size not in (None, sizes[column, index]):
            mask, reference = _size(sizes[column, index]), _size(reference_size)
            reason, fix = f"masks[{index}] is {mask} pixels, its image {reference}", "give the mask its image's size"
            found.problems.append(Problem(reason, fix, "concept", row.row, row.concept_id, column, source.label))
    return found


def _size(shape: tuple[int, ...] | None) -> str:
    return f"{shape[1]} x {shape[0]}" if shape else "unknown"


def _sources(row: ManifestRow) -> Iterator[tuple[str, int, ReferenceSource]]:
    for column, sources in (("reference_images", row.reference_images), ("masks", row.masks or ())):
        for index, source in enumerate(sources):
            yield column, index, source


def _of(row: ManifestRow, column: str, index: int, work: Callable[[], _Result]) -> _Result:
    """`work()`, its errors told with the concept and the image they belong to."""
    try:
        return work()
    except (ConceptError, StoreError) as error:
        label = getattr(row, column)[index].label
        error.args = (f"{column}[{index}] {label}: {error.message}",)
        error.message = error.args[0]
        error.concept_id = row.concept_id
        raise


def _in_threads(
    work: Callable[[ManifestRow], _Result], rows: Sequence[ManifestRow], threads: int, on_progress: OnProgress | None
) -> Iterable[_Result]:
    with ThreadPoolExecutor(threads, thread_name_prefix="references") as pool:
        for done, result in enumerate(pool.map(work, rows), start=1):
            if on_progress is not None:
                on_progress(done, len(rows))
            yield result


def _decode(source: ReferenceSource, settings: ReferenceSettings) -> DecodedImage:
    return decode_image(
        _fetch(source, settings),
        max_pixels=settings.max_pixels,
        min_side=settings.min_side,
        max_aspect_ratio=settings.max_aspect_ratio,
        matte_color=settings.matte_color,
    )


def _fetch(source: ReferenceSource, settings: ReferenceSettings) -> bytes:
    if source.data is not None:
        _check_bytes(len(source.data), settings)
        return source.data
    return _at_store(source, settings, lambda fs, path: _read(fs, path, settings))


def _read(fs: Any, path: str, settings: ReferenceSettings) -> bytes:
    is_local = isinstance(fs, LocalFileSystem)
    if is_local:  # elsewhere this would cost a request, and there are no pipes
        _check_is_file(fs.info(path))
    with fs.open(path, "rb") as file:
        _check_bytes(getattr(file, "size", None), settings)
        data = file.read(settings.max_bytes + 1)  # the size is a claim; this is what holds
    _check_bytes(len(data), settings)
    return data


def _digest(source: ReferenceSource, settings: ReferenceSettings) -> str:
    if source.data is not None or settings.digest == "content":
        return _content_digest(_fetch(source, settings))

    def look(fs: Any, path: str) -> str:
        info = fs.info(path)
        _check_is_file(info)
        return _store_tag(info, path, settings) or _content_digest(_read(fs, path, settings))

    return _at_store(source, settings, look)


def _content_digest(data: bytes) -> str:
    if not data:
        raise refused("the file is empty (0 bytes)", "upload it again")
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _store_tag(info: dict[str, Any], path: str, settings: ReferenceSettings) -> str | None:
    """A tag that changes when the object does, from its listing alone; None if this store has none worth trusting."""
    size = info.get("size")
    _check_bytes(size, settings)
    if size == 0:
        raise refused("the file is empty (0 bytes)", "upload it again")
    content = next((str(info[name]) for name in _CONTENT_TAGS if info.get(name)), None)
    if content is not None and not content.startswith("W/"):  # a weak ETag may stay while bytes change
        return f"tag:{content.strip(chr(34))}:{size}"
    time = next((str(info[name]) for name in _TIME_TAGS if info.get(name)), None)
    if settings.digest == "stat" and time is not None:
        return f"stat:{os.path.basename(path)}:{size}:{time}"
    return None


def _check_is_file(info: dict[str, Any]) -> None:
    if info.get("type") in _NOT_A_FILE:
        raise refused(*_NOT_A_FILE[info["type"]])


def _check_bytes(size: int | None, settings: ReferenceSettings) -> None:
    if size is not None and size > settings.max_bytes:
        fix = "reduce the image, or raise references.max_bytes in the run spec"
        raise refused(f"more than {settings.max_bytes} bytes", fix)


def _at_store(source: ReferenceSource, settings: ReferenceSettings, work: Callable[[Any, str], _Result]) -> _Result:
    """`work(filesystem, path)`, tried three times where trying again can help.

    Errors are told without their own text, which may hold signed URLs.
    """
    uri = source.uri or ""
    _check_scheme(uri, settings)
    tries = Retrying(
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=0.3, max=3),
        retry=retry_if_exception(_is_transient),
        reraise=True,
    )
    try:
        return tries(lambda: work(*fsspec.core.url_to_fs(uri)))
    except (ConceptError, MemoryError):
        raise
    except FileNotFoundError:
        fix = "check the path; relative paths start at the manifest's folder"
        raise refused("there is no such file", fix) from None
    except ImportError as error:
        fix = f"install the package for {uri.partition('://')[0]}:// where persres-batch runs"
        raise refused(f"this store needs a package that is not installed ({error.name or error})", fix) from None
    except Exception as error:
        reason = f"cannot be read: {_kind(error)}"
        if _is_transient(error):
            raise StoreError(reason, fix="check that the store can be reached, then run again") from None
        raise refused(reason, "check the path and the permissions") from None


def _check_scheme(uri: str, settings: ReferenceSettings) -> None:
    for link in uri.split("::"):
        scheme = link.partition("://")[0] if "://" in link else ("file" if "::" not in uri else link)
        if scheme not in settings.allowed_schemes:
            allowed = ", ".join(settings.allowed_schemes)
            fix = f"use one of {allowed}, or extend references.allowed_schemes in the run spec"
            raise refused(f"references are not fetched from {scheme}://", fix)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, (ConceptError, MemoryError, *_DEFINITE_ERRORS)):
        return False
    if isinstance(error, OSError) and error.errno in _DEFINITE_ERRNOS:
        return False
    status = getattr(error, "status", None)
    return not (isinstance(status, int) and 400 <= status < 500 and status not in (408, 429))


def _kind(error: BaseException) -> str:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status}"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__
