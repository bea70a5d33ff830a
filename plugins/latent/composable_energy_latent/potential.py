"""The potential of an edit, down which latent points flow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy import Energy, SamplingWarning
from composable_energy.options import check_number
from composable_energy.sampling import twin
from composable_energy_latent.errors import EditError
from composable_energy_latent.fit import draw_latents
from composable_energy_latent.flow import descend
from composable_energy_latent.kept import Kept, held_labels

_MOVES = 8
_DRAWS, _WIDTH = 256, 0.2  # draws of the prior for the spread of a value, and the share of it that is its width
_ROUNDS = 1000  # tried steps of a point


@dataclass(frozen=True)
class EditWeights:
    r"""The weights of an edit.

    Args:
        asked: The weight of the evidence of the expression.
        kept: The weight of the evidence of what is kept; for a value $v$ of spread $s$ it is $(v(z) - v(z_0))^2 / 2 (.2 s)^2$.
        logits: The weight of $(f(z) - f(z_0))^2$ for the log odds $f$ of the events that are kept.
        distance: The weight of $\lVert z - z_0 \rVert^2 + \lVert m(z) - m(z_0) \rVert^2$.
        margin: Evidence is averaged over eight moves of $z$ with this standard deviation, in that of the prior. Without it edits stop
            where the heads have just become certain, and they may be wrong there.

    Raises:
        OptionError: A weight is negative.
    """

    asked: float = 3.0
    kept: float = 1.0
    logits: float = 0.01
    distance: float = 0.04
    margin: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_number(name, value, least=0)


class Potential(Energy):
    """The potential of an edit; it evaluates twins, so that the modules of the caller do not change."""

    def __init__(self, expression: Energy, kept: Mapping[str, Kept], base: Energy, start: Tensor, weights: EditWeights) -> None:
        super().__init__()
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
            self.labels = held_labels(self.kept, start)
            self.noise = self._noise(start)
            values = [name for name, part in self.kept.items() if part.opposite is None]
            drawn = draw_latents(own, _DRAWS, 0) if values else start
            self.widths = {name: _WIDTH * self.kept[name].output(drawn).std().clamp(min=1e-6) for name in values}

    def forward(self, z: Tensor, *, rows: Tensor) -> Tensor:
        """Returns the potential, with shape $(b,)$, of points with shape $(b, *)$ that belong to some rows of the start."""
        weights = self.weights
        near = (z.unsqueeze(1) + self.noise).flatten(0, 1)  # what is asked and kept holds nearby, too
        count = self.noise.shape[1]
        every = rows.repeat_interleave(count)
        total = weights.asked * self.expression.evidence(near, **self._chains(every)).view(-1, count).mean(1)
        total = total + weights.distance * (z - self.start[rows]).flatten(1).square().sum(1)
        moved = z if self.map is None else self.map(z)
        if moved is not z:
            total = total + weights.distance * (moved - self.mapped[rows]).flatten(1).square().sum(1)
        for name, part in self.kept.items():
            away = part.output(z) - self.outputs[name][rows]
            if part.opposite is None:  # in units of a share of the spread: the widths of heads may be so small that the flow is stiff
                total = total + weights.kept * (away / self.widths[name]).square() / 2
            else:
                total = total + weights.logits * away.square()
                total = total + weights.kept * part.evidence(near, self.labels[name][every]).view(-1, count).mean(1)
        return total

    def _noise(self, start: Tensor) -> Tensor:
        """Returns the moves of points, the same for all, with shape $(1, K, *)$."""
        if not self.weights.margin:
            return start.new_zeros(1, 1, *start.shape[1:])
        scale = self.weights.margin * draw_latents(self.base, _DRAWS, 0).std().to(start)
        half = torch.randn(_MOVES // 2, *start.shape[1:], generator=torch.Generator().manual_seed(0)).to(start)
        return scale * torch.cat([half, -half]).unsqueeze(0)

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
        return {"chains": rows} if "chains" in self.expression.conditions else {}


def follow(potential: Potential, tolerance: float) -> tuple[Tensor, Tensor]:
    """Returns where the points flow, in the unconstrained coordinates of the prior, and the evaluations of each."""
    end, evaluations, arrived = descend(
        lambda z, rows: potential(z, rows=rows), potential.base.support, potential.start, tolerance=tolerance, rounds=_ROUNDS
    )
    broken = int((~end.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise EditError(f"{broken} of {len(end)} edits went to latent points that are not finite: lower the weight `asked`.")
    if not arrived.all():
        seen = f"{int((~arrived).sum())} of {len(end)} edits were stopped after {_ROUNDS} tried steps, before the end of their way."
        advice = "Narrow values make it stiff: ask for wider ones, keep less, or raise `tolerance`. See `reached` and `kept`."
        warnings.warn(SamplingWarning("edit", seen, advice), stacklevel=3)
    return end, evaluations
