"""The pilot block: chains of their own that tune a sampler, the same whatever is drawn, and paid for once."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.digests import digest
from composable_energy.sampling.rows import on_rows
from composable_energy.sampling.sampler import Sampler

__all__ = ["tuned"]

_PILOTS = 64
_MEMORY = "_tuned_for"


def tuned(sampler: Sampler, energy: Energy, running: Energy, kind: Kind, like: Tensor, init: Tensor | None, n: int) -> Sampler:
    """Returns a sampler whose open options are settled on pilot chains.

    Their noise has a seed of its own. So the options follow from the sampler, the energy and the points to start at, and from nothing else:
    not from the seed of the draws, their number, chunks or ranks. The sampler remembers them for each energy, until its tensors change.

    Args:
        sampler: A sampler with or without open options.
        energy: The energy, for which the sampler remembers what it found.
        running: The energy as the sampler sees it, compiled or not.
        kind: The kind of noise.
        like: Zeros with the shape of one point.
        init: The points to start at, with shape $(n, *)$; None lets the sampler choose.
        n: How many rows bound conditions have.
    """
    if type(sampler).tune is Sampler.tune:
        return sampler
    noise = Noise(0, range(_PILOTS), kind=kind).child("pilot")
    rows = [i % n for i in range(_PILOTS)]
    x = sampler.start(like.expand(_PILOTS, *like.shape).contiguous(), noise.child("start")) if init is None else init[rows]
    memory, key = _memory(sampler), digest(energy, x)
    if memory.get(energy, ("",))[0] != key:
        memory[energy] = key, sampler.tune(on_rows(running, rows, n), x, noise)
    return memory[energy][1]


class _Memory(WeakKeyDictionary[Energy, Any]):
    """What was found for each energy that is still there; a copy of the sampler starts without."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Memory, ()

    def __deepcopy__(self, memo: object) -> _Memory:
        return _Memory()


def _memory(sampler: Sampler) -> WeakKeyDictionary[Energy, Any]:
    if not hasattr(sampler, "__dict__"):
        return _Memory()
    return vars(sampler).setdefault(_MEMORY, _Memory())  # a frozen dataclass: neither compared, shown nor replaced
