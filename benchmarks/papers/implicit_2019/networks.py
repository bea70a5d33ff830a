"""Networks of about 26,000 weights: a classifier that is an energy, a denoising energy, an autoencoder, an autoregressive network."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.implicit_2019.picture_sets import LEVELS
from composable_energy_classification import Classifier

WIDTH, PIXELS, DIGITS = 128, 64, 10


class DigitEnergy(ce.Energy):
    r"""The energy $-\log \sum_y e^{f_y(x)}$ of a classifier with two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (1, 8, 8)
        hidden = (nn.Linear(PIXELS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.net = ce.shared(nn.Sequential(nn.Flatten(), _Centred(), *hidden, nn.Linear(WIDTH, DIGITS)))

    def forward(self, x: Tensor) -> Tensor:
        return -self.net(x).logsumexp(1)

    def logits(self, x: Tensor) -> Tensor:
        """Returns $f(x)$, with shape $(B, 10)$."""
        return self.net(x)

    def classifier(self) -> Classifier:
        """Returns the classifier whose refinement moves on the energy."""
        return Classifier(ce.ClassifierEnergy(self.net, base=self, labels=DIGITS))


class DenoisingEnergy(ce.Energy):
    r"""The energy $\lvert x - f(x) \rvert^2 / 2 (\sigma^2 + s^2)$ of a network $f$ with one hidden layer, for a noise level $\sigma$."""

    def __init__(self, width: int = 200, spread: float = 0.14) -> None:
        super().__init__()
        self.event_shape, self.spread = (1, 8, 8), spread
        self.denoiser = nn.Sequential(nn.Flatten(), _Centred(), nn.Linear(PIXELS, width), nn.SiLU(), nn.Linear(width, PIXELS))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) - self.denoiser(x)).square().sum(1) / (2 * (sigma.square() + self.spread**2))


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


class Autoencoder(nn.Module):
    """An autoencoder with a code of 16 numbers; its score is the squared error of the reconstruction."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), _Centred(), nn.Linear(PIXELS, 160), nn.SiLU(), nn.Linear(160, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 160), nn.SiLU(), nn.Linear(160, PIXELS))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the errors, with shape $(B,)$."""
        return (self.decoder(self.encoder(x)) - x.flatten(1)).square().sum(1)


class Autoregressive(nn.Module):
    r"""A masked autoregressive network (MADE; Germain et al., 2015) with mixtures of two discretised logistics for the 17 levels.

    Its score is $-\log p(x)$, an exact log-likelihood of pictures with 17 levels.

    References:
        MADE: masked autoencoder for distribution estimation (Germain et al., 2015), https://arxiv.org/abs/1502.03509
    """

    masks: tuple[Tensor, ...]

    def __init__(self, width: int = 52, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts
        sizes = (PIXELS, width, width, PIXELS * 3 * parts)
        degrees = [torch.arange(PIXELS), *(torch.arange(width) * (PIXELS - 1) // width for _ in range(2))]
        last = torch.arange(PIXELS).repeat_interleave(3 * parts)
        masks = [(after[:, None] >= before[None]).float() for before, after in itertools.pairwise(degrees)]
        masks.append((last[:, None] > degrees[-1][None]).float())
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for i, mask in enumerate(masks):
            self.register_buffer(f"mask{i}", mask)

    def forward(self, x: Tensor) -> Tensor:
        r"""Returns $-\log p(x)$, with shape $(B,)$."""
        return -self.log_probabilities(x).sum(1)

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Returns the log probability of each pixel given those before it, with shape $(B, 64)$."""
        x = x.flatten(1)
        h = 2 * x - 1
        for i, layer in enumerate(self.layers):
            h = F.linear(h if i == 0 else F.silu(h), layer.weight * getattr(self, f"mask{i}"), layer.bias)
        share, mean, log_width = h.view(len(x), PIXELS, 3, self.parts).unbind(2)
        inverse, half = torch.exp(-log_width.clamp(-6, 3)), 0.5 / (LEVELS - 1)
        at = x.unsqueeze(2)
        upper, lower = (at - mean + half) * inverse * (LEVELS - 1), (at - mean - half) * inverse * (LEVELS - 1)
        cdf_upper = torch.where(at >= 1 - half, torch.ones_like(upper), upper.sigmoid())
        cdf_lower = torch.where(at <= half, torch.zeros_like(lower), lower.sigmoid())
        return (share.log_softmax(2) + (cdf_upper - cdf_lower).clamp_min(1e-9).log()).logsumexp(2)


def weights(model: nn.Module) -> int:
    """Returns the number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())
