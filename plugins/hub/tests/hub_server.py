"""A stand-in for the Hugging Face hub: the endpoints of its REST API that `huggingface_hub` calls to load and push models."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository: the files of each commit, the commit of each branch, and whether accounts without access are refused."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, branch: str, changes: Files) -> str:
        files = {**self.commits.get(self.branches.get(branch, ""), {}), **changes}
        content = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
        commit = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit

    def files_at(self, revision: str) -> tuple[str, Files] | None:
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Hub:
    """The state of the server: its address, the token that may write, all requests so far, and whether each fails with status 500."""

    url: str = ""
    token: str = "hf_writer"
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: bool = False

    def add(self, name: str, files: Files, **options: Any) -> Repository:
        repository = self.repositories[name] = Repository(**options)
        repository.commit("main", files)
        return repository


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """Runs a hub on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def _route(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        if self.hub.failing:
            self._error(500, "", "The server is down")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(tree|revision|preupload|commit|branch)/(.+))?", path):
            name, action, revision = match.groups()
            self._model(name, action, revision, body)
        else:
            self._error(404, "", f"There is no endpoint {path}")

    def _model(self, name: str, action: str | None, revision: str | None, body: bytes) -> None:
        repository, revision = self.hub.repositories.get(name), revision or "main"
        if repository is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        if action in ("preupload", "commit", "branch") and not self._may_write():
            return self._error(403, "", "You don't have the rights to write")
        if action == "branch":
            if revision in repository.branches:
                return self._error(409, "", "Reference already exists")
            repository.branches[revision] = repository.branches.get("main", "")
            return self._json({})
        if action == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        if action == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            changes = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            commit = repository.commit(revision, changes)
            return self._json({"commitUrl": f"https://huggingface.co/{name}/commit/{commit}", "commitOid": commit})
        found = repository.files_at(revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = found
        if action == "tree":
            return self._json([{"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files.items()])
        siblings = [{"rfilename": path} for path in files]
        return self._json({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound", "Invalid username or password.")
        found = repository.files_at(revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if repository.gated and not self._may_write():
            return self._error(403, "GatedRepo", f"Access to model {name} is restricted")
        commit, files = found
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = files[path]
        return self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"})

    def _create(self, request: dict[str, Any]) -> None:
        if not self._may_write():
            return self._error(401, "", "Invalid username or password.")
        name = f"{request.get('organization') or 'writer'}/{request['name']}"
        status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, Repository())
        return self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name}, status)

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        known = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), {**known, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
