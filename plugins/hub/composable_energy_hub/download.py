"""Loading of energies from the hub. One file is downloaded, `energy.safetensors`; no code and no pickle is."""

import contextlib
from pathlib import Path, PurePosixPath
from typing import Any

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy.files import ENERGY_FILE
from composable_energy_hub.location import HubError, Location, client, translated

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
                api = hub.HfApi(endpoint=endpoint, token=token)
                files = api.list_repo_files(place.repository, revision=folder.name)
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
