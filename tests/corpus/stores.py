"""Stores that are not there, say no, are full, or go away while they are used."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..support.s3_server import Fault, Request, S3Server
from .bad_input import BadInput
from .workplace import GOOD_ROW, Workplace

Around = Callable[[Workplace, S3Server], Any]


def _submit(place: Workplace) -> list[str]:
    # A row that fails is work for the books alone: the catalog is written to, and no Ray is started.
    return place.submit(place.json_lines({**GOOD_ROW, "reference_images": []}))


def _at(uri: str) -> Callable[[Workplace], list[str]]:
    def arrange(place: Workplace) -> list[str]:
        place.catalog = uri
        return _submit(place)

    return arrange


def _file_in_place_of(name: str) -> Callable[[Workplace], list[str]]:
    """The catalog's folder, or one above it, is a file."""

    def arrange(place: Workplace) -> list[str]:
        place.file(name, "no folder")
        return _submit(place)

    return arrange


def _holding(files: Mapping[str, str | bytes]) -> Callable[[Workplace], list[str]]:
    """A catalog that already holds these objects."""

    def arrange(place: Workplace) -> list[str]:
        for name, content in files.items():
            path = Path(place.catalog) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return _submit(place)

    return arrange


def _held(place: Workplace) -> list[str]:
    from persres.pipeline.catalog.lease import hold_lease
    from persres.pipeline.catalog.store import CatalogStore

    with hold_lease(CatalogStore(place.catalog), "20200101T000000Z-000000", "anna@workstation"):
        lease = next((Path(place.catalog) / "lease").iterdir())
        content = json.loads(lease.read_bytes())
    lease.write_text(json.dumps({name: _fresh(name, value) for name, value in content.items()}))
    return _submit(place)


def _fresh(name: str, value: Any) -> Any:
    return time.time() + 3600 if name.startswith("expires") else value


@contextmanager
def _without_permission(place: Workplace, server: S3Server) -> Iterator[None]:
    """The folder above the catalog may be read, but not written, by whom the command runs as."""
    place.folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # to whom permissions mean nothing
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        place.folder.chmod(0o755)


@contextmanager
def _full(place: Workplace, server: S3Server) -> Iterator[None]:
    """No file may grow beyond a size that the run's first documents have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _rule(decide: Callable[[Request], Fault | None]) -> Around:
    @contextmanager
    def around(place: Workplace, server: S3Server) -> Iterator[None]:
        server.faults.rule = decide
        try:
            yield
        finally:
            server.faults.rule = lambda request: None

    return around


def _environment(**changes: str) -> Around:
    @contextmanager
    def around(place: Workplace, server: S3Server) -> Iterator[None]:
        place.environment = {**place.environment, **changes}
        yield

    return around


@contextmanager
def _anonymous(place: Workplace, server: S3Server) -> Iterator[None]:
    endpoint = server.environment["AWS_ENDPOINT_URL"]
    place.environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(place.folder)}
    yield


def _denied_once_under_way(request: Request) -> Fault | None:
    return "403" if request.method == "PUT" and "/runs/" in request.path else None


def _references_on_s3(place: Workplace) -> list[str]:
    return place.submit(place.json_lines({**GOOD_ROW, "reference_images": ["s3://secrets/mug.png"]}))


_WRONG_RECORD = '{"concepts": "none"}'
_NO_PORT = "http://127.0.0.1:9"


def stores() -> list[BadInput]:
    """Every store of the corpus."""
    on_disk = [
        BadInput("a file where the catalog should be", _file_in_place_of("catalog"), 1, ("Not a directory",)),
        BadInput(
            "a file above the catalog",
            lambda place: (setattr(place, "catalog", str(place.folder / "mug.png" / "catalog")), _submit(place))[1],
            1,
            ("Not a directory",),
        ),
        BadInput("a folder that may not be written", _submit, 1, ("ermission",), around=_without_permission),
        BadInput("a disk that is full", _submit, 1, ("room",), around=_full),
        BadInput("a scheme that there is not", _at("nosuch://catalog"), 2, ("cannot open the catalog",)),
        BadInput("a store without a package", _at("gs://bucket/catalog"), 2, ("fsspec package is installed",)),
        BadInput("a password inside the URI", _at("s3://AKIA:hunter22@bucket/mugs"), 2, ("environment",)),
        BadInput(
            "a commit record that is not one",
            _holding({"commits/20261122T190501Z-3fa9c1_train-1_001.json": _WRONG_RECORD}),
            1,
            ("commits/20261122T190501Z-3fa9c1_train-1_001.json",),
        ),
        BadInput("a catalog that another run holds", _held, 4, ("anna@workstation",)),
        BadInput("a report of no catalog", lambda place: ["report", place.catalog], 2, ("there is no catalog",)),
        BadInput("an export of no concept", lambda place: ["export", place.catalog, "mug-9"], 2, ("no concept mug-9",)),
    ]
    denied = _rule(lambda request: "403")
    busy = _rule(lambda request: "503")
    on_s3 = [
        BadInput("a bucket that is not there", _at("s3://nowhere/mugs"), 1, ("bucket",), on_s3=True),
        BadInput("a bucket that says 403", _submit, 1, ("ermission",), on_s3=True, around=denied),
        BadInput(
            "a bucket that says 503 for ever", _submit, 1, ("can be reached",), on_s3=True, around=busy, slow=True
        ),
        BadInput(
            "a bucket that says 403 once the run is under way",
            _submit,
            1,
            ("ermission",),
            on_s3=True,
            around=_rule(_denied_once_under_way),
        ),
        BadInput("no credentials", _submit, 1, ("redentials",), on_s3=True, around=_anonymous),
        BadInput(
            "a server that is not there",
            _submit,
            1,
            ("can be reached",),
            on_s3=True,
            around=_environment(AWS_ENDPOINT_URL=_NO_PORT),
            slow=True,
        ),
        BadInput(
            "a manifest in a bucket that is not there",
            lambda place: place.submit("s3://nowhere/m.parquet"),
            2,
            ("there is no such file",),
            on_s3=True,
        ),
        BadInput(
            "a manifest that may not be read",
            lambda place: place.submit("s3://catalogs/m.parquet"),
            2,
            ("may not be read",),
            on_s3=True,
            around=_rule(lambda request: "403" if request.path.endswith("m.parquet") else None),
        ),
        BadInput(
            "a reference in a bucket that says 403",
            _references_on_s3,
            3,
            ("cannot be read",),
            on_s3=True,
            around=_rule(lambda request: "403" if "secrets" in request.path else None),
        ),
    ]
    return [*on_disk, *on_s3]
