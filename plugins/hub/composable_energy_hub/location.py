"""Locations on the hub, `owner/name@revision`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from composable_energy.errors import OptionError
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
