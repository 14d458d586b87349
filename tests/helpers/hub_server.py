"""A stand-in of the model hub on loopback: the requests that huggingface_hub makes, and troubles.

Two listeners of different origins, as the real one has: the hub, which knows repositories and
tokens, and the store ("cdn"), which hands out the bytes that the hub redirects to.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FIRST = "1" * 40
"""The commit that everything is at, until there is a newer one."""


@dataclass(frozen=True, slots=True)
class Request:
    place: str
    """hub or cdn."""
    method: str
    path: str
    token: str
    range: str


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by their paths, of each commit."""
    refs: dict[str, str] = field(default_factory=lambda: {"main": FIRST})


@dataclass
class StandIn:
    """What the hub has, how it misbehaves, and what it was asked.

    `token`: what must be sent; None: nothing.
    `gated`: that repository wants more than a token.
    `status`: the answer to everything that is asked of the hub; None: as it should.
    `cuts`: the answers of the store that break, the next first, after so many bytes each.
    `hold`: after so many bytes the store stops to send, until `release` is set.
    `sizes`: lies about the sizes of files, by path.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    status: int | None = None
    cuts: list[int] = field(default_factory=list)
    hold: int | None = None
    damage: bool = False
    ignore_ranges: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    store_url: str = ""
    holding: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def add(self, repository: str, path: str, data: bytes, commit: str = FIRST) -> None:
        """A file that was committed; `main` is at that commit then."""
        repo = self.repositories.setdefault(repository, Repository())
        repo.commits.setdefault(commit, {})[path] = data
        repo.refs["main"] = commit

    def asked(self, place: str, method: str = "GET") -> list[Request]:
        return [r for r in self.requests if (r.place, r.method) == (place, method)]

    def blob(self, digest: str) -> bytes | None:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if sha256(data) == digest:
                        return data
        return None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    place = ""
    stand_in: StandIn

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Nothing: the requests are kept."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        wanted = self.headers.get("Range", "")
        self.stand_in.requests.append(Request(self.place, self.command, path, token, wanted))
        try:
            self._find(path, token, wanted)
        except ConnectionError:  # a client that was told to go
            self.close_connection = True

    def _find(self, path: str, token: str, wanted: str) -> None:
        raise NotImplementedError

    def _send(self, status: int, body: bytes = b"", **headers: str | int) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _HubHandler(_Handler):
    place = "hub"

    def _find(self, path: str, token: str, wanted: str) -> None:
        hub = self.stand_in
        if hub.status is not None:
            return self._send(hub.status)
        # A branch's name may have slashes, which are quoted.
        parts = [unquote(part) for part in path.strip("/").split("/")]
        is_list = parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]
        owner, repo, verb, revision, *file = parts[2:] if is_list else [*parts, *[""] * 4]
        if verb not in ("resolve", "tree"):
            return self._send(404)
        repository = hub.repositories.get(f"{owner}/{repo}")
        if repository is None or (hub.token is not None and token != hub.token):
            known = hub.token is not None and token == hub.token
            return self._send(404 if known else 401, X_Error_Code="RepoNotFound")
        if hub.gated:
            return self._send(403 if token else 401, X_Error_Code="GatedRepo")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._send(404, X_Error_Code="RevisionNotFound")
        files = repository.commits[commit]
        if is_list:
            return self._list(files)
        return self._resolve(commit, "/".join(file).rstrip("/"), files)

    def _list(self, files: dict[str, bytes]) -> None:
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
            for path, data in files.items()
        ]
        self._send(200, json.dumps(entries).encode(), Content_Type="application/json")

    def _resolve(self, commit: str, path: str, files: dict[str, bytes]) -> None:
        if path not in files:
            return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        digest = sha256(files[path])
        return self._send(
            302,
            Location=f"{self.stand_in.store_url}/{digest}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=self.stand_in.sizes.get(path, len(files[path])),
        )


class _StoreHandler(_Handler):
    place = "cdn"

    def _find(self, path: str, token: str, wanted: str) -> None:
        hub = self.stand_in
        data = hub.blob(path.strip("/"))
        if data is None:
            return self._send(404)
        start = 0
        if wanted and not hub.ignore_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        rest = data[start:]
        if hub.damage:
            rest = bytes(byte ^ 1 for byte in rest[:1]) + rest[1:]
        self.send_response(206 if wanted and not hub.ignore_ranges else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        return self._give(rest)

    def _give(self, data: bytes) -> None:
        hub = self.stand_in
        if hub.cuts:
            self.wfile.write(data[: hub.cuts.pop(0)])
            self.close_connection = True
        elif hub.hold is not None:
            held = hub.hold
            self.wfile.write(data[:held])
            hub.holding.set()
            hub.release.wait()
            self.wfile.write(data[held:])
        else:
            self.wfile.write(data)


@contextmanager
def _serving(handler: type[_Handler], stand_in: StandIn) -> Iterator[str]:
    """Serve on a free port; the URL."""
    bound = type(handler.__name__, (handler,), {"stand_in": stand_in})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            stand_in.release.set()
            server.shutdown()
            thread.join()


@contextmanager
def hub_server() -> Iterator[StandIn]:
    stand_in = StandIn()
    with ExitStack() as stack:
        stand_in.store_url = stack.enter_context(_serving(_StoreHandler, stand_in))
        stand_in.url = stack.enter_context(_serving(_HubHandler, stand_in))
        yield stand_in


def environment(stand_in: StandIn, home: Path, **more: str) -> dict[str, str]:
    """Variables for a process that takes the stand-in for the hub."""
    return {
        "HF_ENDPOINT": stand_in.url,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        **more,
    }
