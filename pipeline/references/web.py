"""Images from web servers: bounded in time and size, asked for exactly as addressed, redirected to public hosts only.

fsspec's HTTP file system reports every error as a missing file, follows redirects anywhere and has no time limit for a
whole image, so this asks aiohttp itself. Everything runs in fsspec's event loop; the methods block, from any thread.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast
from urllib.parse import quote, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from fsspec.asyn import get_loop, sync
from yarl import URL

from ...core.errors import ConceptError
from ..storage.retry import with_retry
from ..storage.stored_object import StoredObject, stored_object
from ..storage.uri import without_credentials
from .decoding import refused
from .settings import ReferenceSettings

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_WITHOUT_HEAD = frozenset({400, 403, 404, 405, 501})  # what servers answer that know GET alone
_TRANSIENT_STATUS = frozenset({408, 425, 429})
_CHUNK_BYTES = 1 << 16
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NOT_SENT = re.compile(r"[^!-~]")

_ITSELF = "give the address of the image itself"

_Result = TypeVar("_Result")


class WebError(Exception):
    """A request that failed.

    Args:
        reason: what happened, in a few words without the address.
        fix: what the reader is to do.
        is_transient: whether a retry can help.
    """

    def __init__(self, reason: str, fix: str, *, is_transient: bool) -> None:
        super().__init__(reason)
        self.reason, self.fix, self.is_transient = reason, fix, is_transient


class UnreachableImage(ConceptError):
    """An image whose host or store does not answer now: whether it has changed is not known."""


def unreachable(reason: str, fix: str) -> UnreachableImage:
    """As `refused`, for a transient error."""
    return UnreachableImage(reason, stage="load", fix=fix)


class WebImages:
    """Images by their http:// and https:// addresses. A context manager, which closes its connections.

    Transient errors are retried for `settings.retry_seconds`. A host whose errors have taken `settings.host_seconds` in
    all is not asked any more, so that one dead host costs a run minutes and not hours.

    Its methods raise ConceptError (stage "load"), naming what happened and what to do.
    """

    def __init__(self, settings: ReferenceSettings) -> None:
        self._settings = settings
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._failed_seconds: dict[str, float] = {}

    def __enter__(self) -> WebImages:
        return self

    def __exit__(self, *_: object) -> None:
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            sync(get_loop(), session.close)

    def stat(self, uri: str) -> StoredObject:
        """What the server says about an image, without its body."""
        return self._retry(uri, self._stat)

    def read_at_most(self, uri: str, limit: int) -> bytes | None:
        """An image's bytes, or None if there are more than `limit`; no more than that is fetched."""

        async def body(response: aiohttp.ClientResponse) -> bytes | None:
            if (response.content_length or 0) > limit:
                return None
            data = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                data += chunk
                if len(data) > limit:
                    return None
            return bytes(data)

        return self._retry(uri, lambda uri: self._request("GET", uri, body))

    async def _stat(self, uri: str) -> StoredObject:
        async def headers(response: aiohttp.ClientResponse) -> StoredObject:
            known = {name: response.headers.get(name) for name in ("ETag", "Last-Modified")}
            return stored_object({**known, "size": response.content_length})

        try:
            return await self._request("HEAD", uri, headers)
        except _Status as error:
            if error.status not in _WITHOUT_HEAD:
                raise
        return await self._request("GET", uri, headers)

    def _retry(self, uri: str, request: Callable[[str], Awaitable[_Result]]) -> _Result:
        host, started = _host(uri), time.monotonic()
        if self._failed_seconds.get(host, 0.0) > self._settings.host_seconds:
            reason = (
                f"host {host} is not asked any more: its errors have taken more than {self._settings.host_seconds:g} s"
            )
            raise unreachable(reason, "see its other errors; submit again once it answers")
        try:
            return with_retry(
                lambda: cast(_Result, sync(get_loop(), request, uri)),
                retry_s=self._settings.retry_seconds,
                is_transient=lambda error: isinstance(error, WebError) and error.is_transient,
                describe=lambda error: f"{without_credentials(uri)}: {error}",
            )
        except WebError as error:
            if error.is_transient:
                took = time.monotonic() - started
                self._failed_seconds[host] = self._failed_seconds.get(host, 0.0) + took
                raise unreachable(error.reason, error.fix) from None
            raise refused(error.reason, error.fix) from None

    async def _request(
        self, method: str, uri: str, consume: Callable[[aiohttp.ClientResponse], Awaitable[_Result]]
    ) -> _Result:
        """One request, redirects included, within the time limits.

        Raises:
            WebError: it failed.
        """
        settings = self._settings
        try:
            async with asyncio.timeout(settings.image_seconds):
                url = _as_written(uri)
                for hop in range(_MAX_REDIRECTS + 1):
                    session = self._session(only_public=hop > 0 and not settings.private_redirects)
                    async with session.request(method, url, allow_redirects=False) as response:
                        if response.status not in _REDIRECTS:
                            _raise_for_status(response)
                            return await consume(response)
                        url = self._redirected(url, response.headers.get("Location", ""))
                raise WebError(
                    f"it redirects more than {_MAX_REDIRECTS} times",
                    "give the address of the image itself",
                    is_transient=False,
                )
        except TimeoutError as error:
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                limit, name = settings.connect_seconds, "connect_seconds"
            elif isinstance(error, aiohttp.SocketTimeoutError):
                limit, name = settings.read_seconds, "read_seconds"
            else:
                limit, name = settings.image_seconds, "image_seconds"
            fix = f"check the host, or raise references.{name} in the run spec"
            raise WebError(f"no answer within {limit:g} s", fix, is_transient=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _web_error(error) from None

    def _session(self, *, only_public: bool) -> aiohttp.ClientSession:
        if only_public not in self._sessions:
            settings = self._settings
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=settings.connect_seconds, sock_read=settings.read_seconds
            )
            # A proxy resolves names itself, and may have a private address.
            resolver = _PublicResolver() if only_public and not urllib.request.getproxies() else ThreadedResolver()
            self._sessions[only_public] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, limit_per_host=8),
                timeout=timeout,
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "persres-batch", "Accept": "image/*,*/*;q=0.5"},
            )
        return self._sessions[only_public]

    def _redirected(self, url: URL, location: str) -> URL:
        """Where a redirect leads, if it may: to an allowed scheme, and by default to no address inside a network."""
        found = url.join(_as_written(location))
        if found.scheme not in self._settings.allowed_schemes or found.scheme not in ("http", "https"):
            fix = f"{_ITSELF}, or extend references.allowed_schemes in the run spec"
            raise WebError(f"it redirects to {found.scheme or 'nowhere'}://", fix, is_transient=False)
        if not self._settings.private_redirects and _is_private_literal(found.host or ""):
            raise _private(found.host or "")
        return found


