"""Side chains as data: angles, their context, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy_molecules.residues import ANGLES, CONTEXT, RESIDUES, angle_mask


@dataclass(frozen=True)
class SideChains:
    r"""The side chains of $N$ residues.

    Args:
        chi: Angles in radians, with shape $(N, 4)$; NaN where atoms are missing, 0 beyond the angles of the amino acid.
        context: Contexts, with shape $(N, 5)$; see `context_of`.
        places: Where each residue is, such as `A/LEU 12`; empty for generated residues.

    Raises:
        ShapeError: The shapes do not fit.
    """

    chi: Tensor
    context: Tensor
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = len(self.chi)
        if self.chi.shape != (rows, ANGLES) or self.context.shape != (rows, CONTEXT) or len(self.places) not in (0, rows):
            raise ShapeError(
                f"Side chains need angles of shape (N, {ANGLES}), contexts of (N, {CONTEXT}) and N places or none, got "
                f"{tuple(self.chi.shape)}, {tuple(self.context.shape)} and {len(self.places)}."
            )

    def __len__(self) -> int:
        return len(self.chi)

    def __getitem__(self, rows: slice | Tensor) -> SideChains:
        """Returns some rows: a slice, indices or truth values."""
        index = torch.arange(len(self), device=self.chi.device)[rows]
        return SideChains(self.chi[index], self.context[index], tuple(self.places[i] for i in index.tolist()) if self.places else ())

    @property
    def mask(self) -> Tensor:
        """Which angles the amino acids have, with shape (N, 4)."""
        return angle_mask(self.context)

    @property
    def names(self) -> list[str]:
        """The amino acids."""
        return [RESIDUES[index].name for index in self.context[:, 2].long().tolist()]

    def complete(self) -> SideChains:
        """Returns the residues that have angles, all of them known, as training needs them.

        Raises:
            OptionError: There are none.
        """
        keep = self.mask.any(1) & self.chi.isfinite().all(1)
        if not bool(keep.any()):
            raise OptionError(f"None of {len(self)} residues has a complete side chain with angles.")
        return self[keep]
