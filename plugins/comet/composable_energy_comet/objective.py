r"""COMET's training objective: the inner descent from a picture's latents must reproduce the picture."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composable_energy.errors import OptionError
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy.sampling import Noise
from composable_energy_comet.component import TargetEnergy, joint_minimum
from composable_energy_comet.conv import SPREAD, ConvEnergy, descent_iterates, descent_step
from composable_energy_comet.model import Comet
from composable_energy_image.metrics import check_pictures
from composable_energy_training import Batch, Loss, Objective

_EDGES = 6.0  # weight of differences of neighbors
_WIDTH = 0.03  # differences below it, in units of [0, 1], count quadratically


def squared_error(reached: Tensor, x: Tensor) -> Tensor:
    """Returns the mean squared error of each picture, with shape $(B,)$."""
    return (reached - x).square().flatten(1).mean(1)


def charbonnier(reached: Tensor, x: Tensor) -> Tensor:
    r"""Returns the mean of $\sqrt{d^2 + w^2}$ over the differences $d$ of each picture, with $w = 0.03$, with shape $(B,)$.

    Large differences, as at edges, count linearly, so that small ones, such as those of light, keep their influence.

    References:
        Two deterministic half-quadratic regularization algorithms for computed imaging (Charbonnier et al., 1994),
        https://doi.org/10.1109/ICIP.1994.413553
    """
    return ((reached - x).square() + _WIDTH**2).sqrt().flatten(1).mean(1)


def edge_error(reached: Tensor, x: Tensor) -> Tensor:
    r"""Returns the mean squared error of each picture, and six times that of differences of neighboring pixels, with shape $(B,)$.

    Blurred objects have the right colors at most pixels, but not the right edges, and edges are what distinguishes a ball from a box.

    References:
        Deep multi-scale video prediction beyond mean square error (Mathieu et al., 2016), https://arxiv.org/abs/1511.05440, section 3.2
    """
    d = reached - x
    edges = d.diff(dim=2).square().flatten(1).mean(1) + d.diff(dim=3).square().flatten(1).mean(1)
    return d.square().flatten(1).mean(1) + _EDGES * edges


class Decomposition(Objective):
    r"""The reconstruction error of the inner descent, for the picture $x$ that was encoded:

    $$\Bigl\langle \ell\bigl(x_n - \nabla \sum_k E(x_n, z_k),\; x\bigr) \Bigr\rangle_n, \qquad z = \text{encode}(x)$$

    Gradients of weights and latents pass through the last `truncate` steps; earlier pictures are constants. So the terms of the sum over
    $n$ are independent, and one uniformly drawn term has the same gradient on average. With 3 steps this saves two thirds of the time, and
    memory does not grow with the number of steps. An energy with a closed-form minimum needs no descent. If it has fewer pixels than the
    pictures, its minimum is compared with pictures that are averaged to its size.

    Args:
        iterations: Number of steps of the descent; that of the energy if None.
        iterates: The iterates to compare: one at `"random"`, the same for a whole batch; `"all"`, as in the paper; or the `"last"`.
        truncate: Number of steps that the gradient passes through.
        reconstruction: The error: a function of reconstructions and pictures, both with shape $(B, C, S, S)$, that returns shape $(B,)$.
            Reconstructions are not clamped to [0, 1], so that overshooting is penalized.
        cover: Weight of the mean share of pixels that components other than the first take, for energies with targets. It leaves to the
            ground what the ground explains, so that objects of two pictures do not cover one another with pieces of ground.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, equation 4 and
        algorithm 1; the random iterate is our addition.
    """

    def __init__(
        self,
        iterations: int | None = None,
        iterates: Literal["random", "all", "last"] = "random",
        truncate: int = 1,
        reconstruction: Callable[[Tensor, Tensor], Tensor] = squared_error,
        cover: float = 0.0,
    ) -> None:
        self.iterations = None if iterations is None else check_integer("iterations", iterations)
        self.iterates, self.truncate = check_choice("iterates", iterates, ("random", "all", "last")), check_integer("truncate", truncate)
        self.reconstruction, self.cover = reconstruction, check_number("cover", cover, least=0)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss, with its first part, the error of reconstruction, as the scalar `error`.

        Raises:
            OptionError: The model is not a `Comet`, pictures are not in [0, 1], or `cover` is set and its energy has no targets.
        """
        if not isinstance(model, Comet):
            raise OptionError(f"Decomposition trains a Comet, got {type(model).__name__}.")
        with torch.enable_grad():
            encoder = model.encoder
            z = encoder(check_pictures("This model", encoder, batch.x, (encoder.channels, encoder.size, encoder.size)))
            if isinstance(model.energy, TargetEnergy):
                pictures, weights = model.energy.decode_targets(z)
                averaged = F.adaptive_avg_pool2d(batch.x, model.energy.size)
                value = error = self.reconstruction(joint_minimum(pictures, weights), averaged).mean()
                if self.cover:
                    value = error + self.cover * (1 - weights.softmax(1)[:, 0]).mean()
            elif self.cover:
                raise OptionError(f"cover needs an energy with targets, a quadratic or a window energy; {model.energy} has none.")
            else:
                value = error = self.descent_loss(model.energy, z, batch.x, batch.noise)
        return Loss(value, {"error": error.detach()})

    def descent_loss(self, energy: ConvEnergy, z: Tensor, x: Tensor, noise: Noise) -> Tensor:
        """Returns the mean error of the iterates, with shape $()$, for latents with a graph, with shape $(B, K, D)$.

        The noise is that of the start and of the random iterate.
        """
        iterations = energy.iterations if self.iterations is None else self.iterations
        if self.iterates == "random":  # keyed by the step alone, so that all parts and ranks of a batch draw the same
            drawn = noise.for_chains(range(1)).child("iterate").uniform(torch.zeros(1))
            ends = [1 + min(int(drawn.item() * iterations), iterations - 1)]
        else:
            ends = [iterations] if self.iterates == "last" else list(range(1, iterations + 1))
        before = list(descent_iterates(energy, z, energy.draw_start(x, noise.child("start"), SPREAD), max(0, ends[-1] - self.truncate)))
        errors = []
        for end in ends:
            first = max(0, end - self.truncate)
            reached = before[first]
            for n in range(first, end):
                reached = descent_step(energy, z, reached if n == first else reached.clamp(0, 1), graph=True)
            errors.append(self.reconstruction(reached, x).mean())
        return torch.stack(errors).mean()
