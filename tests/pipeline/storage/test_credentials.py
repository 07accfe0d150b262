"""Credentials in addresses: found by place, name and value, and left out whatever their encoding."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.storage.uri import has_credentials, without_credentials

NAMES = [
    "sig", "signature", "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "token",
    "access_token", "apikey", "api_key", "api-key", "apiKey", "key", "AWSAccessKeyId", "secret", "client_secret",
    "password", "passwd", "pwd", "auth", "jwt", "sas", "sessionid",
]  # fmt: skip
PLACES = ["https://host/a/m.parquet", "s3://bucket/a/m.parquet", "abfs://container@account/a/m.parquet"]
BENIGN_PARAMETERS = [
    "download=1", "version=2026-11-25", "at=2026-11-25T10:00:00Z", "run=20261122T190501Z", "name=mugs-catalog-nightly",
    "monkey=1", "keyword=mug", "tokenizer=clip", "design=blue", "page=12345678901234567890",
    "title=someLongParameterValueHere", "file=mugs-of-2026-in-blue-and-white.parquet",
]  # fmt: skip


def encoded(draw: st.DrawFn, text: str) -> str:
    """`text` with some of its characters percent-encoded, some of them twice."""
    times = [draw(st.integers(0, 2)) for _ in text]
    escapes = {0: lambda one: one, 1: lambda one: f"%{ord(one):02x}", 2: lambda one: f"%25{ord(one):02X}"}
    return "".join(escapes[time](one) for one, time in zip(text, times, strict=True))


@st.composite
def random_values(draw: st.DrawFn) -> str:
    """Values as services make them: hexadecimal, base64, a token with a prefix."""
    digest = hashlib.sha256(draw(st.binary(max_size=8))).digest()
    kind = draw(st.sampled_from(["hex", "base64", "urlsafe", "short hex"]))
    forms = {
        "hex": digest.hex(),
        "short hex": digest[:12].hex(),
        "base64": quote(base64.b64encode(digest).decode(), safe=""),
        "urlsafe": base64.urlsafe_b64encode(digest).decode().rstrip("="),
    }
    return forms[kind]


@st.composite
def addresses_with_named_secrets(draw: st.DrawFn) -> tuple[str, str]:
    name, value = draw(st.sampled_from(NAMES)), draw(st.text("abcXYZ019", min_size=4, max_size=12))
    name = "".join(one.upper() if draw(st.booleans()) else one for one in name) if name.islower() else name
    before = draw(st.sampled_from(["", "download=1&", "a;"]))
    mark = draw(st.sampled_from("?#"))
    return f"{draw(st.sampled_from(PLACES))}{mark}{before}{encoded(draw, name)}={value}secret", f"{value}secret"


@given(addresses_with_named_secrets())
def test_secret_parameter_is_found_by_its_name_however_it_is_encoded(case):
    uri, value = case
    assert has_credentials(uri)
    assert value not in without_credentials(uri) and not has_credentials(without_credentials(uri))


@given(st.sampled_from(PLACES), st.sampled_from(["x", "v", "id", "q"]), random_values())
def test_secret_parameter_is_found_by_its_value(place, name, value):
    uri = f"{place}?{name}={value}"
    assert has_credentials(uri)
    assert value not in without_credentials(uri) and without_credentials(uri).startswith(place[:10])


@given(st.text("abcXYZ019/+", min_size=1, max_size=12), st.sampled_from(["https", "s3", "sftp", "gs"]))
def test_user_part_is_left_out(password, scheme):
    uri = f"{scheme}://ana:pw{password}@host/a"
    assert has_credentials(uri)
    assert f"pw{password}" not in without_credentials(uri) and "ana" not in without_credentials(uri)


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("https://host/hooks/ghp_0123456789abcdefghijklmnopqrstuvwxyz", "ghp_"),
        ("https://host/AKIAIOSFODNN7EXAMPLE/a", "AKIA"),
        ("https://host/a?next=https%3A%2F%2Fana%3Apw%40other%2F", "pw"),
        ("https://ana%3Apw@host/a", "pw"),
        ("https://ana@host/a", "ana"),
        ("simplecache::https://ana:pw@host/a", "pw"),
        ("s3://AKIA:se?cr#et@bucket/a", "cr"),
        ("https://acc.blob.core.windows.net/c/m.parquet?sv=2024-01-01&se=2026-12-01&sr=c&sp=r&s%69g=abc%3D", "abc"),
        ("https://host/m.parquet;token=abcd", "abcd"),
    ],
)
def test_secret_of_any_kind_is_found_and_left_out(uri, secret):
    assert has_credentials(uri)
    assert secret not in without_credentials(uri)


def test_secret_of_the_environment_is_found_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("STUDIO_SECRET", "correct horse")
    uri = "s3://bucket/correct%20horse/mugs"
    assert has_credentials(uri) and "horse" not in without_credentials(uri)


@pytest.mark.parametrize("parameter", BENIGN_PARAMETERS)
@pytest.mark.parametrize("place", PLACES)
def test_parameter_of_another_kind_is_no_credential(place, parameter):
    assert not has_credentials(f"{place}?{parameter}")


@given(st.text(min_size=1).filter(lambda text: "://" not in text))
def test_path_is_unchanged(path):
    assert not has_credentials(path) and without_credentials(path) == path


@pytest.mark.parametrize("uri", ["s3://bucket/a b/ä [v1]*?#1/50%25", "memory://a?b=c/d", "abfs://c@account/x"])
def test_address_of_a_store_without_credentials_is_unchanged(uri):
    assert without_credentials(uri) == uri
