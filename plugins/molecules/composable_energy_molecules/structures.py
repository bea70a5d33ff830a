r"""Side chains of PDB and mmCIF files, read by gemmi (the extra `molecules`)."""

import itertools
import math
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import expanded, is_file
from composable_energy.options import check_integer, import_extra
from composable_energy_molecules.residues import ANGLES, RESIDUES, SideChains, dihedral, group_of, index_of
from composable_energy_viz.files import check_gzip

_NAMES = frozenset(residue.name for residue in RESIDUES)
_LARGEST = 2**30  # bytes of a file when it is unpacked
_LONGEST = 2.0  # of a peptide bond, in angstroms; 1.33 is usual
_FARTHEST = 2.5  # of atoms that are bonded, in angstroms; 1.8 is usual for sulphur
_FLAT = 1e-3  # of the area of a plane that defines no dihedral

Atoms = dict[str, Tensor]


def read_side_chains(path: str | PathLike[str], *, chains: Iterable[str] | None = None, model: int = 0) -> SideChains:
    r"""Returns the amino acids of a PDB or mmCIF file (also gzipped), with their angles in radians.

    Of alternative positions the first is taken. Residues that are none of the 20 amino acids, such as water, are left out, and count as no
    neighbour. $\phi$ and $\psi$ are NaN at the ends of a chain, at gaps (a peptide bond above 2 angstroms), and where atoms are missing; an
    angle is NaN where its atoms are in line or above 2.5 angstroms apart. `complete()` keeps the residues that training can use.

    Args:
        chains: The names of the chains; None for all.
        model: The index of the model, from 0 on.

    Raises:
        FileFormatError: The file is missing, cannot be read, unpacks to more than 2**30 bytes, or has no amino acids.
        OptionError: It has no such model or chain.
    """
    gemmi = import_extra("gemmi", "molecules")
    path = expanded(path)
    check_integer("model", model, least=0)
    if not is_file(path):
        raise FileFormatError(f"{path} is no file; a PDB or mmCIF file was expected.")
    if path.suffix == ".gz":
        check_gzip(path, _LARGEST)
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise FileFormatError(f"{path} cannot be read as PDB or mmCIF: {error}") from error
    if not any(len(residue) for part in structure for chain in part for residue in chain):
        raise FileFormatError(f"{path} has no atoms; a PDB file has ATOM records, an mmCIF file the loop _atom_site.")
    if model >= len(structure):
        raise OptionError(f"{path} has {len(structure)} models, numbered from 0; got model={model}.")
    names = [chain.name for chain in structure[model]]
    wanted = names if chains is None else list(chains)
    if unknown := sorted(set(wanted) - set(names)):
        raise OptionError(f"{path} has the chains {', '.join(names)}, and not {', '.join(unknown)}.")
    if not (rows := [row for chain in structure[model] if chain.name in wanted for row in _read_chain(chain, path)]):
        raise FileFormatError(f"{path} has no amino acids in the chains {', '.join(wanted)}.")
    chi, context, places = zip(*rows, strict=True)
    return SideChains(torch.tensor(chi), torch.tensor(context), places)


def _read_chain(chain: Any, path: Path) -> list[tuple[list[float], list[float], str]]:
    """Returns angles, context and place of each amino acid of a chain."""
    places = {str(residue.seqid): residue for residue in reversed(chain)}  # of alternative amino acids at a place the first
    residues = [(residue, _atoms(residue, path)) for residue in chain if places[str(residue.seqid)] is residue]
    rows = []
    for i, (residue, atoms) in enumerate(residues):
        if residue.name not in _NAMES:
            continue
        before = residues[i - 1] if i > 0 and _are_bonded(residues[i - 1][1], atoms) else None
        after = residues[i + 1] if i + 1 < len(residues) and _are_bonded(atoms, residues[i + 1][1]) else None
        phi = math.nan if before is None else _angle(before[1].get("C"), *map(atoms.get, ("N", "CA", "C")))
        psi = math.nan if after is None else _angle(*map(atoms.get, ("N", "CA", "C")), after[1].get("N"))
        groups = [float(group_of(side and side[0].name)) for side in (before, after)]
        place = f"{chain.name}/{residue.name} {residue.seqid}"
        about = RESIDUES[index_of(residue.name)]
        angles = [_angle(*map(atoms.get, about.atoms[i : i + 4])) for i in range(about.angles)] + [0.0] * (ANGLES - about.angles)
        rows.append((angles, [phi, psi, float(index_of(residue.name)), *groups], place))
    return rows


def _atoms(residue: Any, path: Path) -> Atoms:
    """Returns the positions of the atoms by name; of alternative ones those of the first alternative that is mentioned."""
    first = next((atom.altloc for atom in residue if atom.has_altloc()), None)
    kept = [atom for atom in residue if atom.altloc == first or not atom.has_altloc()]
    atoms = {atom.name: torch.tensor(atom.pos.tolist(), dtype=torch.float64) for atom in kept}
    if wrong := [name for name, position in atoms.items() if not bool(position.isfinite().all())]:
        raise FileFormatError(f"{path}: the position of atom {wrong[0]} of {residue.name} {residue.seqid} is not finite.")
    return atoms


def _are_bonded(one: Atoms, next_one: Atoms) -> bool:
    return "C" in one and "N" in next_one and bool((one["C"] - next_one["N"]).norm() < _LONGEST)


def _angle(*points: Tensor | None) -> float:
    """Returns a dihedral; NaN if a point is missing, three points are in line, or two in succession are too far apart for a bond."""
    found = [point for point in points if point is not None]
    if len(found) < 4:
        return math.nan
    a, b, c, d = found
    bonds = b - a, c - b, d - c
    flat = any(torch.linalg.cross(one, other).norm() < _FLAT for one, other in itertools.pairwise(bonds))
    return math.nan if flat or any(bond.norm() > _FARTHEST for bond in bonds) else float(dihedral(a, b, c, d))
