"""Energies on the hub, against a stand-in server with the endpoints that loading and pushing call: revisions, the cache, and refusals."""

import base64
import contextlib
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError, ExtraNotInstalled, FileFormatError, OptionError, PluginNotFound
from composable_energy_hub import HubAccessError, HubConnectionError, HubError, HubNotFoundError
from composable_energy_hub import load as download
from tests.processes import run_code
from tests.refusals import refused
from tests.third_party import acme, site  # noqa: F401

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

    def _route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
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

    do_GET = do_HEAD = do_POST = _route  # noqa: N815

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


X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def gaussian(mean: float) -> ce.Energy:
    return ce.as_energy(torch.distributions.Normal(torch.full((2,), mean), 1.0))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def load(hub: Hub, tmp_path: Path) -> Callable[..., ce.Energy]:
    """Returns `ce.load` with the stand-in server, a cache of its own and no token."""

    def load(location: str, **options: object) -> ce.Energy:
        return ce.load(location, **{"endpoint": hub.url, "cache_dir": tmp_path / "cache", "token": False, **options})

    return load


@pytest.fixture
def push(hub: Hub) -> Callable[..., str]:
    """Returns `E.push` as a function, with the stand-in server and its token."""
    return lambda energy, location, **options: energy.push(location, **{"endpoint": hub.url, "token": hub.token, **options})


@pytest.mark.slow
def test_what_is_pushed_is_loaded(hub, load, push):
    energy = gaussian(0.0) & ~gaussian(1.0) & 2 * gaussian(3.0)
    place = push(energy, "owner/bowl")
    assert place == f"hf:owner/bowl@{hub.repositories['owner/bowl'].branches['main']}"
    for location in ("hf:owner/bowl", "hf:owner/bowl@main", place):
        loaded = load(location)
        assert loaded.equals(energy) and torch.equal(loaded(X), energy(X))
    newer = push(gaussian(1.0), "hf:owner/bowl")
    push(gaussian(2.0), "owner/bowl@trial")
    for location, mean in ((newer, 1.0), ("hf:owner/bowl", 1.0), ("hf:owner/bowl@trial", 2.0)):
        assert torch.equal(load(location)(X), gaussian(mean)(X))
    assert load(place).equals(energy) and push(gaussian(0.0), "bowl").startswith("hf:writer/bowl@")
    refused(PluginNotFound, r"No plug-in offers the publisher 'hg'\. Known: default, hf\.", push, gaussian(0.0), "hg:owner/bowl")
    refused(ExpressionError, "cannot be saved", push, ce.as_energy(lambda x: x.square().sum(1)), "owner/new")
    assert "owner/new" not in hub.repositories


def test_only_the_record_and_the_card_are_written_and_read(hub, load, push, tmp_path):
    push(gaussian(0.0), "owner/bowl")
    repository = hub.repositories["owner/bowl"]
    assert set(repository.files_at("main")[1]) == {"README.md", "energy.safetensors"}
    repository.commit("main", {"pytorch_model.bin": pickle.dumps(print), "modeling.py": b"raise SystemExit", "x.safetensors": b""})
    load("hf:owner/bowl")
    fetched = {request.rpartition("/")[2] for request in hub.requests if request.startswith("GET") and "/resolve/" in request}
    assert fetched == {"energy.safetensors"}
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.parent.parent.name == "snapshots"} == fetched


def test_after_a_first_load_no_server_is_needed(hub, load, push, monkeypatch):
    place = push(gaussian(0.0), "owner/bowl")
    load("hf:owner/bowl")
    for options in ({"local_files_only": True}, {"endpoint": "http://127.0.0.1:9"}):
        for location in (place, "hf:owner/bowl"):
            assert torch.equal(load(location, **options)(X), gaussian(0.0)(X))
    hub.failing = True
    load("hf:owner/bowl")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load("hf:owner/bowl")


