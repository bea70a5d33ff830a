r"""Generated side chains: an exact conditional density of rotamers, to train and to test on.

The numbers resemble a backbone-dependent rotamer library in kind, and are **not measured**: three staggered wells for a bond between
tetrahedral atoms, broad or symmetric wells for planar groups, few pairs of opposite gauche wells, two usual rotamers of leucine.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import Energy, Recommendation
from composable_energy.arithmetic import Estimate
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_molecules.residues import ANGLES, GROUPS, RESIDUES, SideChains, angle_mask, angle_periods, index_of, kinds_of, wrap

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


def _rotamers(name: str) -> dict[str, Tensor]:
    """Returns centres, widths, log weights and the indices of wells of all combinations of wells of an amino acid."""
    angles = GENERATED[name]
    rows = list(itertools.product(*(range(len(wells)) for wells in angles)))
    chosen = [[angles[i][well] for i, well in enumerate(row)] for row in rows]
    pad = ANGLES - len(angles)
    return {
        "centres": torch.tensor([[math.radians(well[0]) for well in row] + [0.0] * pad for row in chosen]),
        "widths": torch.tensor([[math.radians(well[1]) for well in row] + [1.0] * pad for row in chosen]),
        "weights": torch.tensor([sum(well[2] for well in row) + _coupling(name, [well[0] for well in row]) for row in chosen]),
        "wells": torch.tensor([list(row) + [0] * pad for row in rows]),
    }


def _coupling(name: str, centres: list[float]) -> float:
    """Returns the log weight of a combination of wells beyond those of the wells."""
    if name == "LEU":
        return _LEUCINE.get((int(centres[0]), int(centres[1])), -1.0)
    gauche = [math.copysign(1, centre) if 40 < abs(centre) < 100 else 0.0 for centre in centres]
    pairs = itertools.pairwise(gauche[: len(gauche) - (1 if name in ("PHE", "ASN", "GLU") else 0)])
    return _OPPOSITE * sum(one * other < 0 for one, other in pairs)


_BACKBONE = torch.tensor([[1.3, 2.2, 1.1, -0.6], [1.5, -1.2, 1.0, 2.4], [1.3, -2.6, 1.1, 0.9]])
r"""Of the three wells of $\chi_1$: amplitude and phase of the log weight's dependence on $\phi$, and the same on $\psi$."""
_LATER = torch.tensor([[0.6, 0.4, 0.5, 2.0], [0.5, 2.5, 0.6, -1.2], [0.6, -1.7, 0.5, 0.4]])
r"""The same of $\chi_2$."""
_BEFORE = torch.tensor([[0.0, 0.0, 0.0], [0.9, -0.4, -0.5], [-0.7, 1.0, -0.3], [-0.5, -0.6, 1.1]])
r"""Log weights of the three wells of $\chi_1$ by the group of the residue before."""
_AFTER = torch.tensor([[0.0, 0.0, 0.0], [-0.4, 0.8, -0.4], [0.9, -0.5, -0.4], [-0.6, -0.3, 0.9]])
r"""Log weights of the three wells of $\chi_2$ by the group of the residue after."""
_SHIFT = math.radians(8)
r"""By which the centre of $\chi_1$ moves with $\psi$."""


