"""The run spec and the catalog of a command: the given ones, else those that belong to its manifest.

The run spec is `--spec`, else run.yaml beside the manifest, else run.yaml in the current folder, else the default
settings. The catalog is `--catalog`, else the run spec's `catalog`, else `<stem of the manifest>-catalog` beside it.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import InvalidInput, StoreRefused

if TYPE_CHECKING:
    from ...pipeline.spec.run_spec import RunSpec

SPEC_FILE = "run.yaml"

_GIVE_CATALOG = "give the catalog with --catalog URI"
_SCHEMES_WITHOUT_CATALOGS = frozenset({"http", "https", "hf"})


@dataclass(frozen=True, slots=True)
class ChosenSpec:
    """A run spec and its origin. `path` is None for the default settings; `place` is empty for a `--spec`."""

    spec: RunSpec
    path: str | None
    place: str = ""

    @property
    def name(self) -> str | None:
        """`path` without credentials."""
        from ...pipeline.storage.uri import without_credentials

        return without_credentials(self.path) if self.path is not None else None

    @property
    def line(self) -> str | None:
        """What to print about the choice; None if the user made it."""
        return f"run spec: {self.name or 'the default settings'} ({self.place})" if self.place else None


@dataclass(frozen=True, slots=True)
class ChosenCatalog:
    """A catalog's address and its origin; `place` is empty for a `--catalog`."""

    uri: str
    place: str = ""

    @property
    def line(self) -> str | None:
        """What to print about the choice; None if the user made it."""
        return f"catalog: {self.uri} ({self.place})" if self.place else None


def choose_spec(manifest: str, given: str | None) -> ChosenSpec:
    """Load the run spec of a manifest; `given` is the `--spec`.

    Raises:
        InvalidInput: a run spec exists and cannot be used, or its store refuses to say whether it exists.
        StoreUnavailable: its store does not answer.
    """
    from ...pipeline.spec.run_spec import RunSpec

    require_one_address(manifest, "manifest")
    if given is not None:
        return ChosenSpec(RunSpec.load(given), given)
    places = _spec_places(manifest)
    for path, place in places.items():
        if _exists(path):
            return ChosenSpec(RunSpec.load(path), path, place)
    return ChosenSpec(RunSpec(), None, f"not found: {', '.join(places)}")


def choose_catalog(manifest: str, given: str | None, chosen: ChosenSpec) -> ChosenCatalog:
    """The catalog of a manifest; `given` is the `--catalog`. A relative path stays relative.

    Raises:
        InvalidInput: `given` cannot be an address, or none can be derived from that of the manifest or the run spec.
    """
    if given is not None:
        return _checked(ChosenCatalog(given))
    if chosen.spec.catalog is not None:
        uri = _catalog_of_spec(chosen.spec.catalog, chosen.path or "")
        return _checked(ChosenCatalog(uri, f"`catalog` of {chosen.name}"))
    return _checked(ChosenCatalog(catalog_beside(manifest), "beside the manifest"))


def catalog_beside(manifest: str) -> str:
    """`<folder>/<stem>-catalog` for a manifest `<folder>/<stem>.parquet`.

    Raises:
        InvalidInput: the manifest's address holds credentials or a query, takes no catalogs, or names no file.
    """
    if _is_uri(manifest):
        _require_usable(manifest, "manifest")
    scheme, separator, path = manifest.rpartition("://")
    folder, name = posixpath.split(path.rstrip("/"))
    if name in ("", ".", "..") or (separator and not folder):
        raise InvalidInput(f"the manifest {manifest!r} names no file that a catalog could be beside", fix=_GIVE_CATALOG)
    return f"{scheme}{separator}{posixpath.join(folder, posixpath.splitext(name)[0])}-catalog"


