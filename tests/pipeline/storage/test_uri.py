from __future__ import annotations

import json

import pytest
import s3fs
from fsspec.config import conf

from persres.core.errors import InvalidInput
from persres.pipeline.storage.uri import has_credentials, normalized, open_file_system, redact


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
def test_address_with_credentials_is_refused_and_not_repeated(uri, shown):
    assert has_credentials(uri)
    with pytest.raises(InvalidInput, match=r"with credentials inside.*Fix: .*AWS_PROFILE") as caught:
        open_file_system(uri)
    assert shown in str(caught.value)
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
def test_address_without_credentials_is_accepted(uri):
    assert not has_credentials(uri)


def test_redact_replaces_the_longest_secret_first():
    assert redact("key=abcd-efgh", ("abcd-efgh", "abcd")) == "key=***"


def s3_options():
    s3fs.S3FileSystem.clear_instance_cache()
    fs, root = open_file_system("s3://bucket/mugs/")
    assert root == "bucket/mugs"
    return fs.config_kwargs


def test_retries_are_ours_unless_the_user_has_configured_them(monkeypatch, tmp_path):
    assert s3_options() == {"retries": {"total_max_attempts": 1}}
    with monkeypatch.context() as patched:
        patched.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 4}})
        assert s3_options() == {"read_timeout": 4, "retries": {"total_max_attempts": 1}}
    with monkeypatch.context() as patched:
        patched.setitem(conf, "s3", {"config_kwargs": {"retries": {"max_attempts": 9}}})
        assert s3_options() == {"retries": {"max_attempts": 9}}
    with monkeypatch.context() as patched:
        patched.setenv("AWS_MAX_ATTEMPTS", "7")
        assert s3_options() == {}
    with monkeypatch.context() as patched:
        (tmp_path / "config").write_text("[default]\nretry_mode = adaptive\n")
        patched.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        assert s3_options() == {}
    with monkeypatch.context() as patched:
        patched.setenv("AWS_PROFILE", "nobody")
        assert json.dumps(s3_options())  # the first request reports that there is no such profile


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("S3://Bucket/Key%20a", "s3://Bucket/Key%20a"),
        ("file:///a/b", "/a/b"),
        ("FILE:///a/b%20c", "/a/b c"),
        ("file:/a/b", "/a/b"),
        ("file://localhost/a/%C3%A4", "/a/ä"),
        ("/a/b%20c", "/a/b%20c"),
        ("~/a", "/home-of-a-test/a"),
        ("relative/a", "relative/a"),
        ("zip://a.png::S3://b/c.zip", "zip://a.png::S3://b/c.zip"),
        ("a:b", "a:b"),
    ],
)
def test_normalized_is_what_file_systems_take(monkeypatch, uri, expected):
    monkeypatch.setenv("HOME", "/home-of-a-test")
    assert normalized(uri) == expected


def test_normalized_file_uri_is_literal_where_a_file_has_that_name(tmp_path):
    (tmp_path / "50%25").touch()
    assert normalized(f"file://{tmp_path}/50%25") == f"{tmp_path}/50%25"
    assert normalized((tmp_path / "a b").as_uri()) == f"{tmp_path}/a b"
