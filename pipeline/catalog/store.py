"""A catalog's objects: `layout` defines their paths, `ObjectStore` reads and writes their bytes."""

from __future__ import annotations

from ...core.timing import STORE_RETRY_S
from ..storage.object_store import ObjectStore
from . import layout
from .layout import AttemptPaths, RunPaths


class CatalogStore(ObjectStore):
    """The objects of one catalog, by the paths of `catalog.layout`.

    Args:
        uri: a local path or an fsspec URI, such as `s3://bucket/catalogs/mugs`, without credentials.
        retry_s: how long an operation with transient errors is retried, in seconds; 0: never.

    Raises:
        InvalidInput: `uri` holds credentials, or no file system is installed for its scheme.
    """

    _follows_links = False

    def __init__(self, uri: str, *, retry_s: float = STORE_RETRY_S) -> None:
        super().__init__(uri, what="catalog", retry_s=retry_s)

    def run_ids(self) -> list[str]:
        """Ids of the runs with a document or a loose commit record, and the newest run in the index; oldest first.

        Raises:
            StoreError: the catalog cannot be listed.
        """
        documents = {paths.run_id for path in self.list(layout.RUNS) if (paths := RunPaths.parse(path))}
        commits = {paths.run_id for path in self.list(layout.COMMITS) if (paths := AttemptPaths.parse(path))}
        snapshots = [path for path in self.list(layout.INDEX) if path.endswith(".parquet")]
        compacted = {run_id for run_id in map(layout.newest_run_of, snapshots) if layout.is_name(run_id)}
        return sorted(documents | commits | compacted)
