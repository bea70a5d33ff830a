r"""COMET's objective: what a picture's own latents descend to is to be that picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy.sampling import Noise
from composable_energy_comet.comet import Comet
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.descent import SPREAD, descents, stepped
from composable_energy_comet.options import one_of, whole
from composable_energy_training import Batch, Loss, Objective

__all__ = ["Decomposition", "charbonnier", "squared_error"]

_WIDTH = 0.03  # of differences, in [0, 1], that count by their square


def squared_error(reached: Tensor, x: Tensor) -> Tensor:
    """Returns the mean square of the error of each picture, with shape $(B,)$."""
    return (reached - x).square().flatten(1).mean(1)


def charbonnier(reached: Tensor, x: Tensor) -> Tensor:
    r"""Returns the mean of $\sqrt{d^2 + w^2}$ over the differences $d$ of each picture, with $w = 0.03$, with shape $(B,)$.

    Large differences, those of edges, count by their size and not by its square, so that small ones, such as those of light, count too.

    References:
        Two deterministic half-quadratic regularization algorithms for computed imaging (Charbonnier et al., 1994),
        https://doi.org/10.1109/ICIP.1994.413553
    """
    return ((reached - x).square() + _WIDTH**2).sqrt().flatten(1).mean(1)


class Decomposition(Objective):
    r"""The error of the inner descent's pictures against the picture $x$ that was encoded:

    $$\Bigl\langle \ell\bigl(x_n - \nabla \sum_k E(x_n, z_k),\; x\bigr) \Bigr\rangle_n, \qquad z = \text{encode}(x)$$

    Gradients of weights and latents go through the last `truncate` steps; pictures before them are constants. So the terms of the sum over
    $n$ are independent, and one that is drawn uniformly gives the same gradient on average for the price of one: with 3 steps it is two
    thirds cheaper, and memory does not grow with their number. An energy whose minimum is known needs no descent.

    Args:
        iterations: Steps of the descent; those of the energy if None.
        iterates: Which iterates are compared: one at `"random"`, the same for all pictures of a batch; `"all"`, as the paper does; or the
            `"last"`.
        truncate: How many steps the gradient goes through.
        reconstruction: The error: a function of pictures that were reached and pictures, both $(B, C, S, S)$, which returns $(B,)$. What is
            reached is not cut to [0, 1], so that what overshoots is pulled back.

    Raises:
        OptionError: An option is out of range.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, equation 4 and
        algorithm 1; drawing one iterate is ours.
    """

    def __init__(
        self,
        iterations: int | None = None,
        iterates: Literal["random", "all", "last"] = "random",
        truncate: int = 1,
        reconstruction: Callable[[Tensor, Tensor], Tensor] = squared_error,
    ) -> None:
        self.iterations = None if iterations is None else whole("iterations", iterations)
        self.iterates, self.truncate = one_of("iterates", iterates, ("random", "all", "last")), whole("truncate", truncate)
        self.reconstruction = reconstruction

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalar is `error`, the loss itself.

        Raises:
            OptionError: The model is no `Comet`.
        """
        if not isinstance(model, Comet):
            raise OptionError(f"Decomposition trains a Comet, which encodes pictures, got {type(model).__name__}.")
        with torch.enable_grad():
            z = model.encoder(batch.x)
            if isinstance(model.energy, ConvEnergy):
                value = self.descent_loss(model.energy, z, batch.x, batch.noise)
            else:
                value = self._error(model.energy.minimum(z), batch.x)
        return Loss(value, {"error": value.detach()})

    def descent_loss(self, energy: ConvEnergy, z: Tensor, x: Tensor, noise: Noise) -> Tensor:
        """Returns the mean error of the iterates, with shape $()$.

        Args:
            energy: The energy.
            z: Latents with a graph, with shape $(B, K, D)$.
            x: The pictures, with shape $(B, C, S, S)$.
            noise: Of the start, and of the iterate that is drawn.
        """
        iterations = energy.iterations if self.iterations is None else self.iterations
        if self.iterates == "random":  # keyed by the step alone: the same for all parts and processes of a batch
            drawn = noise.for_chains(range(1)).child("iterate").uniform(torch.zeros(1))
            ends = [1 + min(int(drawn.item() * iterations), iterations - 1)]
        else:
            ends = [iterations] if self.iterates == "last" else list(range(1, iterations + 1))
        start = energy.begun(x, noise.child("start"), SPREAD)
        before = list(descents(energy, z, start, max(0, ends[-1] - self.truncate)))
        errors = []
        for end in ends:
            first = max(0, end - self.truncate)
            reached = before[first]
            for n in range(first, end):
                reached = stepped(energy, z, reached if n == first else reached.clamp(0, 1), graph=True)
            errors.append(self._error(reached, x))
        return torch.stack(errors).mean()

    def _error(self, reached: Tensor, x: Tensor) -> Tensor:
        return self.reconstruction(reached, x).mean()