def is_manifest(text: str) -> bool:
    """Whether a command's argument names a manifest, by its suffix, rather than a catalog or a run."""
    from ...pipeline.manifest.scan import MANIFEST_SUFFIXES

    suffix = posixpath.splitext(text.partition("?")[0] if _is_uri(text) else text)[1]
    return suffix.lower() in MANIFEST_SUFFIXES and not os.path.isdir(text)


def require_one_address(uri: str, what: str) -> None:
    """Refuse what names no one place; a manifest on the web may have a signature in its address.

    Raises:
        InvalidInput: the address is empty or a chain, or has characters that no name should have.
    """
    from ...pipeline.storage.uri import check_address, has_credentials

    if "::" in uri or not (_is_uri(uri) and (has_credentials(uri) or "?" in uri)):
        check_address(uri, what=what)


def catalog_of_manifest(manifest: str, spec: str | None, catalog: str | None) -> ChosenCatalog:
    """The catalog of a manifest for commands that need the run spec for nothing else.

    Raises:
        InvalidInput: as `choose_spec` and `choose_catalog`.
    """
    if catalog is not None:
        return _checked(ChosenCatalog(catalog))
    return choose_catalog(manifest, catalog, choose_spec(manifest, spec))


def _checked(chosen: ChosenCatalog) -> ChosenCatalog:
    """Refuse an address that cannot be a catalog's before anything is done with it."""
    from ...pipeline.storage.uri import check_address

    check_address(chosen.uri, what="catalog")
    return chosen


def _spec_places(manifest: str) -> dict[str, str]:
    """Where to look for a run spec: paths, and places in words. Web servers and signed addresses are not asked."""
    scheme, separator, path = manifest.rpartition("://")
    folder = posixpath.dirname(path.rstrip("/"))
    places = {}
    if not separator or (folder and _unusable(manifest) is None):
        places[f"{scheme}{separator}{posixpath.join(folder, SPEC_FILE)}"] = "beside the manifest"
    places.setdefault(SPEC_FILE, "in the current folder")
    return places


def _exists(path: str) -> bool:
    from ...pipeline.storage.object_store import ObjectStore

    try:
        return ObjectStore(path.removesuffix(SPEC_FILE) or ".", what="run spec").stat_any(SPEC_FILE) is not None
    except InvalidInput:
        return False  # reading the manifest reports an address that cannot be opened
    except StoreRefused as error:
        raise InvalidInput(error.message, fix="give the run spec with --spec RUN.YAML") from None


def _catalog_of_spec(catalog: str, spec: str) -> str:
    """A run spec's `catalog`; a relative path is relative to the folder of the run spec."""
    if not catalog.strip():
        raise InvalidInput(f"`catalog` of {spec} is empty", fix="give a folder or URI, or leave it out")
    catalog = os.path.expanduser(catalog)
    if _is_uri(catalog) or posixpath.isabs(catalog):
        return catalog
    if _is_uri(spec):
        _require_usable(spec, "run spec")
    scheme, separator, path = spec.rpartition("://")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(path), catalog))
    if separator and joined.split("/")[0] != path.split("/")[0]:
        raise InvalidInput(f"`catalog: {catalog}` of {spec} leaves the bucket", fix=_GIVE_CATALOG)
    return f"{scheme}{separator}{joined}"


def _is_uri(text: str) -> bool:
    return "://" in text


def _require_usable(uri: str, what: str) -> None:
    from ...pipeline.storage.uri import without_credentials

    if reason := _unusable(uri):
        message = f"no catalog can be beside the {what} {without_credentials(uri)}: {reason}"
        raise InvalidInput(message, fix=_GIVE_CATALOG)


def _unusable(uri: str) -> str | None:
    """Why no other address can be derived from this one, if so."""
    from ...pipeline.storage.uri import has_credentials

    if has_credentials(uri) or any(sign in uri for sign in "?#"):
        return "its address holds credentials or a query"
    if "::" in uri:
        return "its address is a chain"
    if uri.partition("://")[0].lower() in _SCHEMES_WITHOUT_CATALOGS:
        return "its store takes no catalogs"
    return None
