"""Warm-up: pilot chains tune a sampler for an energy. What they find does not depend on the draws, and is kept for later calls."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.request import SampleRequest
from composable_energy.sampling.sampler import Sampler, start_points
from composable_energy.sampling.starts import BranchDraws, PilotResult
from composable_energy.sampling.values import Evaluator, Values
from composable_energy.sampling.wrappers import has_rows, select_rows

_PILOTS = 64
_NEARLY_ALL = 0.97
_MEMORY = "_tuned_for"


def tune_sampler(request: SampleRequest, compiled: Energy, branches: BranchDraws | None = None) -> tuple[Sampler, PilotResult | None]:
    """Returns the requested sampler with all options set, and where the pilot chains arrived; None if nothing was tuned.

    The noise of the pilots has a fixed seed. So the options follow from the sampler, the energy and the start points alone: not from the
    seed of the draws, their number or chunks. The sampler keeps them for each energy, as long as its energies and gradients are the
    same where the pilots started and arrived. A tuning that does not move the pilots is not kept, and the sampler of a resumed trace is
    tuned already.

    Args:
        request: The request.
        compiled: The energy as the sampler gets it, compiled or not.
        branches: Draws of the branches of a mixture, where pilots start; None for another energy.
    """
    sampler, points, init = request.sampler, request.points, request.init
    if type(sampler).tune is Sampler.tune or request.resume is not None:
        return sampler, None
    noise = Noise(0, range(_PILOTS), kind=request.noise).child("pilot")
    rows = torch.arange(_PILOTS) % points.n
    zeros = points.zeros()
    if branches is not None:
        x = branches.pilots(_PILOTS)
    else:
        x = start_points(sampler, zeros.expand(_PILOTS, *zeros.shape).contiguous(), noise.child("start")) if init is None else init[rows]
    memory, evaluator = _memory(sampler), Evaluator(request.energy, sampler, points.n, _PILOTS)
    known = memory.get(request.owner)
    if known is not None and known.fits(sampler, request.noise, x) and evaluator.difference(known.values) is None:
        return known.sampler, known.pilots
    energy = select_rows(compiled, rows, points.n)
    found, arrived = sampler.tune(energy, x, noise)
    if arrived is x:
        return found, None
    values = evaluator.values(rows.repeat(2), torch.cat([x, arrived.to(x.dtype)]))
    approaches = type(found).approach is not Sampler.approach
    tuning = memory[request.owner] = _Tuning(request.noise, values, found, _pilot_result(values, has_rows(energy)) if approaches else None)
    if approaches:  # a later call with the tuned sampler starts its chains in the same way
        _memory(found)[request.owner] = tuning
    return found, tuning.pilots


def _pilot_result(values: Values, has_rows: bool) -> PilotResult | None:
    """Returns where the pilots of finite energy arrived; None if there are none.

    Draws of the density should not count as starts in a tail, nor should few pilots that are still in a tail raise the level. So it is
    above the energies of nearly all pilots, by their distance from the median.
    """
    points, energies = values.x[_PILOTS:], values.energies[_PILOTS:, 0]
    finite = energies.isfinite() & points.flatten(1).isfinite().all(1) if points.ndim > 1 else energies.isfinite() & points.isfinite()
    if not finite.any():
        return None
    energies = energies[finite].double()
    level = 2 * energies.quantile(_NEARLY_ALL) - energies.median()
    return PilotResult(points[finite], None if has_rows else level.item())


@dataclass(frozen=True)
class _Tuning:
    """The tuned sampler for an energy, with the kind of noise, the energy's values at points of the pilots, and where these arrived."""

    kind: Kind
    values: Values
    sampler: Sampler
    pilots: PilotResult | None

    def fits(self, sampler: Sampler, kind: Kind, x: Tensor) -> bool:
        """Returns whether this is the tuning of a sampler from the start points; where nothing is left to tune, from any start points."""
        start = self.values.x[:_PILOTS]
        if (self.kind, start.dtype, start.device, start.shape) != (kind, x.dtype, x.device, x.shape):
            return False
        return sampler is self.sampler or torch.equal(start, x)


class _Memory(WeakKeyDictionary[Energy, _Tuning]):
    """The tunings of a sampler for the energies that still exist; a copy of the sampler starts without."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Memory, ()

    def __deepcopy__(self, memo: object) -> _Memory:
        return _Memory()


def _memory(sampler: Sampler) -> _Memory:
    if not hasattr(sampler, "__dict__"):
        return _Memory()
    if _MEMORY not in vars(sampler):
        vars(sampler)[_MEMORY] = _Memory()  # no field of the dataclass: neither compared, shown nor replaced
    return vars(sampler)[_MEMORY]
