"""The bytes of reference images and what identifies them, from wherever a manifest says they are."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from typing import Protocol, TypeVar

from fsspec.utils import get_protocol

from ...core.errors import ConceptError, StoreError, StoreObjectMissing, StoreUnavailable
from ..manifest.row import ReferenceSource
from ..storage.errors import short_reason
from ..storage.object_store import SingleObjects
from ..storage.stored_object import StoredObject
from ..storage.uri import normalized
from .addresses import address_digest, other_spellings
from .decoding import refused
from .settings import ReferenceSettings
from .web import WebImages, unreachable

_NOT_A_FILE = {
    "directory": ("it is a folder", "name the pictures in it"),
    "other": ("it is neither a file nor a folder", "give a regular file: a pipe or a device may never end"),
}
_WEB = frozenset({"http", "https"})

# Tags that are digests of the content, by scheme: MD5, or S3's MD5 of a multipart upload. Others are versions of what
# lies at one address (nginx: its time and size; Azure: a clock), so that two pictures may have the same.
_CONTENT_MD5 = {
    **dict.fromkeys(("s3", "s3a"), re.compile(r"[0-9a-f]{32}(-\d+)?")),
    **dict.fromkeys(("gs", "gcs"), re.compile(r"[A-Za-z0-9+/]{22}==")),
}

_Result = TypeVar("_Result")


class _Objects(Protocol):
    """What a file system and web servers have in common."""

    def stat(self, uri: str) -> StoredObject | None: ...

    def read_at_most(self, uri: str, limit: int) -> bytes | None: ...


class ReferenceFetcher:
    """Reads and digests reference images, with one file system a scheme. A context manager, used from any thread.

    Its methods raise ConceptError (stage "load"): a reference's failure costs its concept alone, whatever it is, and is
    never taken for a failure of the catalog's store. `UnreachableImage` is the one whose cause is transient. No message
    repeats a store's own error text, which may hold signed URLs.
    """

    def __init__(self, settings: ReferenceSettings) -> None:
        self._settings = settings
        self._stores: dict[str, _FileSystemImages] = {}
        self._web = WebImages(settings)

    def __enter__(self) -> ReferenceFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._web.__exit__()

    def read(self, source: ReferenceSource) -> bytes:
        """An image's encoded bytes, at most `max_bytes` of them."""
        if source.data is not None:
            self._check_size(len(source.data))
            return source.data
        return self._at_store(source, self._read)

    def digest(self, source: ReferenceSource, *, confirm: bool = True) -> str:
        """What identifies an image: its store's content tag or its content's SHA-256.

        Args:
            confirm: ask a web server for its tag twice: some make up another for every answer, and then the content
                counts.
        """
        if source.data is not None or self._settings.digest == "content":
            return _content_digest(self.read(source))

        def tag_or_content(objects: _Objects, uri: str) -> str:
            tag = self._store_tag(objects.stat(uri), uri)
            if tag and confirm and objects is self._web and self._store_tag(objects.stat(uri), uri) != tag:
                tag = None
            return tag or _content_digest(self._read(objects, uri))

        return self._at_store(source, tag_or_content)

    def needs_confirmation(self, source: ReferenceSource, digest: str) -> bool:
        """Whether a digest that was not confirmed is a web server's tag."""
        uri = normalized(source.uri or "")
        return source.data is None and uri.startswith(("http://", "https://")) and not digest.startswith("sha256:")

    def _read(self, objects: _Objects, uri: str) -> bytes:
        data = objects.read_at_most(uri, self._settings.max_bytes)
        if data is None:
            raise self._too_large()
        return data

    def _store_tag(self, state: StoredObject | None, uri: str) -> str | None:
        """A tag that changes when the object does, from its listing alone; None if its store has no reliable one.

        Unless it is a digest of the content, it counts for this address alone.
        """
        state = _require_file(state)
        self._check_size(state.size)
        if state.size == 0:
            raise _empty()
        if state.content_tag is not None:
            content_md5 = _CONTENT_MD5.get(get_protocol(uri))
            is_content = content_md5 is not None and content_md5.fullmatch(state.content_tag) is not None
            where = "" if is_content else f":{address_digest(uri)}"
            return f"tag:{state.content_tag}:{state.size}{where}"
        if self._settings.digest == "stat" and state.time_tag is not None:
            return f"stat:{address_digest(uri)}:{state.size}:{state.time_tag}"
        return None

    def _at_store(self, source: ReferenceSource, work: Callable[[_Objects, str], _Result]) -> _Result:
        uri = normalized(source.uri or "")
        self._check_scheme(uri)
        try:
            return work(self._objects(uri), uri)
        except (ConceptError, MemoryError):
            raise
        except StoreObjectMissing:
            raise _missing() from None
        except StoreUnavailable as error:
            fix = "check that its store can be reached and is well; submit again, which tries it again"
            raise unreachable(f"cannot be read: {error.reason}", fix) from None
        except ImportError as error:
            fix = f"install the package for {uri.partition('://')[0]}:// where persres-batch runs"
            raise refused(f"this store needs a package that is not installed ({error.name or error})", fix) from None
        except Exception as error:  # file systems raise their own kinds
            reason = error.reason if isinstance(error, StoreError) else short_reason(error)
            raise refused(f"cannot be read: {reason}", "check the path and the permissions") from None

    def _objects(self, uri: str) -> _Objects:
        if "::" in uri:  # a chain of addresses has a file system of its own
            return _FileSystemImages(uri, self._settings)
        scheme = get_protocol(uri)
        if scheme in _WEB:
            return self._web
        if scheme not in self._stores:
            self._stores[scheme] = _FileSystemImages(uri, self._settings)
        return self._stores[scheme]

    def _check_scheme(self, uri: str) -> None:
        schemes = self._settings.allowed_schemes
        for link in uri.split("::"):
            scheme = link.partition("://")[0] if "://" in link else ("file" if "::" not in uri else link)
            if scheme not in schemes:
                fix = f"use one of {', '.join(schemes)}, or extend references.allowed_schemes in the run spec"
                raise refused(f"references are not fetched from {scheme}://", fix)

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self._settings.max_bytes:
            raise self._too_large()

    def _too_large(self) -> ConceptError:
        fix = "reduce the image, or raise references.max_bytes in the run spec"
        return refused(f"more than {self._settings.max_bytes} bytes", fix)


