from __future__ import annotations

import errno
import json

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ProfileNotFound
from s3fs.errors import translate_boto_error

from persres.core.errors import StoreError
from persres.pipeline.storage.errors import error_kind, fix_for, is_precondition_failed


def s3_error(code: str, status: int) -> Exception:
    """As s3fs raises what S3 answers."""
    answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(answer, "PutObject"))  # type: ignore[arg-type]


class HttpError(Exception):
    """As google's and azure's clients raise: with the status as an attribute."""

    def __init__(self, **status: int) -> None:
        super().__init__("the store says no")
        self.__dict__.update(status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (s3_error("SlowDown", 503), "transient"),
        (s3_error("ServiceUnavailable", 503), "transient"),
        (s3_error("InternalError", 500), "transient"),
        (s3_error("RequestTimeout", 400), "transient"),
        (s3_error("IncompleteBody", 400), "transient"),
        (s3_error("OperationAborted", 409), "transient"),
        (s3_error("SomethingNew", 502), "transient"),
        (s3_error("AccessDenied", 403), "refused"),
        (s3_error("ExpiredToken", 400), "refused"),
        (s3_error("InvalidBucketName", 400), "refused"),
        (s3_error("PermanentRedirect", 301), "refused"),
        (s3_error("NoSuchBucket", 404), "missing"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), "transient"),
        (NoCredentialsError(), "refused"),
        (ProfileNotFound(profile="nobody"), "refused"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "transient"),
        (TimeoutError(), "transient"),
        (json.JSONDecodeError("half an answer", "", 0), "transient"),
        (HttpError(code=429), "transient"),
        (HttpError(status_code=503), "transient"),
        (HttpError(status=401), "refused"),
        (OSError(errno.ENOSPC, "full"), "refused"),
        (ValueError("no such region"), "refused"),
        (FileNotFoundError("x"), "missing"),
        (StoreError("already named"), "bug"),
        (TypeError("ours"), "bug"),
        (KeyError("ours"), "bug"),
        (MemoryError(), "bug"),
        (KeyboardInterrupt(), "bug"),
    ],
)
def test_error_kind_of_object_stores(error, kind):
    assert error_kind(error, on_disk=False) == kind


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, "transient"),
        (errno.ESTALE, "transient"),
        (errno.EAGAIN, "transient"),
        (errno.ENOSPC, "refused"),
        (errno.EDQUOT, "refused"),
        (errno.EROFS, "refused"),
        (errno.EACCES, "refused"),
        (errno.ENOTDIR, "refused"),
        (errno.ENOENT, "missing"),
    ],
)
def test_error_kind_of_disks(number, kind):
    assert error_kind(OSError(number, "no"), on_disk=True) == kind


@pytest.mark.parametrize(
    ("error", "writing", "fix"),
    [
        (OSError(errno.ENOSPC, "full"), True, "make room"),
        (OSError(errno.EROFS, "read-only"), True, "give this user the right"),
        (s3_error("AccessDenied", 403), False, "give this user the right"),
        (HttpError(status=401), False, "give this user the right"),
        (NoCredentialsError(), False, "give credentials in the environment or in a named profile"),
        (s3_error("NoSuchBucket", 404), True, "create the bucket"),
        (s3_error("NoSuchKey", 404), False, "nothing else removes its files"),
        (s3_error("PermanentRedirect", 301), True, "region"),
        (s3_error("SlowDown", 503), True, "can be reached"),
    ],
)
def test_fix_names_what_to_do_about_each_kind_of_error(error, writing, fix):
    assert fix in fix_for(error, kind=error_kind(error, on_disk=False), writing=writing)


def test_precondition_failed_is_recognized_in_every_form():
    assert is_precondition_failed(FileExistsError())
    assert is_precondition_failed(s3_error("PreconditionFailed", 412))  # some name no condition with it
    assert is_precondition_failed(HttpError(code=412))
    assert not is_precondition_failed(s3_error("AccessDenied", 403))
