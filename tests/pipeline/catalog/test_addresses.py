"""Every name is a catalog's name: written, listed, read and removed as it is, on disks and in object stores."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from persres.core.errors import InvalidInput
from persres.pipeline.catalog.existing import is_catalog, open_catalog
from persres.pipeline.catalog.store import CatalogStore

from ...support.s3_server import BUCKET

NAMES = st.text(st.sampled_from(list("ab*?[]{}()!#%&+,;=@:~^$'\"\\ .-_0129äß中é\u0301🫖")), min_size=1, max_size=12)
OBJECTS = ("lease/00000001.json", "commits/[a]*?.json", "residuals/50% [v1]#?.parquet")


def of_glob(name: str) -> str:
    """A sibling's name that a glob of `name` would match."""
    return name.replace("[", "").replace("]", "").replace("*", "xx").replace("?", "x") + "x"


def assert_works(parent: str, name: str) -> None:
    sibling = CatalogStore(f"{parent}/{of_glob(name)}")
    sibling.write("commits/x.json", b"another catalog's")
    store = CatalogStore(f"{parent}/{name}")
    assert store.list("") == [] and not is_catalog(store)
    data = {path: path.encode() for path in OBJECTS}
    for path, content in data.items():
        store.write(path, content)
    assert store.list("") == sorted(data) and store.read_many(data) == data
    for path, content in data.items():
        assert store.read(path) == content and store.size(path) == len(content)
        assert store.list(path.split("/")[0]) == [path] and not store.create(path, b"other")
        with store.open_input(path) as file:
            assert file.read() == content
    assert open_catalog(store.uri) and store.folders() == ["commits", "lease", "residuals"]
    for path in data:
        store.delete(path)
    assert store.list("") == [] and sibling.list("") == ["commits/x.json"]
    assert sibling.read("commits/x.json") == b"another catalog's"


SETTINGS = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(NAMES)
@example("catalog [v1]")
@example("50%25%20")
@example(" a ")
def test_every_name_is_a_catalog_on_a_disk(tmp_path, name):
    assume(name.strip(".") and "::" not in name and name.strip())
    assert_works(str(tmp_path / uuid.uuid4().hex), name)


@SETTINGS
@given(NAMES)
@example("catalog [v1]")
@example("cat*")
@example("50%25%20%2F")
def test_every_name_is_a_catalog_on_s3(s3, name):
    assume(name not in (".", "..") and "::" not in name)
    assert_works(f"s3://{BUCKET}/{uuid.uuid4().hex}", name)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("out::v1", "has '::' in it"),
        ("simplecache::s3://bucket/mugs", "has '::' in it"),
        ("s3:/bucket/mugs", "one slash"),
        ("s3://", "names no bucket"),
        ("s3://bucket/../mugs", "a . or .."),
        ("s3://bucket/mugs?versionId=1", "a version"),
        ("gs://bucket/mugs#1", "a query or a fragment"),
        ("az://container/mugs?a=1", "a query or a fragment"),
        ("mugs\x00", "control character"),
        ("mugs\x1b[2J", "control character"),
        ("mugs\udcff", "not UTF-8"),
        ("s3://bucket/mugs?apikey=abcd", "credentials inside"),
        ("s3://bucket/mugs?%73ig=abcd", "credentials inside"),
    ],
)
def test_address_that_names_no_place_is_refused(uri, reason):
    with pytest.raises(InvalidInput, match=r"Fix: ") as caught:
        CatalogStore(uri)
    assert reason in str(caught.value) and "abcd" not in str(caught.value) and str(caught.value).isprintable()
