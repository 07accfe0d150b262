"""Reference images: load them for training, digest them for planning, check them for validation.

Functions take one manifest row, or many and use threads. A bad image is an error of its concept alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...core.errors import ConceptError, ConceptFailure, PersresError, Problem, StoreError
from ..manifest.row import ManifestRow, ReferenceSource
from .decoding import DecodedImage, decode_image, hidden_by
from .fetch import ReferenceFetcher
from .settings import ReferenceSettings
from .web import UnreachableImage

OnProgress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

_THREADS = 8
_MAX_CACHED_DIGESTS = 65_536

_Result = TypeVar("_Result")


def load_references(row: ManifestRow, settings: ReferenceSettings) -> tuple[np.ndarray, ...]:
    """Fetch and decode a concept's reference images: uint8 [H, W, 3] RGB each, of their own sizes.

    Raises:
        ConceptError: one of them is missing, forbidden, damaged or outside the limits; stage "load".
    """
    with ReferenceFetcher(settings) as fetcher:
        return tuple(
            _named_errors(row, index, lambda source=source: _decode(source, fetcher, settings).pixels)
            for index, source in enumerate(row.reference_images)
        )


def digest_references(row: ManifestRow, settings: ReferenceSettings) -> tuple[str, ...]:
    """Digests of a concept's reference images, in order, independent of their location.

    Masks are not digested: they are not used yet, and adding them must not train a catalog again.

    Raises:
        ConceptError: one of them is missing, forbidden, empty or too large; stage "load".
    """
    with ReferenceFetcher(settings) as fetcher:
        return tuple(
            _named_errors(row, index, lambda source=source: fetcher.digest(source))
            for index, source in enumerate(row.reference_images)
        )


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A row with an image whose host or store does not answer now, so that its digests are not known.

    Attributes:
        failure: the row's failure, unless results that are committed for it may stay.
    """

    failure: ConceptFailure


RowDigests = tuple[str, ...] | ConceptFailure | Unreachable


class ReferenceDigests:
    """`digest_references` for many rows, in threads. An image of several rows is digested once.

    A context manager, which ends its threads.
    """

    def __init__(self, settings: ReferenceSettings, *, threads: int = _THREADS) -> None:
        self._fetcher = ReferenceFetcher(settings)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="references")
        self._cache: dict[str, str] = {}  # by URI
        self._confirmed: dict[str, str] = {}  # by URI

    def __enter__(self) -> ReferenceDigests:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._fetcher.__exit__()

    def of_rows(self, rows: Iterable[ManifestRow]) -> Iterator[RowDigests]:
        """Yield the digests of each row's images, in order, or the row's failure.

        Raises nothing: an unavailable store makes the rows with images in it unreachable. Call it with some thousand
        rows at a time, whose images are then digested concurrently.

        Tags of web servers are taken on trust: enough for a row that turns out to be current under them.
        """
        return self._of_rows(list(rows), confirm=False)

    def are_doubtful(self, row: ManifestRow, digests: tuple[str, ...]) -> bool:
        """Whether one of a row's digests is a web server's tag that was taken on trust."""
        return any(
            self._lookup(source, True) != digest and self._fetcher.needs_confirmation(source, digest)
            for source, digest in zip(row.reference_images, digests, strict=True)
        )

    def confirmed(self, rows: Iterable[tuple[ManifestRow, tuple[str, ...]]]) -> Iterator[RowDigests]:
        """As `of_rows`, for rows with doubtful digests: a web server's tag counts if it comes twice, else the content.

        Some servers make up another tag for every answer, under which their images would never be current.
        """
        return self._of_rows([row for row, _ in rows], confirm=True)

    def _of_rows(self, rows: list[ManifestRow], *, confirm: bool) -> Iterator[RowDigests]:
        new = dict.fromkeys(
            source for row in rows for source in row.reference_images if not self._lookup(source, confirm)
        )
        arriving = zip(new, self._pool.map(lambda source: self._outcome(source, confirm), new), strict=True)
        outcomes: dict[ReferenceSource, str | PersresError] = {}
        for row in rows:
            yield self._of_row(row, outcomes, arriving, confirm)
        cache = self._confirmed if confirm else self._cache
        if len(cache) > _MAX_CACHED_DIGESTS:
            cache.clear()
        for source, outcome in outcomes.items():  # failures are not cached: the store may be available next time
            if source.uri and source.data is None and isinstance(outcome, str):
                cache[source.uri] = outcome

    def _outcome(self, source: ReferenceSource, confirm: bool) -> str | PersresError:
        try:
            return self._fetcher.digest(source, confirm=confirm)
        except PersresError as error:
            return error

    def _lookup(self, source: ReferenceSource, confirm: bool) -> str | None:
        if not source.uri or source.data is not None:
            return None
        digest = self._confirmed.get(source.uri)
        if digest is None and (found := self._cache.get(source.uri)) is not None:
            digest = None if confirm and self._fetcher.needs_confirmation(source, found) else found
        return digest

    def _of_row(
        self,
        row: ManifestRow,
        outcomes: dict[ReferenceSource, str | PersresError],
        arriving: Iterator[tuple[ReferenceSource, str | PersresError]],
        confirm: bool,
    ) -> RowDigests:
        """The row's digests; waits only for the row's own images. An error that is not transient has precedence."""
        digests = []
        unreachable: Unreachable | None = None
        for index, source in enumerate(row.reference_images):
            digest = self._lookup(source, confirm)
            if digest is None:
                while source not in outcomes:
                    outcomes.update([next(arriving)])
                digest = outcomes[source]
            if isinstance(digest, PersresError):
                reason = f"reference_images[{index}] {source.label}: {digest.message}"
                failure = ConceptFailure(row.concept_id, "load", reason, digest.fix or "")
                if not isinstance(digest, UnreachableImage):
                    return failure
                unreachable = unreachable or Unreachable(failure)
            else:
                digests.append(digest)
        return unreachable or tuple(digests)


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """The result of `check_references`.

    Attributes:
        problems: the images that cannot be used.
        warnings: the images that are read in an unexpected way, show nothing, or are there twice.
    """

    problems: list[Problem]
    warnings: list[str]