class _Status(WebError):
    """The server answered with a status that is no success."""

    def __init__(self, status: int) -> None:
        reason, fix = _STATUS.get(status, (f"HTTP {status}", "check the address"))
        if status >= 500:
            reason, fix = f"HTTP {status}", "the host has a fault of its own: submit again once it is mended"
        super().__init__(reason, fix, is_transient=status >= 500 or status in _TRANSIENT_STATUS)
        self.status = status


_STATUS = {
    401: ("HTTP 401", "the host asks for a login: give a signed address, or copy the image to a bucket"),
    403: ("HTTP 403", "access is denied or the link has expired: give a fresh address, or copy the image to a bucket"),
    404: ("HTTP 404", "there is nothing at this address: check it"),
    410: ("HTTP 410", "the image was removed: give another address"),
    429: ("HTTP 429", "the host limits requests: submit again later, or copy the images to a bucket"),
}


def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status >= 400 or response.status in (204, 205, 304):
        raise _Status(response.status)


def _web_error(error: Exception) -> WebError:
    """An error of aiohttp's as what it means."""
    match error:
        case WebError():
            return error
        case _PrivateAddress():
            return _private(str(error))
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            fix = "the host's certificate or TLS version is not accepted: check the address and the host's certificate"
            return WebError("no secure connection (TLS)", fix, is_transient=False)
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return WebError("unknown host", "check the host's name in the address", is_transient=True)
        case aiohttp.ClientConnectorError(os_error=_PrivateAddress() as inner):
            return _private(str(inner))
        case aiohttp.ClientConnectorError():
            return WebError("connection refused", "check that the host can be reached from here", is_transient=True)
        case aiohttp.InvalidURL() | ValueError():
            return WebError("not an address of a web server", "write it as http(s)://host/path", is_transient=False)
    fix = "submit again; if it stays so, copy the images to a bucket"
    return WebError("the connection broke before all had arrived", fix, is_transient=True)


def _as_written(address: str) -> URL:
    """An address as it is written: another quoting would break a signature. Blanks and letters beyond ASCII after the
    host, which may not stand in a request, are encoded.
    """
    scheme, separator, rest = address.partition("://") if _ABSOLUTE.match(address) else ("", "", address)
    host, slash, path = rest.partition("/") if separator else ("", "", rest)
    return URL(f"{scheme}{separator}{host}{slash}{_NOT_SENT.sub(lambda found: quote(found[0]), path)}", encoded=True)


class _PrivateAddress(OSError):
    """A name resolves to an address inside a network."""


class _PublicResolver(AbstractResolver):
    """Resolves names to public addresses alone: the connection is made to what was checked."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [one for one in found if _is_public(one["host"])]
        if not public:
            raise _PrivateAddress(host)
        return public

    async def close(self) -> None:
        await self._resolver.close()


def _private(host: str) -> WebError:
    fix = f"{_ITSELF}, or set references.private_redirects: true in the run spec"
    return WebError(f"it redirects to {host}, an address inside a network", fix, is_transient=False)


def _is_private_literal(host: str) -> bool:
    """Whether a host is given as an IP address that is not public; names are judged when they are resolved."""
    try:
        return not _is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global


def _host(uri: str) -> str:
    return urlsplit(uri).netloc.rpartition("@")[2].lower()
