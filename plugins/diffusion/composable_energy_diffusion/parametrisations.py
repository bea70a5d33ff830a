r"""What a diffusion model returns, and the noise and the clean point that follow from it.

Each kind of output is a mixture $p\, x_0 + q\, \epsilon$ of the clean point and the noise in $x_t = a\, x_0 + s\, \epsilon$. These are two
linear equations, so that every kind gives

$$\hat\epsilon = \frac{a\, \text{output} - p\, x_t}{a q - s p}, \qquad \hat x_0 = \frac{q\, x_t - s\, \text{output}}{a q - s p},$$

and the gradient of the energy of $y = x_t / a$ at the noise level $\sigma = s / a$ is $\hat\epsilon / \sigma = (y - \hat x_0) / \sigma^2$.

| name | output |
|---|---|
| `epsilon` | the noise $\epsilon$ |
| `x0` | the clean point $x_0$ |
| `v` | $a\, \epsilon - s\, x_0$ (Salimans & Ho, 2022, https://arxiv.org/abs/2202.00512) |
| `flow` | the velocity of the schedule, $a'(t)\, x_0 + s'(t)\, \epsilon$; $\epsilon - x_0$ for `RectifiedFlow` |
| `score` | $\nabla_{x_t} \log p_t(x_t) = -\epsilon / s$ |
| `edm` | the raw network of the schedule `EDM`, $(x_0 - d^2 a^2 y) / (\sigma d a)$ with $a = 1 / \sqrt{\sigma^2 + d^2}$ |
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_choice
from composable_energy_diffusion.schedules import EDM, Schedule


def _raw(schedule: Schedule, sigma: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(schedule, EDM):
        raise OptionError(f"The parametrisation edm is that of the schedule edm, got the schedule {schedule.name}.")
    a = schedule.scale(sigma)
    return sigma * a / schedule.data_std, -schedule.data_std * a


PARAMETRISATIONS: Mapping[str, Callable[[Schedule, Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda schedule, sigma: (torch.zeros_like(sigma), torch.ones_like(sigma)),
    "x0": lambda schedule, sigma: (torch.ones_like(sigma), torch.zeros_like(sigma)),
    "v": lambda schedule, sigma: (-sigma * schedule.scale(sigma), schedule.scale(sigma)),
    "flow": lambda schedule, sigma: schedule.rates(sigma),
    "score": lambda schedule, sigma: (torch.zeros_like(sigma), -1 / (sigma * schedule.scale(sigma))),
    "edm": _raw,
}


def noise_of(output: Tensor, x: Tensor, sigma: Tensor, parametrisation: str, schedule: Schedule) -> Tensor:
    r"""Returns $\hat\epsilon$, with shape $(B, *)$, by the output for points $y = x_0 + \sigma \epsilon$ at levels with shape $(B,)$.

    Raises:
        OptionError: The parametrisation is unknown, or does not fit the schedule.
    """
    p, q = PARAMETRISATIONS[check_choice("parametrisation", parametrisation, PARAMETRISATIONS)](schedule, sigma)
    if output.shape != x.shape:
        twice = output.ndim == x.ndim > 1 and output.shape[1] == 2 * x.shape[1] and output.shape[2:] == x.shape[2:]
        hint = " If the second half of its channels is a variance, return the first half alone." if twice else ""
        raise ShapeError(f"The model gave {tuple(output.shape)} for points of shape {tuple(x.shape)}; expected the same.{hint}")
    scale = 1 / (q - sigma * p)  # the equations divided by a: y = x0 + sigma epsilon
    return unsqueeze_to(scale, x) * output - unsqueeze_to(scale * p, x) * x