def test_without_a_server_and_a_cache_the_way_out_is_said(hub, load, push, monkeypatch):
    push(gaussian(0.0), "owner/bowl")
    error, nowhere = HubConnectionError, "http://127.0.0.1:9"
    refused(error, "bowl is needed from the hub, and local_files_only is set", load, "hf:owner/bowl", local_files_only=True)
    refused(error, "cannot be reached, and the cache has no hf:owner/bowl", load, "hf:owner/bowl", endpoint=nowhere)
    refused(error, "The hub cannot be reached for hf:owner/bowl", push, gaussian(0.0), "owner/bowl", endpoint=nowhere)
    hub.failing = True
    refused(HubError, r"The hub failed for hf:owner/bowl: .*500", load, "hf:owner/bowl")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for call in (lambda: load("hf:owner/bowl"), lambda: push(gaussian(0.0), "owner/bowl")):
        refused(HubConnectionError, "hf:owner/bowl is needed from the hub, and HF_HUB_OFFLINE is set", call)


def test_a_missing_name_or_revision_is_named(load, push):
    push(gaussian(0.0), "owner/bowl")
    refused(HubNotFoundError, r"The hub has no owner/bowls, or does not show it to you: .*`hf auth login`", load, "hf:owner/bowls")
    refused(OptionError, "hf:3 is no location of the hub", download, 3)
    refused(HubNotFoundError, "owner/bowl has no revision 'v2': name a branch, a tag or a whole commit hash", load, "hf:owner/bowl@v2")


@pytest.mark.parametrize("location", ["@v1", "owner/bowl@", "a/b/c", "owner/bo wl", "owner/bowl..x"])
def test_a_malformed_location_is_refused(load, push, location):
    for use in (lambda: load(f"hf:{location}"), lambda: push(gaussian(0.0), location)):
        refused(OptionError, "is no location of the hub: write hf:owner/name or hf:owner/name@revision", use)


def test_access_is_asked_for(hub, load, push):
    push(gaussian(0.0), "owner/bowl")
    hub.repositories["owner/bowl"].gated = True
    refused(HubAccessError, "owner/bowl is gated: ask for access on its page, then log in with `hf auth login`", load, "hf:owner/bowl")
    assert torch.equal(load("hf:owner/bowl", token=hub.token)(X), gaussian(0.0)(X))
    refused(HubAccessError, r"The hub refuses owner/bowl to you \(status 403\)", push, gaussian(1.0), "owner/bowl", token=False)
    refused(HubAccessError, r"The hub refuses owner/new to you \(status 401\)", push, gaussian(1.0), "owner/new", token=False)


BERT = {"config.json": b'{"model_type": "bert"}'}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**BERT, "a.bin": pickle.dumps(print), "vae/b.pt": b""}, r"has only pickled weights \(a\.bin, vae/b\.pt\)"),
        ({**BERT, "model.safetensors": b"large"}, "hf:owner/other holds no energy of composable-energy; it has "),
        ({".gitattributes": b""}, "hf:owner/other holds no energy of composable-energy; it has "),
    ],
)
def test_other_models_are_refused_before_anything_is_downloaded(hub, load, files, message, tmp_path):
    hub.add("owner/other", files)
    refused(FileFormatError, message, load, "hf:owner/other")
    assert list(tmp_path.rglob("*.bin")) == []
    assert not any(request.startswith("GET") and ("bin" in request or "safetensors" in request) for request in hub.requests)


def test_damaged_files_are_refused(hub, load, push):
    push(gaussian(0.0), "owner/bowl")
    repository = hub.repositories["owner/bowl"]
    files = dict(repository.files_at("main")[1])
    data = files["energy.safetensors"]
    for damaged in (data[:-4], data.replace(b"Normal", b"Cauchy")):
        commit = repository.commit("main", {**files, "energy.safetensors": damaged})
        refused(FileFormatError, rf"is damaged(?s:.*)The file is that of hf:owner/bowl, commit {commit}", load, "hf:owner/bowl")


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(load, push, tmp_path):
    push(gaussian(0.0), "owner/bowl")
    load("hf:owner/bowl")
    (weights,) = (tmp_path / "cache").rglob("snapshots/*/energy.safetensors")
    weights.resolve().write_bytes(b"damaged")
    refused(FileFormatError, "load with force_download=True", load, "hf:owner/bowl")
    assert torch.equal(load("hf:owner/bowl", force_download=True)(X), gaussian(0.0)(X))


