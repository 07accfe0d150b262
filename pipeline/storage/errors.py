"""What an error of a store means: whether a retry can help, and what its reader is to do.

Stores report one cause in many ways: an errno, an HTTP status, a code in an XML body, a class of a client library.
The libraries are optional, so their classes are recognized by name.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Literal

from ...core.errors import PersresError

ErrorKind = Literal["transient", "missing", "refused", "bug"]
"""transient: a retry can help. missing: there is no such object. refused: a retry ends the same way. bug: ours."""

_TRANSIENT_ON_DISK = frozenset({
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ENFILE, errno.EMFILE,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
})  # fmt: skip
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_REFUSED_BY_STORES = NO_SPACE | _NO_PERMISSION | {
    errno.EINVAL, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSYS, errno.EREMCHG
}  # fmt: skip
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_TRANSIENT_CODES = frozenset({
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted",
    "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "XAmzContentSHA256Mismatch",
})  # fmt: skip
_NO_CREDENTIALS = frozenset({
    "ClientAuthenticationError", "CredentialRetrievalError", "DefaultCredentialsError", "NoCredentialsError",
    "PartialCredentialsError", "ProfileNotFound", "SSOTokenLoadError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
})  # fmt: skip
_WRONG_CONFIGURATION = frozenset({
    "ConfigNotFound", "ConfigParseError", "InvalidConfigError", "InvalidRegionError", "NoRegionError",
    "ParamValidationError",
})  # fmt: skip
_BUGS = (PersresError, MemoryError, TypeError, AttributeError, AssertionError, LookupError, NotImplementedError)


def error_kind(error: BaseException, *, on_disk: bool) -> ErrorKind:
    """Classify an error that a store's client raised; `on_disk`: the local file system raised it."""
    if not isinstance(error, Exception) or isinstance(error, _BUGS):
        return "bug"
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return "missing"
    if on_disk:
        return "transient" if isinstance(error, OSError) and error.errno in _TRANSIENT_ON_DISK else "refused"
    if _codes(error) & _TRANSIENT_CODES or isinstance(error, (TimeoutError, json.JSONDecodeError)):
        return "transient"
    return "refused" if _is_refused(error) else "transient"


def is_precondition_failed(error: BaseException) -> bool:
    """Whether a store declined a conditional write, however it reports that."""
    return isinstance(error, FileExistsError) or "PreconditionFailed" in _codes(error) or 412 in _statuses(error)


def fix_for(error: BaseException, *, kind: ErrorKind, writing: bool, what: str = "catalog") -> str:
    """What the reader of an error should do about it; `what` is the thing that lies in the store."""
    number = error.errno if isinstance(error, OSError) else None
    if kind == "transient":
        return "check that the store can be reached and is well; then submit again, which continues this run"
    if kind == "missing" and not writing:
        return f"check that the {what}'s address is right and that nothing else removes its files; then submit again"
    if kind == "missing":
        return "create the bucket or container first, or give the address of one that exists"
    if _names(error) & _NO_CREDENTIALS:
        return "give credentials in the environment or in a named profile (AWS_PROFILE), on every node of the run"
    if isinstance(error, PermissionError) or number in _NO_PERMISSION or _statuses(error) & {401, 403}:
        return (
            "give this user the right to list, read, write and delete there, or set other credentials (AWS_PROFILE); "
            "then submit again"
        )
    if number in NO_SPACE:
        return "make room there or raise the quota; then submit again, which continues this run"
    return f"check that the {what}'s address, region and endpoint are right; then submit again"


def short_reason(error: BaseException) -> str:
    """An error without its own text, which may hold a signed URL: "HTTP 403", "Permission denied", "TimeoutError"."""
    statuses = _statuses(error)
    if statuses:
        return f"HTTP {min(statuses)}"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _is_refused(error: Exception) -> bool:
    if isinstance(error, (PermissionError, FileExistsError, ImportError, ValueError)):
        return True
    if _names(error) & (_NO_CREDENTIALS | _WRONG_CONFIGURATION):
        return True
    if statuses := _statuses(error):
        return any(300 <= status < 500 and status not in _TRANSIENT_STATUS for status in statuses)
    return isinstance(error, OSError) and error.errno in _REFUSED_BY_STORES


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes: clients translate the store's own errors."""
    for _ in range(5):
        if error is not None:
            yield error
            error = error.__cause__


def _names(error: BaseException) -> frozenset[str]:
    return frozenset(kind.__name__ for one in _chain(error) for kind in type(one).__mro__)


def _codes(error: BaseException) -> frozenset[str]:
    responses = [getattr(one, "response", None) for one in _chain(error)]
    return frozenset(str(one.get("Error", {}).get("Code")) for one in responses if isinstance(one, dict))


def _statuses(error: BaseException) -> frozenset[int]:
    """HTTP statuses, as botocore, google's, azure's and aiohttp's errors carry them."""
    found: set[object] = set()
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            found.add(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        names = ("status", "status_code", "code")  # aiohttp has the last one too, with a warning
        found.add(next((value for name in names if (value := getattr(one, name, None)) is not None), None))
    return frozenset(one for one in found if isinstance(one, int) and 300 <= one < 600)
