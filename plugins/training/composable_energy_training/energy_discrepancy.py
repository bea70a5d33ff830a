r"""Energy discrepancy: contrasts data with points that noise moved there and back, without chains and without gradients of energies."""

import math

import torch
from torch import Tensor, nn

from composable_energy.options import check_integer, check_number
from composable_energy_training.objective import Batch, Loss, Objective, as_float32, get_conditions, require_energy


class EnergyDiscrepancy(Objective):
    r"""Compares the energy of each point $x$ with those of $M$ points around a noisy copy of it (Schröder et al., 2023):

    $$\Bigl\langle \log \Bigl( \frac wM + \frac1M \sum_{j=1}^M e^{E(x) - E(x + \sqrt t\, \xi + \sqrt t\, \xi_j)} \Bigr) \Bigr\rangle$$

    with standard normal $\xi$ and $\xi_j$. For many points $M$ its minimum is $E = -\log p$ up to a constant. A small $t$ approaches score
    matching, which does not see the weights of separate modes; a large $t$ approaches maximum likelihood, with a larger variance. No chains
    are needed, and no gradient with respect to points, so a step is cheap. In many dimensions most noisy points are far from the data; a
    network may then tell them apart by the noise alone, so choose $t$ below the distance between neighbours.

    Args:
        variance: $t$, in units of the squares of the points.
        particles: $M$.
        stabilizer: $w$; it bounds the loss from below and biases little if $M$ is large.
        condition: An attribute of the data that becomes the condition `y` of the energy.

    References:
        Energy discrepancies: a score-independent loss for energy-based models (Schröder et al., 2023), https://arxiv.org/abs/2307.06431
    """

    def __init__(self, variance: float, *, particles: int = 16, stabilizer: float = 1.0, condition: str | None = None) -> None:
        self.variance, self.particles = check_number("variance", variance, above=0), check_integer("particles", particles)
        self.stabilizer, self.condition = check_number("stabilizer", stabilizer, least=0), condition

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are `margin`, the mean of $E(x_j) - E(x)$ over the noisy points, and `magnitude`, the mean
        absolute energy.
        """
        conditions, scale = get_conditions(require_energy(model), batch, self.condition), math.sqrt(self.variance)
        centers = batch.x + scale * batch.noise.child("there").normal(batch.x)
        back = batch.noise.child("back")
        points = torch.stack([batch.x, *(centers + scale * back.normal(centers, stream) for stream in range(self.particles))], 1)
        energies = evaluate_many(model, points, conditions)
        differences = energies[:, :1] - energies[:, 1:]
        if self.stabilizer:
            differences = torch.cat([differences, differences.new_full((len(differences), 1), math.log(self.stabilizer))], 1)
        value = differences.logsumexp(1).mean() - math.log(self.particles)
        found = energies.detach()
        return Loss(value, {"margin": (found[:, 1:].mean(1) - found[:, 0]).mean(), "magnitude": found.abs().mean()})


def evaluate_many(model: nn.Module, points: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    """Returns the energies, with shape $(B, K)$, of points with shape $(B, K, *)$ in one call; conditions have one value for each row."""
    rows, count = points.shape[:2]
    repeated = {name: value.repeat_interleave(count, 0) for name, value in conditions.items()}
    return as_float32(model(points.flatten(0, 1), **repeated)).view(rows, count)
