r"""Amino acids: their side-chain dihedrals, the context of a residue as numbers, side chains as data, and angles on the circle.

The *context* of a residue is a row of five numbers: the backbone angles $\phi$ and $\psi$ in radians (NaN at the end of a chain), the
index of the amino acid in `RESIDUES`, and the groups of the residues before and after it, indices in `GROUPS`. The *angles* of a residue
are four numbers $\chi_1 \dots \chi_4$; an amino acid with fewer ignores the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError


def wrap(angles: Tensor, period: Tensor | float = 2 * math.pi) -> Tensor:
    r"""Returns angles in $[-P / 2, P / 2)$ that are equal modulo the period $P$, a number or a tensor that broadcasts.

    Example:
        >>> wrap(torch.tensor([0.0, 4.0]))
        tensor([ 0.0000, -2.2832])
    """
    return torch.remainder(angles + period / 2, period) - period / 2


def recovered(predicted: Tensor, truth: Tensor, periods: Tensor) -> Tensor:
    r"""Returns which predicted angles, with shape $(N, 4)$, are within 20 degrees of the truth, up to a period.

    Args:
        periods: The period of each angle, with shape $(N, 4)$: $\pi$ where a half turn changes only the names of atoms.
    """
    if not predicted.shape == truth.shape == periods.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (predicted, truth, periods))
        raise ShapeError(f"Predicted and true angles and their periods need one shape, got {shapes}.")
    return wrap(predicted - truth, periods).abs() <= math.radians(20)


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    r"""Returns the angle between the planes $abc$ and $bcd$ of points with shape $(*, 3)$, with shape $(*)$, in $[-\pi, \pi]$.

    It is positive where the turn is clockwise seen along $b \to c$, as IUPAC has it.
    """
    axis = c - b
    before, after = torch.linalg.cross(b - a, axis), torch.linalg.cross(axis, d - c)
    return torch.atan2(axis.norm(dim=-1) * ((b - a) * after).sum(-1), (before * after).sum(-1))


def place_atom(a: Tensor, b: Tensor, c: Tensor, length: Any, angle: Any, turn: Tensor) -> Tensor:
    r"""Returns the point $d$ at a distance from $c$, with shape $(*, 3)$, with an angle $bcd$ and a dihedral $abcd$ (Parsons et al., 2005).

    References:
        Practical conversion from torsion space to Cartesian space for in silico protein synthesis (Parsons et al., 2005).
    """
    along = _unit(c - b)
    normal = _unit(torch.linalg.cross(b - a, along))
    across = torch.linalg.cross(normal, along)
    length, angle = (torch.as_tensor(value, dtype=c.dtype, device=c.device) for value in (length, angle))
    ahead, aside = -length * angle.cos(), length * angle.sin()
    steps = torch.stack([ahead.expand(turn.shape), aside * turn.cos(), aside * turn.sin()], -1)
    return c + steps[..., :1] * along + steps[..., 1:2] * across + steps[..., 2:] * normal


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


ANGLES = 4
"""The number of angles of a point."""
CONTEXT = 5
"""The number of columns of a context."""
GROUPS = ("none", "small", "polar", "bulky")
"""Groups of neighbours; `none` is an end of the chain, or a residue that is no amino acid."""


@dataclass(frozen=True)
class Residue:
    r"""An amino acid.

    Args:
        name: The three letters.
        path: The atoms of the side chain after N, CA and CB. The dihedral $\chi_i$ is that of four successive atoms from the $i$-th on.
        group: Its group as a neighbour.
        symmetric: Whether a half turn of the last angle changes only the names of atoms.
    """

    name: str
    path: tuple[str, ...]
    group: str
    symmetric: bool = False

    @property
    def angles(self) -> int:
        return len(self.path)

    @property
    def atoms(self) -> tuple[str, ...]:
        """The names of the atoms along the side chain, from N on."""
        return ("N", "CA", "CB", *self.path)


RESIDUES: tuple[Residue, ...] = (
    Residue("ALA", (), "small"),
    Residue("ARG", ("CG", "CD", "NE", "CZ"), "polar"),
    Residue("ASN", ("CG", "OD1"), "polar"),
    Residue("ASP", ("CG", "OD1"), "polar", symmetric=True),
    Residue("CYS", ("SG",), "small"),
    Residue("GLN", ("CG", "CD", "OE1"), "polar"),
    Residue("GLU", ("CG", "CD", "OE1"), "polar", symmetric=True),
    Residue("GLY", (), "small"),
    Residue("HIS", ("CG", "ND1"), "polar"),
    Residue("ILE", ("CG1", "CD1"), "bulky"),
    Residue("LEU", ("CG", "CD1"), "bulky"),
    Residue("LYS", ("CG", "CD", "CE", "NZ"), "polar"),
    Residue("MET", ("CG", "SD", "CE"), "bulky"),
    Residue("PHE", ("CG", "CD1"), "bulky", symmetric=True),
    Residue("PRO", ("CG", "CD"), "small"),
    Residue("SER", ("OG",), "small"),
    Residue("THR", ("OG1",), "polar"),
    Residue("TRP", ("CG", "CD1"), "bulky"),
    Residue("TYR", ("CG", "CD1"), "bulky", symmetric=True),
    Residue("VAL", ("CG1",), "bulky"),
)
"""The 20 amino acids, in the order of their three letters."""

_INDEX = {residue.name: index for index, residue in enumerate(RESIDUES)}


def index_of(name: str) -> int:
    """Returns the index of an amino acid in `RESIDUES`."""
    if name not in _INDEX:
        raise OptionError(f"{name!r} is none of the 20 amino acids: {', '.join(_INDEX)}.")
    return _INDEX[name]


def group_of(name: str | None) -> int:
    """Returns the index in `GROUPS` of a neighbour; 0 for None, and for a name that is no amino acid."""
    return GROUPS.index(RESIDUES[_INDEX[name]].group) if name in _INDEX else 0


def context_of(
    residue: str | Sequence[str],
    phi: float | Sequence[float] | Tensor,
    psi: float | Sequence[float] | Tensor,
    before: str | Sequence[str | None] | None = None,
    after: str | Sequence[str | None] | None = None,
) -> Tensor:
    r"""Returns contexts, with shape $(N, 5)$, for `E.given(context=...)`.

    Args:
        residue: The amino acid, or one for each row.
        phi: The backbone angle $\phi$ in radians; NaN where the chain begins.
        psi: The backbone angle $\psi$ in radians; NaN where the chain ends.
        before: The residue before it; None where the chain begins.
        after: The residue after it; None where the chain ends.

    Raises:
        OptionError: An amino acid is unknown, or an angle is beyond a full turn.

    Example:
        >>> context_of("LEU", -1.1, -0.8, before="GLY")
        tensor([[-1.1000, -0.8000, 10.0000,  1.0000,  0.0000]])
    """
    names = [residue] if isinstance(residue, str) else list(residue)
    angles = [torch.as_tensor(angle, dtype=torch.get_default_dtype()).reshape(-1) for angle in (phi, psi)]
    if any(bool((angle.abs() > 2 * math.pi).any()) for angle in angles):  # as degrees are
        raise OptionError(f"phi and psi are in radians, up to 2 pi, got {phi!r} and {psi!r}: for degrees write `math.radians(-60)`.")
    groups = [[None] if side is None else [side] if isinstance(side, str) else list(side) for side in (before, after)]
    kinds = [[index_of(name) for name in names], *([group_of(name) for name in side] for side in groups)]
    columns = [*angles, *(torch.tensor(kind).to(angles[0]) for kind in kinds)]
    rows = max(map(len, columns))
    if any(len(column) not in (1, rows) for column in columns):
        raise ShapeError(f"Residues, phi, psi, before and after need one or {rows} rows, got {', '.join(str(len(c)) for c in columns)}.")
    return torch.stack([column.expand(rows) for column in columns], 1)


def kinds_of(context: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    r"""Returns the indices of the amino acids of angles of a shape, with shape $(B,)$, and of the groups before and after, $(B, 2)$."""
    if tuple(shape) != (len(context), ANGLES) or context.shape != (len(context), CONTEXT):
        raise ShapeError(
            f"Angles (B, {ANGLES}) need a context of shape (B, {CONTEXT}), see `context_of`; got {tuple(shape)} and {tuple(context.shape)}."
        )
    kinds = _indices_in(context)
    return kinds[..., 0], kinds[..., 1:]


def _indices_in(context: Tensor) -> Tensor:
    if context.shape[-1:] != (CONTEXT,):
        raise ShapeError(f"A context has shape (*, {CONTEXT}), see `context_of`; got {tuple(context.shape)}.")
    kinds = context.detach()[..., 2:]
    limits = torch.tensor([len(RESIDUES), len(GROUPS), len(GROUPS)], device=context.device)
    if not bool(((kinds >= 0) & (kinds < limits) & (kinds == kinds.round())).all()):
        way = "the amino acid and the groups of its neighbours. `context_of` makes a context."
        raise OptionError(f"Columns 2 to 4 of a context are indices below {len(RESIDUES)}, {len(GROUPS)} and {len(GROUPS)}: {way}")
    return kinds.long()


def angle_mask(context: Tensor) -> Tensor:
    """Returns which of the four angles the residues of contexts of shape $(*, 5)$ have, with shape $(*, 4)$."""
    counts = torch.tensor([residue.angles for residue in RESIDUES], device=context.device)
    return torch.arange(ANGLES, device=context.device) < counts[_indices_in(context)[..., 0]][..., None]


def angle_periods(context: Tensor) -> Tensor:
    r"""Returns the periods of the angles of contexts of shape $(*, 5)$, with shape $(*, 4)$: $\pi$ for a symmetric angle, else $2 \pi$."""
    table = torch.full((len(RESIDUES), ANGLES), 2 * math.pi, dtype=context.dtype, device=context.device)
    for index, residue in enumerate(RESIDUES):
        if residue.symmetric:
            table[index, residue.angles - 1] = math.pi
    return table[_indices_in(context)[..., 0]]


@dataclass(frozen=True)
class SideChains:
    r"""The side chains of $N$ residues.

    Args:
        chi: Angles in radians, with shape $(N, 4)$; NaN where atoms are missing, 0 beyond the angles of the amino acid.
        context: Contexts, with shape $(N, 5)$; see `context_of`.
        places: Where each residue is, such as `A/LEU 12`; empty for generated residues.
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
        return [RESIDUES[index].name for index in self.context[:, 2].long().tolist()]

    def complete(self) -> SideChains:
        """Returns the residues that have angles, all of them known, as training needs them.

        Raises:
            OptionError: There are none.
        """
        if not bool((keep := self.mask.any(1) & self.chi.isfinite().all(1)).any()):
            raise OptionError(f"None of {len(self)} residues has a complete side chain with angles.")
        return self[keep]
