"""Uploading of energies to the hub: `energy.safetensors` and a model card."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import composable_energy as ce
from composable_energy.files import ENERGY_FILE
from composable_energy_hub.card import model_card
from composable_energy_hub.errors import translated
from composable_energy_hub.location import SCHEME, Location, client

_CARD = "README.md"


def push(
    energy: ce.Energy,
    location: str,
    *,
    private: bool | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    description: str = "",
    message: str | None = None,
    token: bool | str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads an energy to a repository of the hub, in one commit: what `E.push("owner/name")` calls.

    The repository is created if it does not exist, and so is the branch. `README.md` becomes a model card with the expression, its terms,
    the shape of a point, the recommended sampler and how to load it; an earlier one stays in the history of the repository.

    Args:
        location: `owner/name`, or `owner/name@branch`; without an owner, that of the token.
        private: Whether a new repository is private; None for the default of the owner.
        license: The identifier of a licence for the card, such as `mit`.
        tags: More tags for the card.
        description: Text for the card, in Markdown.
        token: A token that may write; None for that of the login or of `HF_TOKEN`.
        endpoint: The address of the hub; None for that of `HF_ENDPOINT`.

    Returns:
        The location of the commit for `ce.load`: `hf:owner/name@hash`.

    Raises:
        ExpressionError: A term cannot be saved; nothing is uploaded.
        HubAccessError: The token may not write there.
        HubConnectionError: The hub cannot be reached, or is switched off.
        HubError: The hub failed.
        OptionError: The location is malformed.
    """
    place, hub = Location.parse(location), client()
    api = hub.HfApi(endpoint=endpoint, token=token, library_name="composable-energy", library_version=ce.__version__)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "energy"
        energy.save(saved)
        with translated(place):
            if "/" not in place.repository or not api.repo_exists(place.repository):
                place = replace(place, repository=api.create_repo(place.repository, private=private, exist_ok=True).repo_id)
            card = model_card(energy, place, saved, license=license, tags=tags, description=description)
            (saved / _CARD).write_text(card, encoding="utf-8")
            if place.revision is not None:
                api.create_branch(place.repository, branch=place.revision, exist_ok=True)
            commit = api.create_commit(
                place.repository,
                [hub.CommitOperationAdd(file, saved / file) for file in (ENERGY_FILE, _CARD)],
                commit_message=message or f"Upload {energy}"[:200],
                revision=place.revision,
            )
    return f"{SCHEME}:{place.repository}@{commit.oid}"
