"""Loading of energies from the hub: locations, errors, and one file, `energy.safetensors`; no code and no pickle is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError
from composable_energy.files import ENERGY_FILE
from composable_energy.options import import_extra

SCHEME = "hf"


@dataclass(frozen=True)
class Location:
    """A repository of the hub, `owner/name`, at a branch, a tag or a commit hash; None for the default branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Location:
        """Returns the location of `owner/name` or `owner/name@revision`."""
        repository, at, revision = text.partition("@") if isinstance(text, str) else ("", "", "")
        if not repository or (at and not revision):
            raise OptionError(f"{SCHEME}:{text} is no location of the hub: write hf:owner/name or hf:owner/name@revision.")
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return f"{SCHEME}:{self.repository}" + (f"@{self.revision}" if self.revision else "")


def client() -> Any:
    """Returns the package `huggingface_hub`."""
    hub = import_extra("huggingface_hub", "hub")
    for part in ("constants", "errors"):
        import_extra(f"huggingface_hub.{part}", "hub")
    return hub


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(ComposableEnergyError, OSError):
    """The hub refused a request or failed."""

    documentation: ClassVar[str] = "errors.md#huberror"


class HubNotFoundError(HubError, LookupError):
    """The hub has no such repository or revision, or does not show it to the account."""

    documentation: ClassVar[str] = "errors.md#hubnotfounderror"


class HubAccessError(HubError, PermissionError):
    """The account may not read or write a repository of the hub."""

    documentation: ClassVar[str] = "errors.md#hubaccesserror"


class HubConnectionError(HubError, ConnectionError):
    """The hub cannot be reached, or is switched off, and the cache lacks the files."""

    documentation: ClassVar[str] = "errors.md#hubconnectionerror"


@contextlib.contextmanager
def translated(place: Location, *, offline: bool = False) -> Iterator[None]:
    """Raises errors of `huggingface_hub` as errors of this library, which say what to do; `offline` asks for cached files only."""
    try:
        yield
    except ComposableEnergyError:
        raise
    except Exception as error:
        if (known := _translate(error, place, offline)) is None:
            raise
        raise known from error


def _translate(error: Any, place: Location, offline: bool) -> ComposableEnergyError | None:
    """Returns the error of this library; None for one that is not of the hub, such as a full disk."""
    kinds, name, offline_mode = client().errors, place.repository, client().constants.HF_HUB_OFFLINE
    absent = isinstance(error, kinds.LocalEntryNotFoundError)
    if absent and isinstance(error.__cause__, kinds.HfHubHTTPError):
        return _translate(error.__cause__, place, offline)
    if isinstance(error, kinds.HFValidationError):
        return OptionError(f"{place} is no location of the hub: write hf:owner/name or hf:owner/name@revision ({_first_line(error)}).")
    if isinstance(error, kinds.RevisionNotFoundError):
        return HubNotFoundError(f"{name} has no revision {place.revision!r}: name a branch, a tag or a whole commit hash.")
    if isinstance(error, kinds.GatedRepoError):
        return HubAccessError(f"{name} is gated: ask for access on its page, then {_LOG_IN}.")
    if isinstance(error, kinds.RepositoryNotFoundError):
        return HubNotFoundError(
            f"The hub has no {name}, or does not show it to you: check the name; if it is private, {_LOG_IN} of an account with access."
        )
    if isinstance(error, kinds.LocalTokenNotFoundError):
        return HubAccessError(f"There is no token for {name}: {_LOG_IN}.")
    if isinstance(error, kinds.OfflineModeIsEnabled) or (absent and (offline or offline_mode)):
        switch = "local_files_only" if offline else "HF_HUB_OFFLINE"
        return HubConnectionError(f"{place} is needed from the hub, and {switch} is set: use it once with a connection, or unset that.")
    if isinstance(error, kinds.HfHubHTTPError):
        if (status := error.response.status_code) in (401, 403):
            return HubAccessError(f"The hub refuses {name} to you (status {status}): {_LOG_IN} of an account with access.")
        return HubError(f"The hub failed for {place}: {_first_line(error)}")
    if absent:
        return HubConnectionError(f"The hub cannot be reached, and the cache has no {place}: {_first_line(error.__cause__ or error)}")
    if isinstance(error, (kinds.HTTPError, ConnectionError)):
        return HubConnectionError(f"The hub cannot be reached for {place}: {_first_line(error)}")
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_SHOWN = 5


def load(
    location: str,
    *,
    token: bool | str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> ce.Energy:
    """Returns an energy from a repository of the hub: what `ce.load("hf:owner/name@revision")` calls.

    Only `energy.safetensors` is downloaded. It is read by `ce.load`, which executes no code of the repository. Tokens, cache and offline
    mode are those of `huggingface_hub`: `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`.

    Args:
        location: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit hash.
        token: A token; None for that of the login or of `HF_TOKEN`, False for none.
        cache_dir: The cache; None for that of `HF_HOME`.
        endpoint: The address of the hub; None for that of `HF_ENDPOINT`.
        local_files_only: Whether to use the cache alone.
        force_download: Whether to download files that the cache has.

    Raises:
        HubNotFoundError: The hub has no such repository or revision.
        HubAccessError: The repository is gated or private.
        HubConnectionError: The hub cannot be reached, or is switched off, and the cache has no such files.
        HubError: The hub failed.
        FileFormatError: The repository has only pickled weights, has no energy of this library, or the files are damaged.
        PluginNotFound: The energy needs a plug-in that is not installed.
        OptionError: The location is malformed.
    """
    place, hub = Location.parse(location), client()
    options: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_dir,
        "endpoint": endpoint,
        "local_files_only": local_files_only,
        "force_download": force_download,
        "library_name": "composable-energy",
        "library_version": ce.__version__,
    }

    with translated(place, offline=local_files_only):
        folder = Path(hub.snapshot_download(place.repository, revision=place.revision, allow_patterns=[ENERGY_FILE], **options))
    if not (folder / ENERGY_FILE).is_file():
        files: list[str] = []
        if not local_files_only:
            with contextlib.suppress(HubError), translated(place):  # offline, the message is without names of files
                files = hub.HfApi(endpoint=endpoint, token=token).list_repo_files(place.repository, revision=folder.name)
        raise _no_energy(place, files)
    try:
        return ce.load(folder)
    except FileFormatError as error:
        raise FileFormatError(
            f"{error} The file is that of {place}, commit {folder.name}; if it was damaged on the way, load with force_download=True."
        ) from error


def _no_energy(place: Location, files: list[str]) -> FileFormatError:
    """Returns the error for a repository without a saved energy, whose files may be unknown."""
    suffixes = {PurePosixPath(file).suffix for file in files}
    pickles = [file for file in files if PurePosixPath(file).suffix in _PICKLES]
    if pickles and ".safetensors" not in suffixes:
        return FileFormatError(
            f"{place} has only pickled weights ({_listed(pickles)}). Reading a pickle can run any code, so nothing of it was downloaded. "
            "Ask its authors for safetensors; or read the model yourself, build an energy with composable_energy.as_energy, and push that."
        )
    found = f"; it has {_listed(files)}" if files else ""
    return FileFormatError(f"{place} holds no energy of composable-energy{found}. `E.push(...)` writes one, the file {ENERGY_FILE}.")


def _listed(files: list[str]) -> str:
    return ", ".join(files[:_SHOWN]) + (f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else "")
