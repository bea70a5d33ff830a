"""Parts put together: components of one energy are evaluated at once, all else by `&`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Noise, twin
from composable_energy_comet.component import ComponentEnergy
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.descent import SPREAD, descended
from composable_energy_comet.quadratic import QuadraticEnergy, lowest
from composable_energy_comet.sampler import InnerDescent

__all__ = ["joined", "pictures_of", "recombined"]

_AT_ONCE = 64


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


def pictures_of(energy: ComponentEnergy, z: Tensor, seed: int = 0) -> Tensor:
    """Returns the pictures of latents, with shape $(B, C, S, S)$: the minimum where it is known, else the end of the descent.

    Args:
        energy: Their energy.
        z: Latents, with shape $(B, K, D)$.
        seed: Of the noise at the start.
    """
    noise, found, energy = Noise(seed, range(len(z))).child("start"), [], twin(energy)
    with torch.no_grad():
        for rows in torch.arange(len(z)).split(_AT_ONCE):
            some = z[rows]
            if isinstance(energy, QuadraticEnergy):
                found.append(energy.minimum(some).clamp(0, 1))
            elif isinstance(energy, ConvEnergy):
                like = some.new_zeros(len(some), *energy.image.shape)
                start = energy.begun(like, noise.for_chains(range(int(rows[0]), int(rows[-1]) + 1)), SPREAD)
                found.append(descended(energy, some, start, energy.iterations))
    return torch.cat(found)


def recombined(parts: Sequence[ce.Energy], seed: int = 0) -> Tensor:
    """Returns pictures of parts, with shape $(B, C, S, S)$, as `pictures_of` where they are of one model.

    The minimum of quadratic energies is known, of several models too. Convolutional energies of several models, and whatever else joins
    them, go down together by `inner-descent`; where quadratic ones are among them, by `descent`, to a minimum.

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
        return pictures_of(models[0], _latents(whole, _pictures(parts)), seed)
    if all(_is_component(part) and isinstance(part.terms[0], QuadraticEnergy) for part in parts):
        return _lowest(parts)
    iterations = [model.iterations for model in models if isinstance(model, ConvEnergy)]
    descent = InnerDescent(max(iterations)) if len(iterations) == len(models) else "descent"
    return whole.sample(_pictures(parts), sampler=descent, seed=seed).clamp(0, 1)


def _lowest(parts: Sequence[ce.Energy]) -> Tensor:
    rows, wanted = _pictures(parts), []
    with torch.no_grad():
        for part in parts:
            model = cast(QuadraticEnergy, part.terms[0])
            wanted.append(twin(model).wanted(_latents(part, rows)))
    return lowest(*(torch.cat(some, 1) for some in zip(*wanted, strict=True))).clamp(0, 1)


def _is_component(part: ce.Energy) -> bool:
    return isinstance(part, ce.Conditioned) and isinstance(part.terms[0], ComponentEnergy) and part.values.keys() == {"z"}


def _latents(part: ce.Energy, rows: int) -> Tensor:
    z: Tensor = vars(part)["values"]["z"]
    z = z if z.ndim == 3 else z[:, None]
    return z.expand(rows, -1, -1)


def _pictures(parts: Sequence[ce.Energy]) -> int:
    """Returns how many pictures parts are of."""
    rows = {len(vars(part)["values"]["z"]) for part in parts if _is_component(part)} - {1}
    if len(rows) > 1:
        raise ShapeError(f"Parts are of {' and '.join(map(str, sorted(rows)))} pictures: put parts together that are of equally many.")
    return rows.pop() if rows else 1
