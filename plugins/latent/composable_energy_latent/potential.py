"""The potential of an edit, down which latent points flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.conditions import CHAINS
from composable_energy.coordinates import coordinates_of
from composable_energy.memo import memo_scope
from composable_energy.options import check_number
from composable_energy.sampling import twin
from composable_energy_latent.errors import EditError
from composable_energy_latent.flow import integrate
from composable_energy_latent.kept import Kept

__all__ = ["EditWeights", "Potential", "follow"]

_SPAN = 5.0  # the time of the paper's process


@dataclass(frozen=True)
class EditWeights:
    r"""The weights of an edit.

    Args:
        asked: The weight of the evidence of the expression.
        kept: The weight of the evidence of what is kept.
        logits: The weight of $(f(z) - f(z_0))^2$ for the log odds or values $f$ of what is kept.
        distance: The weight of $\lVert z - z_0 \rVert^2 + \lVert m(z) - m(z_0) \rVert^2$.

    Raises:
        OptionError: A weight is negative.
    """

    asked: float = 1.0
    kept: float = 1.0
    logits: float = 0.01
    distance: float = 0.04

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value, least=0)


class Potential:
    """The potential of an edit; it evaluates twins, so that the modules of the caller do not change.

    Args:
        expression: What is asked.
        kept: What is kept.
        base: The prior.
        start: The latent points before the edit, with shape $(B, *)$.
        weights: The weights.
    """

    def __init__(self, expression: Energy, kept: Mapping[str, Kept], base: Energy, start: Tensor, weights: EditWeights) -> None:
        parts = [one for part in kept.values() for one in (part.energy, part.opposite) if one is not None]
        copies: Iterator[Any] = iter(twin(nn.ModuleList([expression, base, *parts])))  # together, so that they share the generator
        self.expression, own = next(copies), next(copies)
        self.kept = {name: Kept(next(copies), None if part.opposite is None else next(copies)) for name, part in kept.items()}
        self.base: Any = own
        self.map = getattr(self.base.decoder, "map", None)
        self.start, self.weights = start, weights
        with torch.no_grad():
            self.mapped = start if self.map is None else self.map(start)
            self.outputs = {name: part.output(start) for name, part in self.kept.items()}
            self.labels = {name: part.labels(start) for name, part in self.kept.items()}

    def __call__(self, z: Tensor, rows: Tensor) -> Tensor:
        """Returns the potential, with shape $(b,)$, of points with shape $(b, *)$ that belong to some rows of the start."""
        weights = self.weights
        with memo_scope():
            total = weights.asked * self.expression.evidence(z, **self._chains(rows))
            total = total + weights.distance * (z - self.start[rows]).flatten(1).square().sum(1)
            moved = z if self.map is None else self.map(z)
            if moved is not z:
                total = total + weights.distance * (moved - self.mapped[rows]).flatten(1).square().sum(1)
            for name, part in self.kept.items():
                total = total + weights.logits * (part.output(z) - self.outputs[name][rows]).square()
                total = total + weights.kept * part.evidence(z, self.labels[name][rows])
        return total

    def velocity(self, z: Tensor, rows: Tensor) -> Tensor:
        """Returns minus the gradient.

        Raises:
            EditError: There is none.
        """
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            return -torch.autograd.grad(self(point, rows).sum(), point)[0]

    @torch.no_grad()
    def reached(self, z: Tensor) -> Tensor:
        """Returns the probability of the expression, with shape $(B,)$; NaN for one that is no event."""
        if self.expression.formula is None:
            return z.new_full((len(z),), torch.nan)
        return (-self.expression.evidence(z, **self._chains(torch.arange(len(z), device=z.device)))).exp()

    @torch.no_grad()
    def stayed(self, z: Tensor) -> dict[str, float]:
        """Returns how far each kept attribute stayed."""
        return {name: part.stayed(self.labels[name], z) for name, part in self.kept.items()}

    def _chains(self, rows: Tensor) -> dict[str, Tensor]:
        return {CHAINS: rows} if CHAINS in self.expression.conditions else {}


def follow(potential: Potential, tolerance: float) -> tuple[Tensor, Tensor]:
    """Returns where the points flow, in the unconstrained coordinates of the prior, and the evaluations of each.

    Raises:
        EditError: A point became infinite or NaN.
    """
    start, base = potential.start, potential.base
    coordinates = coordinates_of(base.support, start.shape[1:], start.dtype, start.device)
    if coordinates is None:
        end, evaluations = integrate(potential.velocity, start, _SPAN, tolerance=tolerance)
    else:

        def velocity(u: Tensor, rows: Tensor) -> Tensor:
            with torch.enable_grad():
                point = u.detach().requires_grad_()
                x = coordinates.points(point)[0]
                return torch.autograd.grad(x, point, potential.velocity(x.detach(), rows))[0]

        u, evaluations = integrate(velocity, coordinates.inverse(start), _SPAN, tolerance=tolerance)
        end = coordinates.points(u)[0].detach()
    broken = int((~end.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise EditError(f"{broken} of {len(end)} edits went to latent points that are not finite: lower the weight `asked`.")
    return end, evaluations
