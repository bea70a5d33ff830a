r"""An energy with a support in unconstrained coordinates, $E(T(u)) - \log \lvert \det dT/du \rvert$, as chains see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.energy import Energy
from composable_energy.errors import OptionError, SupportWarning, warn_caller
from composable_energy.sampling.sampler import State
from composable_energy.sampling.wrappers import EnergyWrapper
from composable_energy.supports import Coordinates, contains, format_support

_FAR = 0.5  # in coordinates: a density there is off by a factor of about e^.5
_SHARE = 2e-3  # of the points that may be so far off
_BEYOND = 1.1  # times as far: in a power-law tail, as much mass is cut off beyond the rounding as lies between


class UnconstrainedEnergy(EnergyWrapper):
    r"""The energy $E(T(u)) - v(u)$ of coordinates $u$; see `composable_energy.supports`.

    Where $T(u)$ overflows, the energy is infinite. The evidence is that of $E$, without $v$.

    Args:
        energy: The energy $E$.
        coordinates: The coordinates of its support.
        volume: Whether to subtract $v$; without it the minima are those of $E$.
    """

    def __init__(self, energy: Energy, coordinates: Coordinates, *, volume: bool = True) -> None:
        super().__init__(energy)
        self.coordinates = coordinates
        self.volume = volume
        self.event_shape = coordinates.shape

    def forward(self, u: Tensor, **conditions: Any) -> Tensor:
        good, x, volume = self._points(u)
        energies = self.energy(x, **conditions)
        energies = torch.where(good, energies - volume if self.volume else energies, torch.inf)
        return energies.masked_fill(u.isnan().flatten(1).any(1), torch.nan) if u.ndim > 1 else energies

    def evidence(self, u: Tensor, **conditions: Any) -> Tensor:
        good, x, _ = self._points(u)
        return torch.where(good, self.energy.evidence(x, **conditions), torch.inf)

    def _points(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where points and volumes are finite, and points and volumes that are finite everywhere, with finite gradients."""
        with torch.no_grad():
            x, volume = self.coordinates.points(u)
            good = volume.isfinite() & (x.isfinite().flatten(1).all(1) if x.ndim > 1 else x.isfinite())
        return good, *self.coordinates.points(torch.where(unsqueeze_to(good, u), u, 0.1))


def visible_energy(energy: Energy, x: Tensor) -> tuple[Energy, Tensor]:
    """Returns an energy and points without the coordinates that chains use."""
    if isinstance(energy, UnconstrainedEnergy):
        return energy.energy, energy.coordinates.points(x)[0]
    return energy, x


def plain_energy(energy: Energy) -> Energy | None:
    """Returns the expression inside of an energy that a sampler gets; None if chains move in other coordinates.

    Compiled energies and guards against exceptions are left out.
    """
    inside = _unwrapped(energy)
    return None if isinstance(inside, UnconstrainedEnergy) else inside


def visible_state(energy: Energy, state: State) -> State:
    """Returns a state with the points of the support and their energies; the gradient stays that of the chains' coordinates.

    Args:
        energy: The energy that the chains see, which may be compiled.
        state: Their state.
    """
    inside = _unwrapped(energy)
    if not isinstance(inside, UnconstrainedEnergy):
        return state
    x, volume = inside.coordinates.points(state.x)
    return replace(state, x=x, energy=state.energy + volume if inside.volume else state.energy)


def _unwrapped(energy: Energy) -> Energy:
    """Returns an energy without its wrappers, up to that in unconstrained coordinates."""
    while isinstance(energy, EnergyWrapper) and not isinstance(energy, UnconstrainedEnergy):
        energy = energy.energy
    return energy


def coordinates_of_start(energy: Energy, coordinates: Coordinates | None, init: Tensor) -> Tensor:
    """Returns the coordinates of start points, or other given points.

    Raises:
        OptionError: A point is not inside the support.
    """
    if coordinates is None:
        return init
    inside = contains(energy.support, init)
    middle = coordinates.points(init.new_full((1, *coordinates.shape), 0.1))[0]
    u = coordinates.inverse(torch.where(unsqueeze_to(inside, init), init, middle))
    outside = ~(inside & u.isfinite().reshape(len(u), -1).all(1))
    if outside.any():
        raise OptionError(
            f"{int(outside.sum())} of {len(init)} given points are not inside the support of {energy}, {format_support(energy.support)}; "
            f"the first is number {int(outside.nonzero()[0])}. Move them inside, also from its boundary, or leave them out."
        )
    return u


def near_border(energy: Energy, u: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns which points are as close to the border of a support as numbers can be, of a dtype or of that of the points; shape $(B,)$."""
    if not isinstance(energy, UnconstrainedEnergy):
        return torch.zeros(len(u), dtype=torch.bool, device=u.device)
    return energy.coordinates.rounding(_BEYOND * u, dtype or u.dtype) > _FAR


def warn_of_rounding(energy: Energy, u: Tensor) -> None:
    """Warns if points lie where numbers of their dtype are too far apart for the density, such as close to 1 in float32."""
    if not isinstance(energy, UnconstrainedEnergy) or not len(u):
        return
    share = near_border(energy, u).double().mean().item()
    if share > _SHARE:
        warn_caller(
            f"{share:.2%} of the points of {energy} are so close to the boundary of its support, {format_support(energy.energy.support)}, "
            f"that {u.dtype} cannot tell them from it, and their share is too small: sample in dtype=torch.float64, with parameters in it.",
            SupportWarning,
        )
