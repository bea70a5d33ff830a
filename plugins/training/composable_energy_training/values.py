"""Value heads: predictions of numbers, with their widths, from noisy points; `composable_energy.GaussianHead` makes energies of them."""

from __future__ import annotations

from torch import Tensor, nn

from composable_energy.checks import check_count
from composable_energy.errors import ShapeError
from composable_energy_training.denoising import levels_of, noisy
from composable_energy_training.inputs import labels_of, wide
from composable_energy_training.objective import Batch, Loss, Objective

__all__ = ["ValueHeads"]

_LOG_WIDTHS = (-5.0, 1.0)  # those of composable_energy.GaussianHead


class ValueHeads(Objective):
    r"""Negative log likelihood of numbers, in nats for each row up to a constant, at noisy points $x + \sigma \xi$ with $\log \sigma$
    uniform between two levels: $\sum_a \tfrac12 (v_a - f_a)^2 / w_a^2 + \log w_a$.

    So a head at level $\sigma$ becomes the Gaussian that is nearest to the posterior of the numbers given the noisy point. The model is
    called with points and levels, `model(x, sigma)`, and returns the means $f$ and then the log widths $\log w$, clamped to $[-5, 1]$,
    with shape $(B, 2 \cdot \text{dims})$. A row with a NaN adds nothing.

    Args:
        name: Of the numbers in the data, whose shape is $(B,)$ or $(B, \text{dims})$.
        dims: How many there are.
        sigma_min: The lowest level, in units of the points.
        sigma_max: The highest.

    Raises:
        OptionError: The levels are not positive and in order, or `dims` is below 1.

    References:
        Estimating the mean and variance of the target probability distribution (Nix & Weigend, 1994).
    """

    def __init__(self, name: str, dims: int, sigma_min: float, sigma_max: float) -> None:
        self.name, self.dims, self.levels = name, check_count("dims", dims, least=1), levels_of(sigma_min, sigma_max)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalars are `likelihood`, the loss itself, and `error`, the root mean square of $v - f$.

        Raises:
            OptionError: The data lack the numbers.
            ShapeError: The numbers, or what the model returns, have another shape.
        """
        x, sigma, _ = noisy(batch.x, self.levels, batch.noise)
        values, told = wide(labels_of(batch, self.name)), wide(model(x, sigma))
        values = values[:, None] if values.ndim == 1 else values
        for what, tensor, columns in ((f"{self.name} has", values, self.dims), ("The model returned", told, 2 * self.dims)):
            if tensor.shape != (len(x), columns):
                raise ShapeError(f"{what} shape {tuple(tensor.shape)}; expected {(len(x), columns)} for {self.dims} numbers of each point.")
        known = values.isfinite().all(1, keepdim=True)
        error = (values - told[:, : self.dims]).masked_fill(~known, 0.0)
        log_widths = told[:, self.dims :].clamp(*_LOG_WIDTHS)
        value = self._sum(error, log_widths * known)
        squared = error.detach().square().sum() / (known.sum() * self.dims).clamp_min(1)
        return Loss(value, {"likelihood": value.detach(), "error": squared.sqrt()})

    @staticmethod
    def _sum(error: Tensor, log_widths: Tensor) -> Tensor:
        return ((error * (-log_widths).exp()).square() / 2 + log_widths).sum() / len(error)
