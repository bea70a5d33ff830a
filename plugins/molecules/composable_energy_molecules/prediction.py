r"""Prediction of side chains by the lowest energy, and log densities with a normaliser by importance sampling."""

import math

import torch
from torch import Tensor

from composable_energy.options import check_integer
from composable_energy_molecules.energy import SideChainEnergy
from composable_energy_molecules.library import AngleLibrary
from composable_energy_molecules.residues import ANGLES, angle_mask

_CHUNK = 64


def predict(
    energy: SideChainEnergy, context: Tensor, library: AngleLibrary, *, candidates: int = 256, steps: int = 20, seed: int = 0
) -> Tensor:
    r"""Returns the angles of low energy of one residue for each context, with shape $(B, 4)$; 0 beyond the angles of an amino acid.

    The lowest of some candidates from a library goes down the gradient; a step that goes up is halved.
    """
    check_integer("candidates", candidates)
    check_integer("steps", steps, least=0)
    generator, found = torch.Generator().manual_seed(seed), []
    for part in context.split(_CHUNK):
        chi = library.draw(part, torch.rand(len(part), candidates, ANGLES, generator=generator).to(part))
        with torch.no_grad():
            best = energy.of_each(chi, part).argmin(1)
        found.append(_descend(energy, chi[torch.arange(len(part)), best], part, steps))
    return torch.cat(found)


def _descend(energy: SideChainEnergy, chi: Tensor, context: Tensor, steps: int) -> Tensor:
    """Returns points of lower energy: steps along the gradient, at most .1 radians an angle, halved where the energy rises."""
    bound = energy.given(context=context)
    lowest, gradient = bound.with_gradient(chi)
    sizes = torch.full_like(lowest, 0.02)
    for _ in range(steps):
        tried = chi - (sizes[:, None] * gradient).clamp(-0.1, 0.1)
        energies, slope = bound.with_gradient(tried)
        better = energies < lowest
        chi, gradient = torch.where(better[:, None], tried, chi), torch.where(better[:, None], slope, gradient)
        lowest, sizes = torch.where(better, energies, lowest), torch.where(better, 1.2 * sizes, sizes / 2)
    return chi


def resample(energy: SideChainEnergy, context: Tensor, library: AngleLibrary, *, candidates: int = 1024, seed: int = 0) -> Tensor:
    r"""Returns draws by importance resampling, one for each context, with shape $(B, 4)$: starts for chains of an expression.

    Of some candidates of the library one is chosen with the probability $\propto e^{-E} / q$. This is exact for many candidates, and needs
    no chains. Angles beyond those of an amino acid are uniform.
    """
    check_integer("candidates", candidates)
    generator, found = torch.Generator().manual_seed(seed), []
    for part in context.split(_CHUNK):
        uniforms, chi, ratios = _weighed(energy, part, library, candidates, generator)
        chosen = torch.multinomial(ratios.softmax(1), 1, generator=generator)[:, 0]
        rows = torch.arange(len(part))
        found.append(torch.where(angle_mask(part), chi[rows, chosen], (2 * uniforms[rows, chosen] - 1) * math.pi))
    return torch.cat(found)


def log_probs(
    energy: SideChainEnergy, chi: Tensor, context: Tensor, library: AngleLibrary, *, draws: int = 4096, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Returns log densities on the torus of the angles that each amino acid has, and $\log Z$ by context, both with shape $(B,)$.

    $Z(c) = \langle e^{-E(\chi \mid c)} / q(\chi) \rangle$ over draws of a library $q$, which are independent for each context.
    """
    check_integer("draws", draws)
    generator = torch.Generator().manual_seed(seed)
    parts = [_weighed(energy, part, library, draws, generator)[2] for part in context.split(_CHUNK)]
    log_z = torch.cat([ratios.logsumexp(1) - math.log(draws) for ratios in parts])
    with torch.no_grad():
        return -energy(torch.where(angle_mask(context), chi, 0.0), context=context) - log_z, log_z


@torch.no_grad()
def _weighed(
    energy: SideChainEnergy, context: Tensor, library: AngleLibrary, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns uniform numbers, the draws of the library that they give, and the log ratios of their densities to those of the library."""
    uniforms = torch.rand(len(context), count, ANGLES, generator=generator).to(context)
    chi = library.draw(context, uniforms)
    return uniforms, chi, -energy.of_each(chi, context) - library.log_prob(chi, context)
