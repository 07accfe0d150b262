"""A server of the part of the Hugging Face Hub's protocol that `huggingface_hub` needs to download a model.

In a test:              with hub_server() as hub: hub.push("team/drawings", folder)
In a client's process:  HF_ENDPOINT=hub.endpoint HF_HUB_OFFLINE=0
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .http_server import QuietHandler, serving


@dataclass
class Commit:
    """A repository's files at one commit, by path."""

    sha: str
    files: dict[str, bytes]


@dataclass
class Hub:
    """A server's repositories, and the requests it has received.

    Attributes:
        endpoint: the address for HF_ENDPOINT.
        gated: repositories whose files are refused.
        requests: (method, path) of every request, in order.
        before_file: called with a file's path when half of it is sent; may block, or raise to break the connection.
    """

    endpoint: str = ""
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    before_file: Callable[[str], None] = lambda path: None
    _commits: dict[str, list[Commit]] = field(default_factory=dict)

    def push(self, repository: str, folder: Path) -> str:
        """Make a folder's files the latest commit of a repository's main branch; returns the commit's hash."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        content = json.dumps([repository, sorted((name, _sha256(data)) for name, data in files.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self._commits.setdefault(repository, []).append(Commit(sha, files))
        return sha

    def commit(self, repository: str, revision: str) -> Commit | None:
        """The commit that a branch or hash names."""
        commits = self._commits[repository]
        if revision == "main":
            return commits[-1]
        return next((commit for commit in commits if commit.sha == revision), None)

    def has(self, repository: str) -> bool:
        return repository in self._commits

    def files_sent(self) -> Counter[str]:
        """How often each file was requested, by its path in the repository."""
        sent = (path.split("/resolve/")[1].split("/", 1)[1] for method, path in self.requests if _is_file(method, path))
        return Counter(sent)


def _is_file(method: str, path: str) -> bool:
    return method == "GET" and "/resolve/" in path


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        if not self.hub.has(repository):
            return self._refuse(404, "RepoNotFound")
        action, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
        commit = self.hub.commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if action == "revision":
            siblings = [{"rfilename": name} for name in commit.files]
            self._send_json({"id": repository, "sha": commit.sha, "siblings": siblings})
        elif action == "tree":
            self._send_json([_entry(name, data) for name, data in commit.files.items()])
        elif repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        else:
            self._send_file(commit, "/".join(rest[2:]))

    def _send_file(self, commit: Commit, name: str) -> None:
        data = commit.files.get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound", commit.sha)
        requested = self.headers.get("Range")
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested else 0
        self.send_response(206 if requested else 200)
        self.send_header("ETag", f'"{_sha256(data)}"')
        self.send_header("X-Repo-Commit", commit.sha)
        self.send_header("Accept-Ranges", "bytes")
        if requested:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            half = start + (len(data) - start) // 2
            self.wfile.write(data[start:half])
            self.hub.before_file(name)
            self.wfile.write(data[half:])

    def _send_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve an empty Hub on the loopback interface, in threads."""
    hub = Hub()
    with serving(type("Handler", (_Handler,), {"hub": hub})) as hub.endpoint:
        yield hub
