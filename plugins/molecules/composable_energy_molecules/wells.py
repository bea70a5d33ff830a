r"""The numbers of the generated rotamer statistics: wells of each angle, and how they depend on the backbone and the neighbours.

They resemble a backbone-dependent rotamer library in kind, and are **not measured**: three staggered wells for a bond between tetrahedral
atoms, broad or symmetric wells for planar groups, few pairs of opposite gauche wells, two usual rotamers of leucine.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy_molecules.residues import ANGLES, RESIDUES, index_of

Well = tuple[float, float, float]
"""Centre and width in degrees, and the log weight."""

_FIRST: tuple[Well, ...] = ((63, 9, -0.7), (-177, 9, 0.1), (-65, 9, 0.5))
_BETA: tuple[Well, ...] = ((63, 9, -0.6), (175, 8, 1.1), (-60, 9, -0.2))
_HYDROXYL: tuple[Well, ...] = ((64, 11, 0.5), (178, 12, -0.3), (-65, 11, 0.2))
_CARBON: tuple[Well, ...] = ((66, 11, -0.6), (178, 11, 0.5), (-66, 11, -0.4))
_RING: tuple[Well, ...] = ((88, 13, 0.0),)
_AMIDE: tuple[Well, ...] = ((-25, 17, 0.4), (25, 17, 0.0), (150, 22, -1.2))
_ACID: tuple[Well, ...] = ((-8, 22, 0.0),)
_THIOETHER: tuple[Well, ...] = ((72, 15, 0.2), (180, 18, 0.0), (-72, 15, 0.3))
_GUANIDINE: tuple[Well, ...] = ((87, 15, 0.1), (176, 14, 0.6), (-87, 15, 0.0))

GENERATED: dict[str, tuple[tuple[Well, ...], ...]] = {
    "SER": (_HYDROXYL,),
    "VAL": (_BETA,),
    "LEU": (_FIRST, _CARBON),
    "PHE": (_FIRST, _RING),
    "ASN": (_FIRST, _AMIDE),
    "MET": (_FIRST, _CARBON, _THIOETHER),
    "GLU": (_FIRST, _CARBON, _ACID),
    "LYS": (_FIRST, _CARBON, _CARBON, _CARBON),
    "ARG": (_FIRST, _CARBON, _CARBON, _GUANIDINE),
}
"""The amino acids that can be generated, with the wells of each angle."""

BACKBONES = torch.tensor([[-63, -43, 10, 0.40], [-120, 135, 18, 0.32], [-70, 145, 14, 0.22], [57, 42, 12, 0.06]])
r"""Regions of the backbone: $\phi$, $\psi$ and their width in degrees, and the weight."""

_OPPOSITE = -2.0
"""The log weight of neighbouring angles in opposite gauche wells."""
_LEUCINE = {(-65, 178): 2.0, (-177, 66): 2.6}


@dataclass(frozen=True)
class Rotamers:
    r"""All combinations of wells of one amino acid, $R$ of them.

    Args:
        centres: In radians, with shape $(R, 4)$; 0 beyond its angles.
        widths: In radians, with shape $(R, 4)$; 1 beyond its angles.
        weights: Log weights, with shape $(R,)$.
        wells: The index of each well, with shape $(R, 4)$; 0 beyond its angles.
    """

    centres: Tensor
    widths: Tensor
    weights: Tensor
    wells: Tensor


def rotamers(name: str) -> Rotamers:
    """Returns the rotamers of an amino acid of `GENERATED`."""
    angles = GENERATED[name]
    rows = list(itertools.product(*(range(len(wells)) for wells in angles)))
    chosen = [[angles[i][well] for i, well in enumerate(row)] for row in rows]
    weights = [sum(well[2] for well in row) + _coupling(name, [well[0] for well in row]) for row in chosen]
    pad = ANGLES - RESIDUES[index_of(name)].angles
    return Rotamers(
        torch.tensor([[math.radians(well[0]) for well in row] + [0.0] * pad for row in chosen]),
        torch.tensor([[math.radians(well[1]) for well in row] + [1.0] * pad for row in chosen]),
        torch.tensor(weights),
        torch.tensor([list(row) + [0] * pad for row in rows]),
    )


def _coupling(name: str, centres: list[float]) -> float:
    """Returns the log weight of a combination of wells beyond those of the wells."""
    if name == "LEU":
        return _LEUCINE.get((int(centres[0]), int(centres[1])), -1.0)
    gauche = [math.copysign(1, centre) if 40 < abs(centre) < 100 else 0.0 for centre in centres]
    planar = 1 if name in ("PHE", "ASN", "GLU") else 0
    pairs = itertools.pairwise(gauche[: len(gauche) - planar])
    return _OPPOSITE * sum(one * other < 0 for one, other in pairs)
