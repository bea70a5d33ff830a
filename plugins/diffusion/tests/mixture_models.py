"""Diffusion models with a closed form: Gaussian mixtures under the forward process of each schedule, written down a second time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy_diffusion import EDM, Cosine, DiscreteVP, LinearVP, RectifiedFlow, Schedule, VarianceExploding

F64 = torch.float64
Path = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mixture:
    """Gaussians with weights (K,), means (K, d) and standard deviations (K,)."""

    weights: Tensor
    means: Tensor
    sds: Tensor

    def log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the normalised log density with noise, with shape (B,)."""
        return self._log_joint(x, sigma).logsumexp(1)

    def clean(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the expected clean points, by the posterior over components."""
        posterior = self._log_joint(x, sigma).softmax(1)
        shrink = self.sds**2 / (self.sds**2 + sigma[:, None] ** 2)
        return (posterior[..., None] * (self.means + shrink[..., None] * (x[:, None] - self.means))).sum(1)

    def draw(self, n: int, seed: int = 0) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, True, generator=g)
        return self.means[k] + self.sds[k, None] * torch.randn(n, self.means.shape[1], generator=g, dtype=F64)

    def _log_joint(self, x: Tensor, sigma: Tensor) -> Tensor:
        variance = self.sds**2 + sigma[:, None] ** 2
        square = (x[:, None] - self.means).square().sum(2)
        return self.weights.log() - square / (2 * variance) - x.shape[1] / 2 * (2 * math.pi * variance).log()


def mixture(d: int, seed: int = 0, components: int = 3) -> Mixture:
    g = torch.Generator().manual_seed(seed)
    weights, sds = (torch.rand(components, generator=g, dtype=F64) + 0.3 for _ in range(2))
    return Mixture(weights / weights.sum(), torch.randn(components, d, generator=g, dtype=F64), sds)


def _preserving(signal: Tensor) -> tuple[Tensor, Tensor]:
    return signal, (1 - signal**2).sqrt()


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    return _preserving(torch.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008))


def _ddpm(t: Tensor) -> tuple[Tensor, Tensor]:
    signal = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
    logs = ((1 - signal) / signal).log() / 2
    below = t.floor().long().clamp(0, 998)
    return _preserving((1 + torch.lerp(logs[below], logs[below + 1], t - below).exp() ** 2).rsqrt())


def _edm(t: Tensor) -> tuple[Tensor, Tensor]:
    sigma = (4 * t).exp()
    return (sigma**2 + 0.25).rsqrt(), sigma * (sigma**2 + 0.25).rsqrt()


PROCESSES: dict[str, tuple[Schedule, Path, float]] = {  # the schedule, a(t) and s(t), and what the model's time is multiplied by
    "vp": (LinearVP(), lambda t: _preserving((-(t**2) * 19.9 / 4 - t * 0.1 / 2).exp()), 1),
    "vp, 999": (LinearVP(time_scale=999), lambda t: _preserving((-(t**2) * 19.9 / 4 - t * 0.1 / 2).exp()), 999),
    "cosine": (Cosine(), _cosine, 1),
    "vp-discrete": (DiscreteVP(), _ddpm, 1),
    "ve": (VarianceExploding(), lambda t: (torch.ones_like(t), t), 1),
    "edm": (EDM(0.5), _edm, 1),
    "flow": (RectifiedFlow(), lambda t: (1 - t, t), 1),
    "flow to data": (RectifiedFlow(data_last=True, time_scale=1000), lambda t: (t, 1 - t), 1000),
}


def network(law: Mixture, path: Path, parametrisation: str, time_scale: float = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns the exact model of a mixture."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        t = t / time_scale
        a, s = (part[:, None] for part in path(t))
        sigma = (s / a)[:, 0]
        clean = law.clean(x / a, sigma)
        noise = (x - a * clean) / s
        if parametrisation == "flow":
            with torch.enable_grad():
                t = t.detach().requires_grad_()
                rates = [torch.autograd.grad((part + 0 * t).sum(), t, retain_graph=True)[0] for part in path(t)]
            return rates[0][:, None] * clean + rates[1][:, None] * noise
        if parametrisation == "edm":  # equation 7 of Karras et al., with a data_std of .5
            sigma = sigma[:, None]
            skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
            return (clean - skip * x / a) / out
        return {"epsilon": noise, "x0": clean, "v": a * noise - s * clean, "score": -noise / s}[parametrisation]

    return model
