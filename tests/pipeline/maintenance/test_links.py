"""Nothing outside a catalog is read, changed or removed through a link in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from persres.core.errors import StoreRefused
from persres.pipeline.catalog.layout import RunPaths
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.maintenance.forget import forget
from persres.pipeline.maintenance.gc import collect_garbage
from persres.pipeline.run.run_status import begun_runs, has_begun
from persres.pipeline.run.stop_file import write_stop_file

from ...support.catalog_history import write_history

RUN = "20270101T000000Z-dddddd"


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    store = CatalogStore(str(tmp_path / "catalog"))
    write_history(store)
    return store


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the catalog with what looks like parts of one, and its content before the test."""
    store = CatalogStore(str(tmp_path / "outside"))
    write_history(store)
    store.write(f"{RUN}/plan.json", b'{"train": ["anna"], "render_only": [], "failed": ["anna"]}')
    return tmp_path / "outside"


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LINKS = {
    "a folder in residuals/": ("residuals/more", "residuals"),
    "a file in residuals/": ("residuals/20270101T000000Z-dddddd_train-x_001.parquet", "residuals/*.parquet"),
    "a run": (f"runs/{RUN}", RUN),
    "a document": (f"runs/{RUN}.json", f"{RUN}/plan.json"),
    "nothing": ("renderings/gone.parquet", "gone"),
    "the catalog itself": ("runs/loop", "../catalog"),
}


def link(store: CatalogStore, outside: Path, kind: str) -> Path:
    name, target = LINKS[kind]
    path = Path(store.uri) / name
    found = next(outside.glob(target)) if "*" in target else outside / target
    path.symlink_to(found)
    return path


@pytest.mark.parametrize("kind", LINKS)
def test_link_is_refused_by_name_and_its_target_stays(store, outside, kind):
    path, before, inside = link(store, outside, kind), content(outside), content(Path(store.uri))
    with pytest.raises(StoreRefused, match=r"is a link.*Fix: replace it by what it points to, or remove") as caught:
        forget(store, ["anna"])
    assert str(path) in str(caught.value)
    with pytest.raises(StoreRefused, match="is a link"):
        collect_garbage(store, older_than_s=0, now=1e12)
    assert content(outside) == before and content(Path(store.uri)).keys() >= inside.keys() and path.is_symlink()
    path.unlink()
    forget(store, ["anna"])
    assert content(outside) == before


def test_run_behind_a_link_is_neither_listed_nor_stopped(store, outside):
    link(store, outside, "a run")
    before = content(outside)
    for work in (
        lambda: begun_runs(store, 9),
        lambda: has_begun(store, RUN),
        lambda: write_stop_file(store, RUN, "me"),
    ):
        with pytest.raises(StoreRefused, match="is a link"):
            work()
    with pytest.raises(StoreRefused, match="is a link"):
        store.read(RunPaths(RUN).plan)
    assert content(outside) == before


def test_catalog_that_is_itself_behind_a_link_works(store, tmp_path):
    (tmp_path / "mugs").symlink_to(store.uri)
    linked = CatalogStore(str(tmp_path / "mugs"))
    assert linked.list("") == store.list("")
    forget(linked, ["anna"])
