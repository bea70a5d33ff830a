r"""The density of an expression at a noise level, $\log q = F(l_1, \dots, l_M)$ of its leaves' log densities, and derivatives of $F$."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.algebra import noise_leaves
from composable_energy.energies.evaluation import evaluating
from composable_energy.errors import ExpressionError
from composable_energy.sampling import State, has_rows, plain_energy
from composable_energy_mcmc.level_gradient import Widened, denoised_pull, widen


@dataclass(frozen=True)
class WeightedParticles(State):
    """A state with weights, and with the log densities and scores of the leaves."""

    log_weight: Tensor  # with shape (B,); the mean of the weights is the estimate of Z
    log_density: Tensor  # the log densities l_i of the leaves, with shape (B, M)
    scores: Tensor  # their gradients, with shape (B, M, *)
    slopes: Tensor  # F_i, with shape (B, M)
    potential: Tensor  # sum_ij F_ij <s_i, s_j> + |s_q|^2 - sum_i F_i |s_i|^2, with shape (B,)
    seen: Tensor  # the denoised points, where terms without noise levels are evaluated, with shape (B, *)
    widening: Tensor  # what is added to F as the data vary around these points, with shape (B,)
    value: Tensor  # F with it, with shape (B,)
    residual: Tensor  # what log densities with values changed by more than the scores say, with shape (B, M)
    ancestor: Tensor  # the index of the first point that each point descends from, with shape (B,)
    lowest: float  # the lowest share of the effective sample size so far, one number for all points
    weighted: bool  # whether the weights are still in use, for all points


class Derivatives(NamedTuple):
    r"""The value and derivatives of $\log q = F(l_1, \dots, l_M, x, z)$ at points: $F$, $F_i = \partial F / \partial l_i$ and $F_{ij}$ with
    shapes $(B,)$, $(B, M)$ and $(B, M, M)$; $\partial F / \partial x$ at fixed $l$ and $z$, and $\partial F / \partial z$ at fixed $l$ and
    $x$, with shape $(B, *)$.
    """

    value: Tensor
    slopes: Tensor
    curvatures: Tensor
    direct: Tensor
    denoised: Tensor


class ComposedDensity:
    r"""$\log q_\sigma = -E(\cdot, \sigma)$ as a function $F$ of the log densities $l_i$ of the leaves of $E$, and of points $x$ and $z$.

    Leaves depend on the noise level. So does the evidence of a classifier of points with noise, which is evaluated at $x$. Other terms,
    such as a network that was trained without noise, are evaluated at the denoised point $z$.
    """

    def __init__(self, energy: Energy) -> None:
        if has_rows(energy):
            raise ExpressionError(f"All chains of feynman-kac have one density, and {energy} has a condition for each: bind one for all.")
        plain, _ = plain_energy(energy)
        if plain is None or plain.support is not None:
            raise ExpressionError(f"feynman-kac draws densities on all of R^n, and {energy} has a support: take `smc` or `chees`.")
        self.energy = plain
        parts = noise_leaves(plain)
        self.leaves, others = parts.leaves, parts.others
        if not self.leaves:
            raise ExpressionError(
                f"feynman-kac follows noise levels, and no term of {energy} depends on `sigma`, or all have it bound: leave it unbound, "
                "or take another sampler, such as `smc`."
            )
        blind = next((part for part in others if not part.evidence_has_value), None)
        if blind is not None:
            raise ExpressionError(f"{blind} has neither a value nor the condition `sigma`, so nothing can weigh it: give it one of them.")
        self.known = torch.tensor([leaf.has_value for leaf in self.leaves])
        self.has_others = bool(others)
        self.has_plain = bool(parts.plain)
        self.widens_itself = self.has_plain and parts.widened

    def scores(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        r"""Returns $-E_i$, 0 for a leaf without values, with shape $(B, M)$, and the scores $-\nabla E_i$, with shape $(B, M, *)$."""
        values, gradients, level = [], [], x.new_tensor(sigma).expand(len(x))  # one tensor, by which parts know that leaves share it
        with torch.inference_mode(False), torch.enable_grad(), evaluating(root=_Together(self.leaves)):
            point = x.detach().clone().requires_grad_()
            for leaf in self.leaves:
                energies = leaf(point, sigma=level)
                if not energies.requires_grad:
                    raise ExpressionError(f"{leaf} has no gradient at its points: it is constant, or detaches them.")
                gradients.append(torch.autograd.grad(energies.sum(), point, retain_graph=True)[0])
                energies = energies.detach()
                values.append(energies if leaf.has_value else torch.where(energies.isfinite(), 0.0, energies))
        return -torch.stack(values, 1).double(), -torch.stack(gradients, 1)

    def derivatives(self, log_densities: Tensor, x: Tensor, sigma: float, z: Tensor | None) -> Derivatives:
        """Returns $F$ and its derivatives at log densities of shape $(B, M)$; without denoised points `z`, plain terms are left out."""
        with torch.inference_mode(False), torch.enable_grad():
            at, point = (one.detach().clone().requires_grad_() for one in (log_densities, x))
            points = point, None if z is None else z.detach().clone().requires_grad_()
            value = self._evaluate(at, point, sigma, points[1])
            pulls = [torch.zeros_like(x), torch.zeros_like(x)]
            for i, where in enumerate(points if self.has_others else ()):
                found = None if where is None else torch.autograd.grad(value.sum(), where, retain_graph=True, allow_unused=True)[0]
                pulls[i] = pulls[i] if found is None else found.detach()
            slopes = torch.autograd.grad(value.sum(), at, create_graph=True)[0]
            curvatures = slopes.new_zeros(*at.shape, at.shape[1])
            for i, total in enumerate(slopes.sum(0) if slopes.requires_grad else ()):
                row = torch.autograd.grad(total, at, retain_graph=True, allow_unused=True)[0] if total.requires_grad else None
                if row is not None:
                    curvatures[:, i] = row
        return Derivatives(value.detach(), slopes.detach(), curvatures.detach(), *pulls)

    def value(self, log_densities: Tensor, x: Tensor, sigma: float, z: Tensor) -> Tensor:
        if self.widens_itself:
            return self.derivatives(log_densities, x, sigma, z).value  # such terms need gradients
        with torch.no_grad():
            return self._evaluate(log_densities, x, sigma, z)

    def denoise(self, log_densities: Tensor, scores: Tensor, x: Tensor, sigma: float) -> tuple[Tensor, Derivatives, Widened]:
        r"""Returns the denoised points of the other terms, the derivatives there, and the widened gradient of plain terms."""

        def others(densities: Tensor, s: Tensor, at: Tensor) -> Tensor:
            found = self.derivatives(densities, at, sigma, None)
            return combine(found.slopes, s) + found.direct

        def gradient_at(near: Tensor) -> Tensor:
            values, new = self.scores(near, sigma)
            carried = log_densities + products(scores + new, (near - x)[:, None]) / 2
            return -others(torch.where(self.known.to(x.device), values, carried), new, near)

        score = others(log_densities, scores, x)
        seen = torch.add(x, score, alpha=sigma**2)
        found = self.derivatives(log_densities, x, sigma, seen)

        def slope_at(near: Tensor) -> Tensor:
            return -self.derivatives(log_densities, x, sigma, near).denoised

        pulled = denoised_pull(x, -found.denoised, -score, sigma, gradient_at)
        if self.widens_itself:
            return seen, found, Widened(-found.denoised, pulled, torch.zeros_like(found.value))
        return seen, found, widen(seen, -found.denoised, pulled, sigma, slope_at, together=True)

    def _evaluate(self, log_densities: Tensor, x: Tensor, sigma: float, z: Tensor | None) -> Tensor:
        given = dict(zip(self.leaves, (-log_densities).unbind(1), strict=True))
        with evaluating(given=given, denoised=(x, z, sigma if self.widens_itself else None)):
            return -self.energy(x, sigma=sigma).double()


class _Together(Energy):
    """Energies at the same points, so that parts which they share, such as one network under several conditions, are evaluated once."""

    has_value = False

    def __init__(self, energies: Sequence[Energy]) -> None:
        super().__init__()
        self.terms = tuple(energies)

    def forward(self, x: Tensor) -> Tensor:
        raise ExpressionError("Energies that are evaluated together have no common value.")


def combine(slopes: Tensor, scores: Tensor) -> Tensor:
    r"""Returns $\sum_i F_i s_i$, with the shape of points."""
    return (slopes.to(scores).view(*slopes.shape, *[1] * (scores.ndim - 2)) * scores).sum(1)


def products(left: Tensor, right: Tensor) -> Tensor:
    r"""Returns inner products of vectors with shape $(B, M, *)$, with shape $(B, M)$."""
    products = left.double() * right.double()
    return products.reshape(*products.shape[:2], -1).sum(2)


def rise(before: Tensor, after: Tensor) -> Tensor:
    """Returns how much a log density has risen; where it is 0 now its logarithm has fallen by infinity, where it was 0 nothing counts."""
    return torch.where(after == -torch.inf, -torch.inf, torch.where(before == -torch.inf, 0.0, after - before))
