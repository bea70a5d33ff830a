"""Uploading of energies to the hub: `energy.safetensors`, and a model card that says what the repository has."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import composable_energy as ce
from composable_energy.files import ENERGY_FILE, VERSION, read_record
from composable_energy_hub.download import SCHEME, Location, client, translated

LIBRARY = "composable-energy"
_GIVEN_BY_SAMPLERS = {"chains", "sigma"}


def model_card(energy: ce.Energy, place: Location, saved: Path, *, license: str | None, tags: Sequence[str], description: str) -> str:
    """Returns the text of `README.md`, with its YAML header, for an energy that is saved in a folder."""
    tags = list(dict.fromkeys([LIBRARY, "energy-based-model", *tags]))
    header = client().ModelCardData(library_name=LIBRARY, license=license, tags=tags)
    names = sorted(set(_distributions(read_record(saved / ENERGY_FILE, "energy", VERSION)[0])) - {LIBRARY, ""})
    needed = _listed([f"`{name}`" for name in (f"{LIBRARY}[hub]", *names)])
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {place.repository.rpartition('/')[2]}",
        description.strip(),
        f"An energy-based model, made with {LIBRARY}: the expression\n\n{_fenced(str(energy))}",
        f"## Load it\n\n{_fenced(_usage(energy, place), 'python')}\n\n"
        f"This needs {needed}. Nothing is unpickled, and no code of this repository runs.",
        f"## What it is\n\n{_facts(energy)}\n\nThe terms:\n\n{_fenced(repr(energy))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(energy: ce.Energy, place: Location) -> str:
    lines = ["import composable_energy as ce", "", f'E = ce.load("{place}")']
    if needed := sorted(energy.required_conditions - _GIVEN_BY_SAMPLERS):
        lines.append(f"E = E.given({', '.join(f'{name}=...' for name in needed)})")
    if energy.grounded:
        lines.append("x = E.sample(16, seed=0)" if energy.event_shape is not None else "x = E.sample((16, ...), seed=0)  # the shape of x")
    return "\n".join(lines)


def _facts(energy: ce.Energy) -> str:
    shape = energy.event_shape
    rows = [("shape of a point", f"`{tuple(shape)}`" if shape is not None else "several are possible")]
    if energy.decoder is not None:
        rows[0] = ("shape of a latent point", rows[0][1])
        rows.append(("decoder", f"`{type(energy.decoder).__name__}`"))
    if energy.support is not None:
        rows.append(("support", f"`{ce.inside(energy.support)}`"))
    if conditions := sorted(energy.conditions - {"chains"}):
        rows.append(("conditions", _listed([f"`{name}`" for name in conditions])))
    found = energy.recommended
    sampler, options = (f"`{found.sampler}`", found.options) if found else ("none: the default", {})
    rows.append(("recommended sampler", sampler + "".join(f", `{name}={value!r}`" for name, value in options.items())))
    if not energy.grounded:
        rows.append(("density", "it has no lower bound by itself: combine it with an energy that confines the points"))
    if not energy.has_value:
        rows.append(("values", "none: it has a gradient only"))
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _distributions(data: Any) -> Iterator[str]:
    """Yields the distributions that the header of a saved energy names."""
    if isinstance(data, dict):
        if isinstance(data.get("distribution"), str):
            yield data["distribution"]
        if data.get("class") == "plugin":  # a node of a plug-in: `distribution:name`
            yield data["entry"].rpartition(":")[0]
    if isinstance(data, (dict, list)):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _distributions(item)


def _fenced(text: str, language: str = "text") -> str:
    """Returns a code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


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
            files = [hub.CommitOperationAdd(file, saved / file) for file in (ENERGY_FILE, _CARD)]
            commit = api.create_commit(place.repository, files, commit_message=message or f"Upload {energy}"[:200], revision=place.revision)
    return f"{SCHEME}:{place.repository}@{commit.oid}"
