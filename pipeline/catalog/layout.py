"""Every path in a catalog, built and parsed here only. Pure functions.

residuals/<run>_<shard>_<attempt>-<digest>.parquet     commits/<run>_<shard>_<attempt>.json
renderings/<run>_<shard>_<attempt>-<digest>.parquet    index/<number>.json, <run>_<token>-<digest>.parquet
runs/<run>/…                                           lease/<generation>.json

<digest> is of the file's content (see `parquet_file`); names of earlier versions have none. No name is used twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RESIDUALS = "residuals/"
RENDERINGS = "renderings/"
COMMITS = "commits/"
INDEX = "index/"
RUNS = "runs/"
LEASES = "lease/"
PROBES = "probe/"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ATTEMPT = re.compile(
    r"(?:(?:residuals|renderings)/(?=.*\.parquet$)|commits/(?=.*\.json$))"
    r"(?P<run>[^/_]+)_(?P<shard>[^/_]+)_(?P<attempt>[^/_]+?)(?:-[0-9a-f]{32}(?=\.parquet$))?\.(?:parquet|json)"
)
_LEASE = re.compile(r"lease/([0-9]+)\.json")
_INDEX_VERSION = re.compile(r"index/([0-9]{8,})\.json")


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run's documents.

    Raises:
        ValueError: the run id is no valid name; raised by every property.
    """

    run_id: str

    @property
    def folder(self) -> str:
        return f"{RUNS}{_name(self.run_id)}/"

    @property
    def spec(self) -> str:
        return f"{self.folder}spec.yaml"

    @property
    def plan(self) -> str:
        return f"{self.folder}plan.json"

    @property
    def log(self) -> str:
        return f"{self.folder}log.jsonl"

    @property
    def failures(self) -> str:
        return f"{self.folder}failures.json"

    @property
    def report(self) -> str:
        return f"{self.folder}report.html"

    @property
    def summary(self) -> str:
        """Written last: a run with a summary has ended."""
        return f"{self.folder}summary.json"

    @property
    def stop_request(self) -> str:
        return f"{self.folder}stop.json"

    @classmethod
    def parse(cls, path: str) -> RunPaths | None:
        """The run of the document at `path`; None for any other object."""
        folder, _, rest = path.partition("/")
        run_id, separator, _ = rest.partition("/")
        return cls(run_id) if f"{folder}/" == RUNS and separator and _NAME.fullmatch(run_id) else None


@dataclass(frozen=True, slots=True)
class AttemptPaths:
    """Paths of the objects of one attempt at a shard.

    Raises:
        ValueError: a part is no valid name, or contains "_", which separates them; raised by every property.
    """

    run_id: str
    shard_id: str
    attempt: str

    def residuals(self, digest: str) -> str:
        """Path of the residuals with this digest of their footer."""
        return f"{RESIDUALS}{self._name}-{_name(digest)}.parquet"

    def renderings(self, digest: str) -> str:
        """Path of the renderings with this digest of their footer."""
        return f"{RENDERINGS}{self._name}-{_name(digest)}.parquet"

    @property
    def record(self) -> str:
        """The commit record: without it, readers ignore the data files."""
        return f"{COMMITS}{self._name}.json"

    @property
    def _name(self) -> str:
        return _joined(self.run_id, self.shard_id, self.attempt)

    @classmethod
    def parse(cls, path: str) -> AttemptPaths | None:
        """The attempt of the record or data file at `path`; None for any other object."""
        match = _ATTEMPT.fullmatch(path)
        return cls(match["run"], match["shard"], match["attempt"]) if match else None


def index_snapshot(run_id: str, token: str, digest: str) -> str:
    """Path of an index snapshot; `run_id` is the newest run it covers, `token` makes the name unique."""
    return f"{INDEX}{_joined(run_id, token)}-{_name(digest)}.parquet"


def newest_run_of(snapshot: str) -> str:
    """The newest run that an index snapshot covers, from its path."""
    return snapshot.removeprefix(INDEX).split("_")[0]


def index_version(number: int) -> str:
    """Path of a version of the index; the highest number is in force."""
    return f"{INDEX}{number:08d}.json"


def index_version_number(path: str) -> int | None:
    """The number of the version of the index at `path`; None for any other object."""
    match = _INDEX_VERSION.fullmatch(path)
    return int(match[1]) if match else None


def lease_file(generation: int) -> str:
    """Path of one generation of the lease; the highest generation is in force."""
    return f"{LEASES}{generation:08d}.json"


def lease_generation(path: str) -> int | None:
    """The generation of the lease at `path`; None for any other object."""
    match = _LEASE.fullmatch(path)
    return int(match[1]) if match else None


def pack_size_file(digest: str) -> str:
    """Path of the pack size measured for a device and a model, which `digest` identifies."""
    return f"pack_sizes/{_name(digest)}.json"


def is_name(text: str) -> bool:
    """Whether `text` may be a part of an object's path, such as a run id."""
    return _NAME.fullmatch(text) is not None


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"not a valid name for an object in a catalog: {text!r}")
    return text


def _joined(*names: str) -> str:
    if any("_" in _name(name) for name in names):
        raise ValueError(f"a run, shard or attempt has '_' in its name, which separates names: {names}")
    return "_".join(names)