class GeneratedRotamers(Energy):
    r"""The exact energy of generated side chains, $-\log p(\chi \mid \text{context})$, on the torus.

    The density is a mixture over rotamers $r$ of wrapped normals,
    $\sum_r w_r(\text{context}) \prod_i \mathcal N_\circ(\chi_i; \mu_{ri}(\psi), s_{ri})$: the log weights depend on $\phi$, $\psi$ and the
    groups of both neighbours, and the centres of $\chi_1$ on $\psi$. Angles that an amino acid lacks are uniform. It is normalised on the
    torus of all four angles. The numbers resemble a backbone-dependent library and are **generated, not measured**. Nine amino acids have
    one: SER, VAL (one angle), LEU, PHE, ASN (two), MET, GLU (three), LYS, ARG (four).

    References:
        Backbone-dependent rotamer library for proteins (Dunbrack & Karplus, 1993), whose kind of statistics it resembles.

    Example:
        >>> from composable_energy_molecules import GeneratedRotamers, context_of
        >>> exact = GeneratedRotamers().given(context=context_of("VAL", -1.1, -0.8))
        >>> exact(torch.tensor([[3.05, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])).round()
        tensor([ 5., 27.])
    """

    centres: Tensor
    widths: Tensor
    weights: Tensor
    wells: Tensor
    staggered: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        known = {index_of(name): _rotamers(name) for name in GENERATED}
        most = max(len(found["weights"]) for found in known.values())
        tables = {
            "centres": torch.zeros(len(RESIDUES), most, ANGLES),
            "widths": torch.ones(len(RESIDUES), most, ANGLES),
            "weights": torch.full((len(RESIDUES), most), -math.inf),
            "wells": torch.zeros(len(RESIDUES), most, ANGLES, dtype=torch.int64),
        }
        for key, table in tables.items():
            for index, found in known.items():
                table[index, : len(found[key])] = found[key]
            self.register_buffer(key, table)
        staggered = torch.zeros(len(RESIDUES), 2)  # whether the first two angles have three wells that the context moves
        for name, angles in GENERATED.items():
            staggered[index_of(name)] = torch.tensor([float(i < len(angles) and len(angles[i]) == 3) for i in range(2)])
        self.register_buffer("staggered", staggered)
        self.register_buffer("counts", tables["weights"].isfinite().sum(1))
        self.event_shape, self.support, self.name = (ANGLES,), ce.supports.circle, "generated"
        self.recommended = Recommendation("tempering")

    def config(self) -> dict[str, Any]:
        return {}

    @property
    def log_normalizer(self) -> Estimate:
        return Estimate(0.0)

    def forward(self, chi: Tensor, *, context: Tensor) -> Tensor:
        return -(self.rotamer_log_probs(context) + self._log_densities(chi, context)).logsumexp(1)

    def rotamer_log_probs(self, context: Tensor) -> Tensor:
        r"""Returns the log weights of the rotamers given contexts, with shape $(B, R)$; $-\infty$ where an amino acid has fewer than $R$.

        Raises:
            OptionError: An amino acid cannot be generated.
        """
        residue, groups = kinds_of(context, (*context.shape[:-1], ANGLES))
        log_weights = self._of(self.weights, residue)
        if bool((self.counts[residue] == 0).any()):
            wrong = sorted({RESIDUES[i].name for i in residue.tolist()} - GENERATED.keys())
            raise OptionError(f"Rotamers of {', '.join(wrong)} cannot be generated; those of {', '.join(GENERATED)} can.")
        phi, psi = context[:, 0].nan_to_num(), context[:, 1].nan_to_num()
        wells = self._of(self.wells, residue)
        for angle, (backbone, neighbour) in enumerate(((_BACKBONE, _BEFORE[groups[:, 0].cpu()]), (_LATER, _AFTER[groups[:, 1].cpu()]))):
            by = backbone.to(context)
            term = by[:, 0] * (phi[:, None] - by[:, 1]).cos() + by[:, 2] * (psi[:, None] - by[:, 3]).cos() + neighbour.to(context)
            log_weights = log_weights + self.staggered[residue, angle, None] * term.gather(1, wells[:, :, angle])
        return log_weights.log_softmax(1)

    def rotamer_of(self, chi: Tensor, context: Tensor) -> Tensor:
        """Returns the rotamer whose component is most likely for each point, with shape $(B,)$."""
        return (self.rotamer_log_probs(context) + self._log_densities(chi, context)).argmax(1)

    def draw(self, context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns exact draws, one for each context, with shape $(B, 4)$; 0 beyond the angles of the amino acid."""
        chosen = torch.multinomial(self.rotamer_log_probs(context).exp(), 1, generator=generator)[:, 0]
        centre, width = self._centres(context)[torch.arange(len(context)), chosen], self.widths[context[:, 2].long(), chosen]
        periods = angle_periods(context)
        halves = torch.randint(2, centre.shape, generator=generator) * periods  # a half turn of a symmetric angle, a whole one of others
        chi = wrap(centre + width * torch.randn(centre.shape, generator=generator) + halves)
        return torch.where(angle_mask(context), chi, 0.0)

    def _of(self, table: Tensor, residue: Tensor) -> Tensor:
        """Returns the rows of amino acids, with as many rotamers as any of them has."""
        return table[residue, : max(int(self.counts[residue].max()), 1)]

    def _centres(self, context: Tensor) -> Tensor:
        residue, psi = context[:, 2].long(), context[:, 1].nan_to_num()
        wells, centres = self._of(self.wells, residue), self._of(self.centres, residue)
        shift = _SHIFT * (psi[:, None] - 2.1 * wells[:, :, 0]).sin()
        return torch.cat([centres[..., :1] + shift[..., None], centres[..., 1:]], -1)

    def _log_densities(self, chi: Tensor, context: Tensor) -> Tensor:
        """Returns the log densities of the rotamers at points, with shape $(B, R)$."""
        kinds_of(context, chi.shape)
        periods, widths = angle_periods(context)[:, None], self._of(self.widths, context[:, 2].long())
        nearest = wrap(chi[:, None] - self._centres(context), periods)
        turns = torch.stack([-((nearest + turn * periods) / widths).square() / 2 for turn in (-1, 0, 1)])
        log_p = turns.logsumexp(0) - widths.log() - 0.5 * math.log(2 * math.pi) - (2 * math.pi / periods).log()
        return torch.where(angle_mask(context)[:, None], log_p, -math.log(2 * math.pi)).sum(-1)


def generate(count: int, seed: int = 0, *, residues: tuple[str, ...] = tuple(GENERATED)) -> SideChains:
    r"""Returns generated side chains with contexts: `residues` and groups of neighbours are uniform, backbones come from four regions.

    Raises:
        OptionError: The count is not positive, or an amino acid cannot be generated.

    Example:
        >>> generate(1000, seed=0).chi.shape
        torch.Size([1000, 4])
    """
    check_integer("count", count)
    if (unknown := [name for name in residues if name not in GENERATED]) or not residues:
        raise OptionError(f"residues must be some of {', '.join(GENERATED)}, got {', '.join(unknown) or 'none'}.")
    generator = torch.Generator().manual_seed(seed)
    region = BACKBONES[torch.multinomial(BACKBONES[:, 3], count, replacement=True, generator=generator)]
    backbone = wrap(torch.deg2rad(region[:, :2] + region[:, 2:3] * torch.randn(count, 2, generator=generator)))
    kinds = torch.tensor([index_of(name) for name in residues])[torch.randint(len(residues), (count,), generator=generator)]
    context = torch.cat([backbone, kinds[:, None], torch.randint(1, len(GROUPS), (count, 2), generator=generator)], 1)
    return SideChains(GeneratedRotamers().draw(context, generator), context)
