"""Selection of the draws for diagnostics: steps and chains of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from composable_energy.errors import OptionError

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace


@dataclass(frozen=True)
class Draws:
    """The draws of a trace for diagnostics, from the $c$ chains that never diverged.

    Args:
        steps: The $d$ steps, counted from 1.
        chains: The ids of the chains, with shape $(c,)$.
        energies: The energies, with shape $(d, c)$, in float64.
        points: The points, with shape $(d, c, *)$; None if none were kept.
        acceptance: The mean acceptance of each chain from the first draw on, with shape $(c,)$; None for a sampler that never rejects.
        mean_acceptance: The mean of all these acceptances that the sampler tunes for, `Traits.mean_acceptance`; None as above.
        description: The steps in words.
    """

    steps: Sequence[int]
    chains: Tensor
    energies: Tensor
    points: Tensor | None
    acceptance: Tensor | None
    mean_acceptance: float | None
    description: str


def select_draws(trace: Trace, burn_in: int | None) -> Draws:
    """Returns the points that were kept; else the steps after the burn-in, or without burn-in the later half of the steps.

    A sampler with a fixed schedule has draws at its last step only.

    Args:
        trace: The trace.
        burn_in: The number of steps to leave out, from the start of the chains; None for that of the trace.

    Raises:
        OptionError: The burn-in leaves no draws.
    """
    before = trace.steps - len(trace.energies)  # steps of earlier calls
    steps: Sequence[int]
    recorded = range(before + 1, trace.steps + 1)
    if not trace.sampler.stationary:
        steps, description = recorded[-1:], "the last step; earlier ones are no draws"
        points = trace.points[-1:] if trace.points is not None and trace.point_steps[-1:] == list(steps) else None
    elif trace.points is not None:
        rows = [row for row, step in enumerate(trace.point_steps) if step > (burn_in or 0)]
        steps = [trace.point_steps[row] for row in rows]
        description = "the points that were kept"
        points = trace.points[rows] if len(rows) < len(trace.points) else trace.points
    else:
        first = max(before, (trace.burn_in or before + len(recorded) // 2) if burn_in is None else burn_in)
        steps, points = recorded[first - before :], None
        description = "the later half of the steps" if burn_in is None and not trace.burn_in else f"the steps after {first}"
    if burn_in is not None and not len(steps):
        last = trace.point_steps[-1] if trace.point_steps else trace.steps
        raise OptionError(f"burn_in={burn_in} leaves nothing: the trace ends at step {last}.")
    chains = (trace.diverged_at < 0).nonzero().squeeze(1)
    energies = trace.energies[[step - before - 1 for step in steps]].cpu()[:, chains].double()
    rates, mean = trace.acceptance, None
    if rates is not None:
        late = trace.steps - steps[0] + 1 if len(steps) else 0
        rates = rates[max(0, len(rates) - late) :].cpu()[:, chains].double() if late and len(rates) and len(chains) else None
        if rates is not None:
            means = trace.sampler.traits.mean_acceptance
            mean, rates = (rates if means is None else means(rates)).nanmean().item(), rates.nanmean(0)
    if points is not None and len(chains) < points.shape[1]:
        points = points[:, chains.to(points.device)]
    return Draws(steps, chains + trace.chains.start, energies, points, rates, mean, description)
