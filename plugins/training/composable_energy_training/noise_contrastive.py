r"""Noise-contrastive estimation: learns a normalized density by telling data from draws of a known one."""

import math

import torch.nn.functional as F
from torch import nn

from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy_training.noise_distributions import NoiseDistribution
from composable_energy_training.objective import Batch, Loss, Objective, as_float32, get_conditions, require_energy


class NoiseContrastive(Objective):
    r"""Logistic regression of data against draws of a noise with known density $q$ (Gutmann & Hyvärinen, 2010):

    $$-\langle \log \operatorname{sigmoid} G(x) \rangle - \nu \langle \log \operatorname{sigmoid}(-G(x')) \rangle,
      \qquad G(x) = -E(x) - \log q(x) - \log \nu,$$

    over data $x$ and $\nu$ draws $x'$ of $q$ for each. At the minimum $E = -\log p$ with the constant included, so $\log Z = 0$: energies
    of several trainings can be compared and mixed without calibration. The energy must be able to take any level, for instance by the bias
    of its last layer. No chains are needed. The nearer the noise is to the data, the smaller is the error; noise that is easily told from
    the data teaches little. A `GaussianNoise` serves in few dimensions, a `FlowNoise` in more (Gao et al., 2020).

    Args:
        noise: The noise $q$; it is not trained.
        ratio: $\nu$.
        condition: An attribute of the data that becomes the condition `y` of the energy, for data and noise alike; $E = -\log p(x \mid y)$.

    Raises:
        OptionError: The noise is none, or the ratio no whole number of at least 1.

    References:
        Noise-contrastive estimation: a new estimation principle for unnormalized statistical models (Gutmann & Hyvärinen, 2010),
        https://proceedings.mlr.press/v9/gutmann10a.html
        Flow contrastive estimation of energy-based models (Gao et al., 2020), https://arxiv.org/abs/1912.00589
    """

    def __init__(self, noise: NoiseDistribution, *, ratio: int = 1, condition: str | None = None) -> None:
        if not isinstance(noise, NoiseDistribution):
            raise OptionError(f"noise must be a GaussianNoise, a FlowNoise or another NoiseDistribution, got {type(noise).__name__}.")
        self.noise, self.ratio, self.condition = noise, check_integer("ratio", ratio), condition

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are `accuracy`, the share of data and noise that is recognized at equal numbers, `margin`, the
        mean of $E(x') - E(x)$, and `magnitude`, the mean absolute energy.
        """
        energy, keyed = require_energy(model), batch.noise.child("noise")
        conditions = get_conditions(energy, batch, self.condition)
        drawn = [self.noise.draw(batch.x, keyed, stream) for stream in range(self.ratio)]
        real, real_noise = as_float32(energy(batch.x, **conditions)), self.noise.log_prob(batch.x)
        fake = [as_float32(energy(x, **conditions)) for x, _ in drawn]
        offset = math.log(self.ratio)
        value = F.softplus(real + real_noise + offset).mean()
        for low, (_, log_prob) in zip(fake, drawn, strict=True):
            value = value + F.softplus(-low - log_prob - offset).mean()
        right = (-real.detach() > real_noise).float().mean() + (-fake[0].detach() < drawn[0][1]).float().mean()
        scalars = {
            "accuracy": right / 2,
            "margin": fake[0].detach().mean() - real.detach().mean(),
            "magnitude": (real.detach().abs().mean() + fake[0].detach().abs().mean()) / 2,
        }
        return Loss(value, scalars)