def check_references(
    rows: Sequence[ManifestRow],
    settings: ReferenceSettings,
    *,
    threads: int = _THREADS,
    on_progress: OnProgress | None = None,
) -> ReferenceCheck:
    """Fetch and decode all images of rows, in threads, and report every one that a run would refuse."""
    with ReferenceFetcher(settings) as fetcher:
        checks = list(_in_threads(lambda row: _check_row(row, fetcher, settings), rows, threads, on_progress))
    problems = [problem for check in checks for problem in check.problems]
    return ReferenceCheck(problems, [warning for check in checks for warning in check.warnings])


def _check_row(row: ManifestRow, fetcher: ReferenceFetcher, settings: ReferenceSettings) -> ReferenceCheck:
    found = ReferenceCheck([], [])
    sizes: dict[tuple[str, int], tuple[int, ...]] = {}
    same: dict[bytes, list[int]] = {}
    for column, index, source in _sources(row):
        try:
            image = _decode(source, fetcher, settings)
        except PersresError as error:
            reason = f"{column}[{index}]: {error.message}"
            problem = Problem(reason, error.fix or "", "concept", row.row, row.concept_id, column, source.label)
            found.problems.append(problem)
            continue
        sizes[column, index] = image.pixels.shape[:2]
        notes = list(image.notes)
        if column == "reference_images":
            same.setdefault(_pixel_digest(image.pixels), []).append(index)
            if hidden := hidden_by(image):
                notes.append(". Fix: ".join(hidden))
        found.warnings.extend(f"row {row.row}, {column}[{index}] {source.label}: {note}" for note in notes)
        reference_size = sizes.get(("reference_images", index))
        if column == "masks" and reference_size not in (None, sizes[column, index]):
            mask, reference = _size(sizes[column, index]), _size(reference_size)
            reason, fix = f"masks[{index}] is {mask} pixels, its image {reference}", "give the mask its image's size"
            found.problems.append(Problem(reason, fix, "concept", row.row, row.concept_id, column, source.label))
    found.warnings.extend(_repetitions(row, [indices for indices in same.values() if len(indices) > 1]))
    return found


def _repetitions(row: ManifestRow, groups: list[list[int]]) -> Iterator[str]:
    for indices in groups:
        label = row.reference_images[indices[0]].label
        yield (
            f"row {row.row}, reference_images{indices} {label}: the same picture {len(indices)} times, which "
            "teaches nothing more. Fix: name it once"
        )


def _pixel_digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(
        np.ascontiguousarray(pixels).data, person=b"pixels", salt=str(pixels.shape[1]).encode()
    ).digest()


def _size(shape: tuple[int, ...] | None) -> str:
    return f"{shape[1]} x {shape[0]}" if shape else "unknown"


def _sources(row: ManifestRow) -> Iterator[tuple[str, int, ReferenceSource]]:
    for column, sources in (("reference_images", row.reference_images), ("masks", row.masks or ())):
        for index, source in enumerate(sources):
            yield column, index, source


def _named_errors(row: ManifestRow, index: int, work: Callable[[], _Result]) -> _Result:
    """Return `work()`; its errors name the concept and the reference image."""
    try:
        return work()
    except (ConceptError, StoreError) as error:
        label = row.reference_images[index].label
        error.args = (f"reference_images[{index}] {label}: {error.message}",)
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


def _decode(source: ReferenceSource, fetcher: ReferenceFetcher, settings: ReferenceSettings) -> DecodedImage:
    return decode_image(
        fetcher.read(source),
        max_pixels=settings.max_pixels,
        min_side=settings.min_side,
        max_aspect_ratio=settings.max_aspect_ratio,
        matte_color=settings.matte_color,
        truncated=settings.truncated,
    )