class _FileSystemImages:
    """Images on a local disk or in an object store, of one scheme."""

    def __init__(self, uri: str, settings: ReferenceSettings) -> None:
        self._store = SingleObjects(uri, what="reference image", retry_s=settings.retry_seconds)

    def stat(self, uri: str) -> StoredObject | None:
        return self._find(self._store.path_of(uri))[1]

    def read_at_most(self, uri: str, limit: int) -> bytes | None:
        path = self._store.path_of(uri)
        if self._store.is_local:  # elsewhere it costs a request, and there are no pipes
            path, state = self._find(path)
            _require_file(state)
        try:
            return self._store.read_at_most(path, limit)
        except StoreObjectMissing:
            found, state = self._find(path)
            if state is None or found == path:
                raise
            return self._store.read_at_most(found, limit)

    def _find(self, path: str) -> tuple[str, StoredObject | None]:
        """The object of this name, or else of one that is equal but for its Unicode form."""
        state = self._store.stat_any(path)
        if state is None:
            for other in other_spellings(path, _names_in if self._store.is_local else None):
                if (found := self._store.stat_any(other)) is not None:
                    return other, found
        return path, state


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _require_file(state: StoredObject | None) -> StoredObject:
    if state is None:
        raise _missing()
    if state.kind in _NOT_A_FILE:
        raise refused(*_NOT_A_FILE[state.kind])
    return state


def _content_digest(data: bytes) -> str:
    if not data:
        raise _empty()
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _missing() -> ConceptError:
    return refused("there is no such file", "check the path; relative paths start at the manifest's folder")


def _empty() -> ConceptError:
    return refused("the file is empty (0 bytes)", "upload it again")
