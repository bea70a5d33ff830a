r"""The energy of side chains: a small network of angles given their context."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import composable_energy as ce
from composable_energy import Energy, Recommendation
from composable_energy.options import check_integer
from composable_energy_molecules.residues import ANGLES, GROUPS, RESIDUES, angle_mask, angle_periods, check_context, wrap

_BACKBONE_HARMONICS = 3
_EMBEDDING = 16


class SideChainEnergy(Energy):
    r"""The energy of the side-chain angles of one residue or of several, $E(\chi \mid \text{context})$, on the torus.

    Angles enter as $\sin k \chi$ and $\cos k \chi$, so the energy has period $2 \pi$, and $\pi$ in a symmetric angle. Angles that an amino
    acid lacks do not enter. The context scales and shifts the features of the angles (Perez et al., 2018).

    Args:
        residues: The number of residues of a point: None for points of shape $(4,)$ with contexts of shape $(5,)$; else points of shape
            $(R, 4)$ with contexts of shape $(R, 5)$, and the energy is the sum.
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

    def __init__(self, residues: int | None = None, *, width: int = 128, harmonics: int = 4) -> None:
        super().__init__()
        for name, value in (("residues", 1 if residues is None else residues), ("width", width), ("harmonics", harmonics)):
            check_integer(name, value)
        self.residues, self.width, self.harmonics = residues, width, harmonics
        self.residue = nn.Embedding(len(RESIDUES), _EMBEDDING)
        self.neighbour = nn.Embedding(2 * len(GROUPS), _EMBEDDING)
        backbone = 2 * (2 * _BACKBONE_HARMONICS + 1)
        self.context = nn.Sequential(nn.Linear(backbone + 3 * _EMBEDDING, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.scales = nn.Linear(width, 4 * width)
        self.angles = nn.Linear(2 * harmonics * ANGLES, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        self.event_shape = (ANGLES,) if residues is None else (residues, ANGLES)
        self.support, self.name = ce.supports.circle, "side chains"
        self.recommended = Recommendation("tempering")

    def config(self) -> dict[str, Any]:
        return {"residues": self.residues, "width": self.width, "harmonics": self.harmonics}

    def forward(self, chi: Tensor, *, context: Tensor) -> Tensor:
        check_context(context, chi.shape)
        energies = self._combine(self._angle_features(chi, context), self._scales(context))
        return energies if chi.ndim == 2 else energies.sum(1)

    def of_each(self, chi: Tensor, context: Tensor) -> Tensor:
        r"""Returns the energies, with shape $(B, K)$, of several points for each context, with shape $(B, K, 4)$.

        Each context is evaluated once.
        """
        check_context(context, chi[:, 0].shape)
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
