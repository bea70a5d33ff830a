r"""Generated side chains: an exact conditional density of rotamers, to train and to test on. The numbers are not measured."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import Energy, Recommendation
from composable_energy.arithmetic import Estimate
from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_molecules.angles import wrap
from composable_energy_molecules.data import SideChains
from composable_energy_molecules.residues import ANGLES, GROUPS, RESIDUES, angle_mask, angle_periods, check_context, index_of
from composable_energy_molecules.wells import BACKBONES, GENERATED, rotamers

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
        most = max(len(rotamers(name).weights) for name in GENERATED)
        tables = {
            "centres": torch.zeros(len(RESIDUES), most, ANGLES),
            "widths": torch.ones(len(RESIDUES), most, ANGLES),
            "weights": torch.full((len(RESIDUES), most), -math.inf),
            "wells": torch.zeros(len(RESIDUES), most, ANGLES, dtype=torch.int64),
        }
        for name in GENERATED:
            found, count = rotamers(name), len(rotamers(name).weights)
            for key, table in tables.items():
                table[index_of(name), :count] = getattr(found, key)
        for key, table in tables.items():
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
        residue, groups = check_context(context, (*context.shape[:-1], ANGLES))
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
        rows = torch.arange(len(context))
        centre, width = self._centres(context)[rows, chosen], self.widths[context[:, 2].long(), chosen]
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
        check_context(context, chi.shape)
        periods, widths = angle_periods(context)[:, None], self._of(self.widths, context[:, 2].long())
        nearest = wrap(chi[:, None] - self._centres(context), periods)
        turns = torch.stack([-((nearest + turn * periods) / widths).square() / 2 for turn in (-1, 0, 1)])
        log_p = turns.logsumexp(0) - widths.log() - 0.5 * math.log(2 * math.pi) - (2 * math.pi / periods).log()
        return torch.where(angle_mask(context)[:, None], log_p, -math.log(2 * math.pi)).sum(-1)


def generate(count: int, seed: int = 0, *, residues: tuple[str, ...] = tuple(GENERATED)) -> SideChains:
    r"""Returns generated side chains with contexts: amino acids and groups of neighbours are uniform, backbones come from four regions.

    Args:
        count: The number of residues.
        seed: The seed.
        residues: The amino acids.

    Raises:
        OptionError: The count is not positive, or an amino acid cannot be generated.

    Example:
        >>> generate(1000, seed=0).chi.shape
        torch.Size([1000, 4])
    """
    check_integer("count", count)
    unknown = [name for name in residues if name not in GENERATED]
    if unknown or not residues:
        raise OptionError(f"residues must be some of {', '.join(GENERATED)}, got {', '.join(unknown) or 'none'}.")
    generator = torch.Generator().manual_seed(seed)
    region = BACKBONES[torch.multinomial(BACKBONES[:, 3], count, replacement=True, generator=generator)]
    backbone = wrap(torch.deg2rad(region[:, :2] + region[:, 2:3] * torch.randn(count, 2, generator=generator)))
    kinds = torch.tensor([index_of(name) for name in residues])[torch.randint(len(residues), (count,), generator=generator)]
    groups = torch.randint(1, len(GROUPS), (count, 2), generator=generator)
    context = torch.cat([backbone, kinds[:, None], groups], 1)
    return SideChains(GeneratedRotamers().draw(context, generator), context)
