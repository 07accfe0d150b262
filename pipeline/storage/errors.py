"""What an error of a store means: whether to ask again, and what somebody is to do who reads it.

Stores say the same thing in many ways: an errno, an HTTP status, a code in an XML body, a class of a client library.
The libraries are optional, so their classes are told by name.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Literal

from ...core.errors import PersresError

Meaning = Literal["passing", "missing", "refused", "bug"]
"""Ask again; there is no such object; it will not be otherwise; not the store's fault."""

_PASSING_ON_DISKS = frozenset({
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ENFILE, errno.EMFILE,
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
})  # fmt: skip
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_REFUSED_BY_STORES = _NO_SPACE | _NO_PERMISSION | {
    errno.EINVAL, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.ENOSYS, errno.EREMCHG
}  # fmt: skip
_PASSING_STATUS = frozenset({408, 409, 425, 429})
_PASSING_CODES = frozenset({
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
_BUGS = (PersresError, TypeError, AttributeError, AssertionError, LookupError, NotImplementedError)


def meaning_of(error: BaseException, *, on_disk: bool) -> Meaning:
    """What to make of an error that a store's client raised; `on_disk`: it is the local file system's."""
    if not isinstance(error, Exception) or isinstance(error, _BUGS):
        return "bug"
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return "missing"
    if on_disk:
        return "passing" if isinstance(error, OSError) and error.errno in _PASSING_ON_DISKS else "refused"
    if _codes(error) & _PASSING_CODES or isinstance(error, (TimeoutError, json.JSONDecodeError)):
        return "passing"
    return "refused" if _is_refused(error) else "passing"


def is_precondition_failed(error: BaseException) -> bool:
    """Whether a store declined a conditional write, in whatever words."""
    return isinstance(error, FileExistsError) or "PreconditionFailed" in _codes(error) or 412 in _statuses(error)


def fix_for(error: BaseException, *, meaning: Meaning, writing: bool) -> str:
    """What the reader of an error should do about it."""
    number = error.errno if isinstance(error, OSError) else None
    if meaning == "passing":
        return "check that the store can be reached and is well; then submit again, which goes on where this run ended"
    if meaning == "missing" and not writing:
        return "check that the catalog's address is right and that nobody removes its files; then submit again"
    if meaning == "missing":
        return "create the bucket or container first, or give the address of one that exists"
    if _names(error) & _NO_CREDENTIALS:
        return "give credentials by the environment or a named profile (AWS_PROFILE), on every machine of the run"
    if isinstance(error, PermissionError) or number in _NO_PERMISSION or _statuses(error) & {401, 403}:
        return (
            "give this user the right to list, read, write and delete there, or set other credentials (AWS_PROFILE); "
            "then submit again"
        )
    if number in _NO_SPACE:
        return "make room there or raise the quota; then submit again, which goes on where this run ended"
    return "check that the catalog's address, region and endpoint are right; then submit again"


def _is_refused(error: Exception) -> bool:
    if isinstance(error, (PermissionError, FileExistsError, ImportError, ValueError)):
        return True
    if _names(error) & (_NO_CREDENTIALS | _WRONG_CONFIGURATION):
        return True
    if statuses := _statuses(error):
        return any(300 <= status < 500 and status not in _PASSING_STATUS for status in statuses)
    return isinstance(error, OSError) and error.errno in _REFUSED_BY_STORES


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was made from: clients translate what a store says."""
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
        found.update(getattr(one, name, None) for name in ("status", "status_code", "code"))
    return frozenset(one for one in found if isinstance(one, int) and 300 <= one < 600)
