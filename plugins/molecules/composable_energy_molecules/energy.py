r"""The energies of side chains: a small network of angles given their context, and clashes of atoms, by a sketch of the geometry."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import silu

import composable_energy as ce
from composable_energy import Energy, Recommendation
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_instance, check_integer, check_number
from composable_energy_molecules.residues import ANGLES, GROUPS, RESIDUES, angle_mask, angle_periods, index_of, kinds_of, place_atom, wrap

_BACKBONE_HARMONICS = 3
_EMBEDDING = 16


class SideChainEnergy(Energy):
    r"""The energy of the side-chain angles of a residue, $E(\chi \mid \text{context})$, on the torus.

    Angles enter as $\sin k \chi$ and $\cos k \chi$, so the energy has period $2 \pi$, and $\pi$ in a symmetric angle. Angles that an amino
    acid lacks do not enter. The context scales and shifts the features of the angles (Perez et al., 2018).

    Args:
        harmonics: The largest $k$.

    References:
        Energy-based models for atomic-resolution protein conformations (Du et al., 2020), https://arxiv.org/abs/2004.13167
        FiLM: visual reasoning with a general conditioning layer (Perez et al., 2018), https://arxiv.org/abs/1709.07871

    Example:
        >>> from composable_energy_molecules import SideChainEnergy, context_of
        >>> energy = SideChainEnergy().given(context=context_of("LEU", -1.1, -0.8))
        >>> energy(torch.zeros(3, 4)).shape
        torch.Size([3])
    """

    comes_trained = False

    def __init__(self, *, width: int = 128, harmonics: int = 4) -> None:
        super().__init__()
        self.width, self.harmonics = check_integer("width", width), check_integer("harmonics", harmonics)
        self.residue = nn.Embedding(len(RESIDUES), _EMBEDDING)
        self.neighbour = nn.Embedding(2 * len(GROUPS), _EMBEDDING)
        backbone = 2 * (2 * _BACKBONE_HARMONICS + 1)
        self.context = nn.Sequential(nn.Linear(backbone + 3 * _EMBEDDING, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.scales = nn.Linear(width, 4 * width)
        self.angles = nn.Linear(2 * harmonics * ANGLES, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        self.event_shape, self.support, self.name = (ANGLES,), ce.supports.circle, "side chains"
        self.recommended = Recommendation("tempering")

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "harmonics": self.harmonics}

    def forward(self, chi: Tensor, *, context: Tensor) -> Tensor:
        kinds_of(context, chi.shape)
        return self._combine(self._angle_features(chi, context), self._scales(context))

    def of_each(self, chi: Tensor, context: Tensor) -> Tensor:
        """Returns the energies, with shape $(B, K)$, of several points, with shape $(B, K, 4)$, for each context, evaluated once."""
        kinds_of(context, chi[:, 0].shape)
        return self._combine(self._angle_features(chi, context[:, None]), self._scales(context)[:, None])

    def _combine(self, features: Tensor, scales: Tensor) -> Tensor:
        first, shift, second, offset = scales.chunk(4, -1)
        hidden = silu(self.angles(features) * (1 + first) + shift)
        hidden = silu(self.hidden(hidden) * (1 + second) + offset)
        return self.out(hidden).squeeze(-1)

    def _angle_features(self, chi: Tensor, context: Tensor) -> Tensor:
        folds = 2 * torch.pi / angle_periods(context)
        mask = angle_mask(context)[..., None]
        turns = wrap(chi * folds)[..., None] * torch.arange(1, self.harmonics + 1, dtype=chi.dtype, device=chi.device)
        return torch.where(mask, torch.cat([turns.cos(), turns.sin()], -1), 0.0).flatten(-2)

    def _scales(self, context: Tensor) -> Tensor:
        backbone, kinds = context[..., :2], context[..., 2:].long()
        known = backbone.isfinite()
        turns = backbone.nan_to_num()[..., None] * torch.arange(1, _BACKBONE_HARMONICS + 1, dtype=context.dtype, device=context.device)
        waves = torch.where(known[..., None], torch.cat([turns.cos(), turns.sin()], -1), 0.0).flatten(-2)
        sides = [self.neighbour(kinds[..., 1]), self.neighbour(kinds[..., 2] + len(GROUPS))]
        return self.scales(self.context(torch.cat([waves, known.to(waves), self.residue(kinds[..., 0]), *sides], -1)))


BOND, ANGLE = 1.52, math.radians(112.0)
"""The length of all bonds in angstroms, and all angles between them."""
_TINY = 1e-6


def side_chain_atoms(residue: str, backbone: Tensor, chi: Tensor) -> Tensor:
    r"""Returns the atoms along a side chain, with shape $(B, n, 3)$: CB and the `path` of the residue.

    All bonds have one length and all angles one size, and branches are left out, so positions are right to some tenths of an angstrom.

    Args:
        backbone: The positions of N, CA and C, with shape $(3, 3)$ or $(B, 3, 3)$.
        chi: Angles, with shape $(B, 4)$.

    Raises:
        OptionError: The amino acid is unknown.
    """
    about = RESIDUES[index_of(residue)]
    if backbone.shape[-2:] != (3, 3) or backbone.ndim not in (2, 3) or chi.shape[1:] != (ANGLES,):
        shapes = f"{tuple(backbone.shape)} and {tuple(chi.shape)}"
        raise ShapeError(f"N, CA and C need shape (3, 3) or (B, 3, 3), and angles shape (B, {ANGLES}), got {shapes}.")
    n, ca, c = (atom.expand(len(chi), 3) for atom in backbone.unbind(-2))
    one, other = ca - n, c - ca
    atoms = [n, ca, (ca - 0.58273431 * torch.linalg.cross(one, other) + 0.56802827 * one - 0.54067466 * other)]
    for angle in range(about.angles):
        atoms.append(place_atom(atoms[-3], atoms[-2], atoms[-1], BOND, ANGLE, chi[:, angle]))
    return torch.stack(atoms[2:], 1)


class ClashEnergy(Energy):
    r"""Atoms of different residues repel each other: $E = \tfrac k2 \sum \max(0, r - d)^2$ over pairs at distance $d$.

    It counts pairs of side-chain atoms, and of those beyond CB with the N, CA and C of other residues. Positions are those of
    `side_chain_atoms`, so this is a sketch of steric repulsion and no force field. Alone it is a density on the torus, uniform where
    nothing clashes.

    Args:
        residues: The amino acids by the names of the variables, $R$ of them, each with four angles.
        backbones: The positions of their N, CA and C in angstroms, with shape $(R, 3, 3)$.
        distance: $r$, in angstroms.
        stiffness: $k$, in units of energy by square angstrom.

    Raises:
        OptionError: An amino acid is unknown, there are fewer than two, or a number is not positive.
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("residues",)

    backbones: Tensor

    def __init__(self, residues: Mapping[str, str], backbones: Tensor, *, distance: float = 3.4, stiffness: float = 20.0) -> None:
        super().__init__()
        self.residues = dict(check_instance("residues", residues, Mapping) or {})
        for name in self.residues.values():
            index_of(name)
        if len(self.residues) < 2:
            raise OptionError(f"A clash needs two residues or more, got {len(self.residues)}.")
        if backbones.shape != (len(self.residues), 3, 3) or not bool(backbones.isfinite().all()):
            raise ShapeError(f"backbones needs finite numbers of shape ({len(self.residues)}, 3, 3), got shape {tuple(backbones.shape)}.")
        self.distance, self.stiffness = check_number("distance", distance, above=0), check_number("stiffness", stiffness, above=0)
        self.register_buffer("backbones", backbones.detach().clone())
        self.variables = dict.fromkeys(self.residues, torch.Size((ANGLES,)))
        self.event_shape, self.name = (len(self.residues) * ANGLES,), "clash"
        self.support = constraints.cat([ce.supports.circle] * len(self.residues), -1, [ANGLES] * len(self.residues))
        self.recommended = Recommendation("tempering")

    def config(self) -> dict[str, Any]:
        return {"residues": self.residues, "backbones": self.backbones, "distance": self.distance, "stiffness": self.stiffness}

    def forward(self, chi: Tensor) -> Tensor:
        backbones, angles = self.backbones.to(chi), chi.split(ANGLES, 1)
        chains = [side_chain_atoms(*about) for about in zip(self.residues.values(), backbones, angles, strict=True)]
        total = chi.new_zeros(len(chi))
        for i, atoms in enumerate(chains):
            others = [frame.expand(len(chi), 3, 3) for j, frame in enumerate(backbones) if j != i]
            total = total + self._repulsion(atoms[:, 1:], torch.cat(others, 1))
            if i:
                total = total + self._repulsion(atoms, torch.cat(chains[:i], 1))
        return total

    def _repulsion(self, atoms: Tensor, others: Tensor) -> Tensor:
        squares = (atoms[:, :, None] - others[:, None]).square().sum(3)
        return self.stiffness / 2 * (self.distance - (squares + _TINY).sqrt()).clamp(min=0).square().sum((1, 2))
