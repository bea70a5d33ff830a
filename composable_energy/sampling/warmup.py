"""Warm-up: pilot chains tune a sampler for an energy. What they find does not depend on the draws, and is kept for later calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.request import SampleRequest
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.values import Evaluator, Values
from composable_energy.sampling.wrappers import EnergyWrapper, select_rows

__all__ = ["tune_sampler"]

_PILOTS = 64
_MEMORY = "_tuned_for"


def tune_sampler(request: SampleRequest, compiled: Energy) -> Sampler:
    """Returns the requested sampler with all options set, by a run of pilot chains.

    Their noise has a fixed seed. So the options follow from the sampler, the energy and the start points alone: not from the seed of the
    draws, their number, chunks or ranks. The sampler keeps them for each energy, as long as its energies and gradients are the same where
    the pilots started and ended. A tuning that evaluates no energy is not kept, and the sampler of a resumed trace is tuned already.

    Args:
        request: The request.
        compiled: The energy as the sampler gets it, compiled or not.
    """
    sampler, points, init = request.sampler, request.points, request.init
    if type(sampler).tune is Sampler.tune or request.resume is not None:
        return sampler
    noise = Noise(0, range(_PILOTS), kind=request.noise).child("pilot")
    rows = [i % points.n for i in range(_PILOTS)]
    zeros = points.zeros()
    x = sampler.start(zeros.expand(_PILOTS, *zeros.shape).contiguous(), noise.child("start")) if init is None else init[rows]
    memory, evaluator = _memory(sampler), Evaluator(request.energy, sampler, points.n, 1, _PILOTS)
    known = memory.get(request.owner)
    if known is not None and known.kind == request.noise and known.starts_at(x) and evaluator.difference(known.values) is None:
        return known.sampler
    recorded = _RecordedEnergy(compiled, x)
    found = sampler.tune(select_rows(recorded, rows, points.n), x, noise)
    if recorded.last is not None:
        memory[request.owner] = _Tuning(request.noise, evaluator.values([*rows, *rows], torch.cat([x, recorded.last])), found)
    return found


@dataclass(frozen=True)
class _Tuning:
    """The tuned sampler for an energy, with the kind of noise and the energy's values at points of the pilots."""

    kind: Kind
    values: Values
    sampler: Sampler

    def starts_at(self, x: Tensor) -> bool:
        start = self.values.x[:_PILOTS]
        return (start.dtype, start.device, start.shape) == (x.dtype, x.device, x.shape) and torch.equal(start, x)


class _RecordedEnergy(EnergyWrapper):
    """An energy that keeps the points of the pilots where it was evaluated last; None before it is evaluated."""

    def __init__(self, energy: Energy, start: Tensor) -> None:
        super().__init__(energy)
        self.start = start
        self.last: Tensor | None = None

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        self._record(x)
        return self.energy(x, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        self._record(x)
        return self.energy.with_gradient(x, **conditions)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.energy.evidence(x, **conditions)

    def _record(self, x: Tensor) -> None:
        if len(x) == _PILOTS:  # otherwise points of replicas, whose chains are unknown
            self.last = x.detach().clone()
        elif self.last is None:
            self.last = self.start


class _Memory(WeakKeyDictionary[Energy, _Tuning]):
    """The tunings of a sampler for the energies that still exist; a copy of the sampler starts without."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Memory, ()

    def __deepcopy__(self, memo: object) -> _Memory:
        return _Memory()


def _memory(sampler: Sampler) -> _Memory:
    if not hasattr(sampler, "__dict__"):
        return _Memory()
    return vars(sampler).setdefault(_MEMORY, _Memory())  # no field of the dataclass: neither compared, shown nor replaced
