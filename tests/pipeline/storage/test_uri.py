from __future__ import annotations

import json

import pytest
import s3fs
from fsspec.config import conf

from persres.core.errors import InvalidInput
from persres.pipeline.storage.uri import open_file_system, struck, without_user_part


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:secret@bucket/mugs", "s3://***@bucket/mugs"),
        ("s3://AKIA:sec/ret+x@bucket/mugs", "s3://***@bucket/mugs"),
        ("s3://AKIA@bucket/mugs", "s3://***@bucket/mugs"),
        ("sftp://ana:secret@host/x", "sftp://***@host/x"),
        ("simplecache::s3://AKIA:secret@bucket/x", "simplecache::s3://***@bucket/x"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(uri, shown):
    assert without_user_part(uri) == shown
    with pytest.raises(InvalidInput, match=r"with credentials inside.*Fix: .*AWS_PROFILE") as caught:
        open_file_system(uri, {})
    assert "sec" not in str(caught.value).replace("seconds", "") and "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/mugs@2",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://ana@host/x",
        "hdfs://namenode:8020/user@x/mugs",
        "/mnt/ana@work/x:y@z",
        "mugs",
    ],
)
def test_an_address_without_credentials_stays_as_it_is(uri):
    assert without_user_part(uri) == uri


def test_secrets_are_struck_longest_first():
    assert struck("key=abcd-efgh", ("abcd-efgh", "abcd")) == "key=***"


def options_of(**options):
    s3fs.S3FileSystem.clear_instance_cache()
    fs, root = open_file_system("s3://bucket/mugs/", options)
    assert root == "bucket/mugs"
    return fs.config_kwargs


def test_what_the_user_says_about_retries_and_clients_stays(monkeypatch, tmp_path):
    assert options_of() == {"retries": {"total_max_attempts": 1}}
    assert options_of(config_kwargs={"read_timeout": 3}) == {"read_timeout": 3, "retries": {"total_max_attempts": 1}}
    assert options_of(config_kwargs={"retries": {"max_attempts": 9}}) == {"retries": {"max_attempts": 9}}
    with monkeypatch.context() as patched:
        patched.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 4}})
        assert options_of()["read_timeout"] == 4
    with monkeypatch.context() as patched:
        patched.setenv("AWS_MAX_ATTEMPTS", "7")
        assert options_of() == {}
    with monkeypatch.context() as patched:
        (tmp_path / "config").write_text("[default]\nretry_mode = adaptive\n")
        patched.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        assert options_of() == {}
    with monkeypatch.context() as patched:
        patched.setenv("AWS_PROFILE", "nobody")
        assert json.dumps(options_of())  # the first request says that there is no such profile
