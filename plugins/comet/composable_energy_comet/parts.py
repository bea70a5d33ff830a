"""Parts put together: components of one energy are evaluated at once, all else by `&`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Noise, frozen

from .component import ComponentEnergy
from .descent import SPREAD, descended
from .sampler import InnerDescent

__all__ = ["joined", "recombined"]


def joined(parts: Sequence[ce.Energy]) -> ce.Energy:
    """Returns the conjunction of parts, in which those of one model are one term, evaluated together; its value is the same.

    Args:
        parts: Energies; those of a component energy, with `z` bound, are joined.

    Raises:
        OptionError: There are none.
        ShapeError: They are of several numbers of pictures.
    """
    if not parts:
        raise OptionError("There are no parts to put together.")
    rows = _pictures(parts)
    by_energy: dict[int, list[ce.Energy]] = {}
    others = []
    for part in parts:
        (by_energy.setdefault(id(part.terms[0]), []) if _is_component(part) else others).append(part)
    terms = [some[0].terms[0].given(z=torch.cat([_latents(part, rows) for part in some], 1)) for some in by_energy.values()]
    return ce.all_of(*terms, *others)


def recombined(parts: Sequence[ce.Energy], seed: int = 0) -> Tensor:
    """Returns pictures of parts, with shape $(B, C, S, S)$: their minimum where it is known, else the end of the descent.

    Args:
        parts: Energies of pictures, at least one of them a component of a model.
        seed: Of the noise at the start.

    Raises:
        OptionError: There are none, or none of a model.
        ShapeError: They are of several sizes, or of several numbers of pictures.
    """
    whole = joined(parts)
    models = [part for part in whole.modules() if isinstance(part, ComponentEnergy)]
    if not models:
        raise OptionError("None of the parts is a component of a model: sample their conjunction, `ce.all_of(*parts).sample(...)`.")
    if _is_component(whole):
        return _of_one_model(models[0], _latents(whole, _pictures(parts)), seed)
    return whole.sample(_pictures(parts), sampler=InnerDescent(max(model.iterations for model in models)), seed=seed)


def _of_one_model(energy: ComponentEnergy, z: Tensor, seed: int) -> Tensor:
    with torch.no_grad(), frozen(energy):
        found = energy.minimum(z)
        if found is None:
            like = z.new_zeros(len(z), *energy.image.shape)
            found = descended(energy, z, energy.begun(like, Noise(seed, range(len(z))).child("start"), SPREAD), energy.iterations)
        return found.clamp(0, 1)


def _is_component(part: ce.Energy) -> bool:
    return isinstance(part, ce.Conditioned) and isinstance(part.terms[0], ComponentEnergy) and part.values.keys() == {"z"}


def _latents(part: ce.Energy, rows: int) -> Tensor:
    z = part.values["z"]  # pyright: ignore[reportAttributeAccessIssue]
    z = z if z.ndim == 3 else z[:, None]
    return z.expand(rows, -1, -1)


def _pictures(parts: Sequence[ce.Energy]) -> int:
    """Returns how many pictures parts are of."""
    rows = {len(part.values["z"]) for part in parts if _is_component(part)} - {1}  # pyright: ignore[reportAttributeAccessIssue]
    if len(rows) > 1:
        raise ShapeError(f"Parts are of {' and '.join(map(str, sorted(rows)))} pictures: put parts together that are of equally many.")
    return rows.pop() if rows else 1
