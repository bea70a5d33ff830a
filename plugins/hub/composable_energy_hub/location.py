"""Locations on the hub, `owner/name@revision`, and the errors of the hub, translated from those of `huggingface_hub`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from composable_energy.errors import ComposableEnergyError, OptionError
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
        repository, at, revision = text.partition("@")
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
        known = _translate(error, place, offline)
        if known is None:
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
        status = error.response.status_code
        if status in (401, 403):
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