def test_the_extra_is_named_where_it_is_missing(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(ExtraNotInstalled, r"pip install 'composable-energy\[hub\]'", load, "hf:owner/bowl")


def card_of(hub: Hub, name: str) -> huggingface_hub.ModelCard:
    found = hub.repositories[name].files_at("main")
    assert found is not None
    return huggingface_hub.ModelCard(found[1]["README.md"].decode())


def test_the_card_says_what_the_energy_is(hub, push):
    energy = gaussian(0.0) & ~gaussian(1.0)
    energy.recommended = ce.Recommendation("hmc", {"leapfrogs": 7})
    push(energy, "owner/bowl", license="mit", tags=["toy"], description="A bowl: *round*.")
    card, tags = card_of(hub, "owner/bowl"), ["composable-energy", "energy-based-model", "toy"]
    assert card.data.to_dict() == {"library_name": "composable-energy", "license": "mit", "tags": tags}
    for text in (
        "# bowl\n",
        "A bowl: *round*.",
        "```text\nNormal & ~Normal\n```",
        'E = ce.load("hf:owner/bowl")\nx = E.sample(16, seed=0)',
        "| shape of a point | `(2,)` |",
        "| recommended sampler | `hmc`, `leapfrogs=7` |",
        "├─ DistributionEnergy(Normal)",
        "`composable-energy[hub]`. Nothing is unpickled",
    ):
        assert text in card.text


def test_the_card_shows_conditions_supports_missing_bounds_and_plugins(hub, push, acme):  # noqa: F811
    with ce.register("energy", "shifted", lambda: ce.as_energy(lambda x, y: (x - y).square().sum(1))):
        push(ce.get("energy", "shifted"), "owner/label")
    push(-1.0 * gaussian(0.0), "owner/hill")
    push(ce.as_energy(torch.distributions.Gamma(torch.ones(2), 1.0)), "owner/gamma")
    push(ce.load("acme-energies:bowl") & gaussian(0.0), "owner/bowl")
    label, hill, gamma, bowl = (card_of(hub, f"owner/{name}").text for name in ("label", "hill", "gamma", "bowl"))
    assert "| conditions | `y` |" in label and "E = E.given(y=...)" in label
    assert "it has no lower bound by itself" in hill and "E.sample" not in hill
    assert "| support | `inside(positive)` |" in gamma or "| support | `inside(nonnegative)` |" in gamma
    assert "This needs `composable-energy[hub]` and `acme-energies`." in bowl


@pytest.mark.full
def test_the_environment_and_the_command_line(hub, tmp_path):
    """`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` do what they do for the hub's own library."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": hub.token}
    script = "import torch, composable_energy as ce; ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).push('owner/bowl')"
    assert run_code(script, tmp_path, **environment).returncode == 0
    command = [sys.executable, "-m", "composable_energy", "sample", "'hf:owner/bowl@main' & 2 * hf:owner/bowl", "-n", "3", "--seed", "0"]
    command += ["--sampler", "langevin", "--option", "step_size=.1", "--steps", "2", "-o"]
    subprocess.run([*command, "a.npy"], check=True, env=environment, cwd=tmp_path)
    environment |= {"HF_HUB_OFFLINE": "1"}
    hub.failing = True
    subprocess.run([*command, "b.npy"], check=True, env=environment, cwd=tmp_path)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    command[4] = "hf:owner/other"
    failed = subprocess.run([*command, "c.npy"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "hf:owner/other is needed from the hub, and HF_HUB_OFFLINE is set" in failed.stderr and "Traceback" not in failed.stderr
