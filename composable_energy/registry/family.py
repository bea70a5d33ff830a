"""Families: many energies behind one entry point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["EnergyFamily"]


class EnergyFamily(ABC):
    """Abstract family of energies that belong together, such as the attributes of one kind of picture.

    An entry point of the group `composable_energy.energies` may be a subclass. The registry makes one instance for each set of options
    and keeps it. Members that have their base, decoder and heads in common keep them in the instance. Each caller of `get_energy` gets
    copies of its own. Copies of one base are the same energy as long as their numbers are equal, so that an expression over them counts
    it once. Making an instance and listing members is cheap: weights are read by `load`.

    Example:
        >>> import composable_energy as ce
        >>> class Bowls(ce.EnergyFamily):
        ...     def members(self):
        ...         return ("narrow", "wide")
        ...
        ...     def load(self, member):
        ...         width = {None: 1.0, "narrow": 0.5, "wide": 2.0}[member]
        ...         return ce.as_energy(lambda x: (x / width).square().sum(1) / 2, name=member or "bowl")
        >>> with ce.register("energy", "bowls", Bowls):
        ...     print(ce.get_energy("bowls/wide"))
        wide
    """

    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """Returns the names of the members, without reading weights."""

    @abstractmethod
    def load(self, member: str | None) -> Energy:
        """Returns a member's energy, or the family's own (its base) for None.

        Args:
            member: One of `members()`, or None. A family without an energy of its own raises `PluginNotFound` for None.
        """
