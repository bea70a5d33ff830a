"""The interface of quadratic energies: each component has a target color and a weight at each pixel."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from composable_energy_comet.component import ComponentEnergy

_LEAST = -40.0  # a log share below any rounding; smaller ones have subnormal gradients, which slow convolutions down by half


def joint_minimum(pictures: Tensor, weights: Tensor) -> Tensor:
    """Returns the minimum of a sum of quadratic energies, with shape $(B, C, S, S)$.

    Args:
        pictures: Targets, with shape $(B, K, C, S, S)$, of one model or several.
        weights: Log weights, with shape $(B, K, 1, S, S)$.
    """
    least = weights.detach().amax(1, keepdim=True) + _LEAST
    return (weights.maximum(least).softmax(1) * pictures).sum(1)


class TargetEnergy(ComponentEnergy):
    r"""Abstract quadratic energy of one component, $E(x, z) = \tfrac12 \sum_p w_p(z)\, |x_p - r_p(z)|^2$. A subclass decodes $r$ and $w$.

    The sum over components has its minimum at $x_p = \sum_k w_{kp} r_{kp} / \sum_k w_{kp}$. So training needs no loop and no second
    derivatives, and the masks are $w_{kp} / \sum_j w_{jp}$.
    """

    @abstractmethod
    def decode_targets(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the targets $r$ of components, with shape $(B, K, C, S, S)$, and log weights with shape $(B, K, 1, S, S)$.

        Args:
            z: Latents, with shape $(B, K, D)$.
        """

    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        pictures, weights = self.decode_targets(z)
        return (weights.exp() * (x[:, None] - pictures).square()).flatten(2).sum(2) / 2

    def minimum(self, z: Tensor) -> Tensor:
        """Returns the pictures of lowest energy, with shape $(B, C, S, S)$.

        Args:
            z: Latents, with shape $(B, K, D)$.
        """
        return joint_minimum(*self.decode_targets(z))
