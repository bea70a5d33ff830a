"""The compiled form of an energy, kept from one call of `sample` to the next."""

from __future__ import annotations

from composable_energy.energy import Energy
from composable_energy.sampling.compiling import CompiledEnergy

__all__ = ["kept"]

_NOTE = "_kept_compiled"


class _Keeper:
    """Holds a compiled energy out of sight of what looks through an energy for its tensors; a copy starts without."""

    __slots__ = ("compiled",)

    def __init__(self, compiled: CompiledEnergy | None = None) -> None:
        self.compiled = compiled

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Keeper, ()


def kept(energy: Energy) -> CompiledEnergy:
    """Returns the compiled energy that an energy keeps.

    Each graph is compared with the energy again at its first use, so that a number that was changed meanwhile is not missed.

    Args:
        energy: The energy.
    """
    if isinstance(energy, CompiledEnergy):
        return energy
    keeper = vars(energy).get(_NOTE, _Keeper())
    known = keeper.compiled
    if known is None or known.energy is not energy:  # a shallow copy has that of another
        known = CompiledEnergy(energy)
        vars(energy)[_NOTE] = _Keeper(known)
    known.doubt()
    return known
