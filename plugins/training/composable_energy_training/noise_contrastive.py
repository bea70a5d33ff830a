r"""Contrasts of data with noise, without chains and keyed by row and step.

Noise-contrastive estimation learns a normalized density by telling data from draws of a known one; energy discrepancy compares data with
points that noise moved there and back, without gradients of energies.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise
from composable_energy_training.objective import Batch, Loss, Objective, RankContext, as_float32, get_conditions, require_energy


class NoiseDistribution(nn.Module, ABC):
    r"""Abstract noise for points of one shape: a function of standard normal numbers $z$. A subclass implements `push` and `pull`."""

    def __init__(self, event_shape: torch.Size) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @abstractmethod
    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns points $x(z)$ with shape $(B, D)$ and $\log \lvert dx/dz \rvert$ with shape $(B,)$."""

    @abstractmethod
    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the normal numbers $z(x)$ with shape $(B, D)$ and $\log \lvert dx/dz \rvert$ with shape $(B,)$."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log densities, with shape $(B,)$, of points with shape $(B, *)$."""
        self._check(x)
        z, log_det = self.pull(as_float32(x).flatten(1))
        return _log_normal(z) - log_det

    @torch.no_grad()
    def draw(self, like: Tensor, noise: Noise, stream: int = 0) -> tuple[Tensor, Tensor]:
        """Returns points with the shape of `like`, $(B, *)$, and their log densities; `stream` is the number of the draw at this step."""
        self._check(like)
        z = as_float32(noise.normal(like, stream)).flatten(1)
        x, log_det = self.push(z)
        return x.view_as(like).to(like), _log_normal(z) - log_det

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.event_shape:
            raise ShapeError(f"The noise has points of shape {tuple(self.event_shape)}, got points of shape {tuple(x.shape[1:])}.")


class GaussianNoise(NoiseDistribution):
    r"""A Gaussian $\mathcal N(\mu, L L^\top)$.

    Args:
        mean: $\mu$, with the shape of a point of $D$ coordinates.
        scale: $L$: a lower triangular matrix with shape $(D, D)$ and a positive diagonal.

    Raises:
        OptionError: The matrix is not lower triangular, or its diagonal not positive.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__(mean.shape)
        if getattr(scale, "shape", None) != (mean.numel(), mean.numel()):
            raise ShapeError(f"scale must have shape {(mean.numel(), mean.numel())} for points of shape {tuple(mean.shape)}.")
        if not bool((scale.diagonal() > 0).all() & scale.isfinite().all() & (scale.triu(1) == 0).all()):
            raise OptionError("scale must be lower triangular with a positive diagonal; for constant coordinates add noise to the data.")
        self.register_buffer("mean", as_float32(mean).detach().flatten().clone())
        self.register_buffer("scale", as_float32(scale).detach().clone())

    @classmethod
    def fit(cls, x: Tensor, *, widen: float = 1.0, jitter: float = 1e-3) -> GaussianNoise:
        """Returns a Gaussian with the mean and covariance of points with shape $(N, *)$.

        Args:
            widen: A factor of all standard deviations; above 1 the noise covers more than the data.
            jitter: The least standard deviation in any direction, as a share of the largest of a coordinate.

        Raises:
            OptionError: There are fewer than two points, or they are all equal.
        """
        check_number("widen", widen, above=0)
        if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 2 or not x.is_floating_point() or not bool(x.isfinite().all()):
            got = f"shape {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise OptionError(f"A fit needs a tensor of at least two points, all finite and floating, with shape (N, *); got {got}.")
        flat = x.detach().flatten(1).double()
        covariance = torch.cov(flat.T).reshape(flat.shape[1], flat.shape[1])
        floor = check_number("jitter", jitter, least=0) ** 2 * covariance.diagonal().max()
        scale, failed = torch.linalg.cholesky_ex(covariance + floor * torch.eye(len(covariance)).to(flat))
        if int(failed) or not bool(scale.isfinite().all()):
            raise OptionError("The covariance of the points is singular: increase jitter, or add noise to the points.")
        return cls(flat.mean(0).view(x.shape[1:]).to(as_float32(x)), widen * scale.to(as_float32(x)))

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean + z @ self.scale.to(z).T, self._log_det(z)

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.solve_triangular(self.scale, (x - self.mean).T, upper=False).T, self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.scale.diagonal().log().sum().expand(len(x))


class FlowNoise(NoiseDistribution):
    r"""A normalizing flow of affine coupling layers behind a Gaussian (Dinh et al., 2017); untrained it is that Gaussian.

    Each layer scales and shifts one half of the coordinates by functions of the other half; odd layers exchange the halves.

    Args:
        gaussian: The Gaussian that whitens points.
        layers: The number of coupling layers.
        hidden: Units of the two hidden layers of each.

    References:
        Density estimation using Real NVP (Dinh et al., 2017), https://arxiv.org/abs/1605.08803
    """

    halves: Tensor

    def __init__(self, gaussian: GaussianNoise, *, layers: int = 6, hidden: int = 64) -> None:
        super().__init__(gaussian.event_shape)
        size = self.event_shape.numel()
        self.gaussian = gaussian
        self.nets = nn.ModuleList(_coupling(size, check_integer("hidden", hidden)) for _ in range(check_integer("layers", layers)))
        self.register_buffer("halves", (torch.arange(size) % 2).to(gaussian.mean.dtype))
        self.to(gaussian.mean)

    @classmethod
    def fit(
        cls, x: Tensor, *, layers: int = 6, hidden: int = 64, steps: int = 1000, batch_size: int = 128, rate: float = 1e-3, seed: int = 0
    ) -> FlowNoise:
        """Returns a flow that is trained on points by maximum likelihood, with the weights that are best on a held-out tenth of them.

        Raises:
            OptionError: There are too few points, or they are constant.
        """
        batch_size, rate = check_integer("batch_size", batch_size), check_number("rate", rate, above=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            GaussianNoise.fit(x)  # refuses what is no data
            if len(x) < 4:
                raise OptionError(f"A flow is fitted to one part of the points and tested on the others: give at least four, got {len(x)}.")
            x = as_float32(x.detach())[torch.randperm(len(x))]
            test, train = x.tensor_split([max(2, round(len(x) / 10))])
            flow = cls(GaussianNoise.fit(train), layers=layers, hidden=hidden)
            flow._train(train, test, check_integer("steps", steps), batch_size, rate)
        return flow.requires_grad_(False).eval()

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for number, net in enumerate(self.nets):
            log_scale, shift = self._numbers(net, z, number)
            z, total = z * log_scale.exp() + shift, total + log_scale.sum(1)
        x, log_det = self.gaussian.push(z)
        return x, total + log_det

    def pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, total = self.gaussian.pull(x)
        for number, net in reversed(list(enumerate(self.nets))):
            log_scale, shift = self._numbers(net, z, number)
            z, total = (z - shift) * (-log_scale).exp(), total + log_scale.sum(1)
        return z, total

    def _numbers(self, net: nn.Module, z: Tensor, number: int) -> tuple[Tensor, Tensor]:
        kept = self.halves if number % 2 else 1 - self.halves
        log_scale, shift = net(z * kept).chunk(2, 1)
        return 2 * (log_scale / 2).tanh() * (1 - kept), shift * (1 - kept)

    def _train(self, train: Tensor, test: Tensor, steps: int, batch_size: int, rate: float) -> None:
        optimizer, best, weights = torch.optim.Adam(self.nets.parameters(), rate), math.inf, None
        for step in range(steps + 1):
            if step % 25 == 0 or step == steps:
                with torch.no_grad():
                    found = -self.log_prob(test).mean().item()
                if found < best:
                    best, weights = found, {name: value.clone() for name, value in self.nets.state_dict().items()}
            optimizer.zero_grad()
            (-self.log_prob(train[torch.randint(len(train), (batch_size,))]).mean()).backward()
            nn.utils.clip_grad_norm_(self.nets.parameters(), 10.0)
            optimizer.step()
        if weights is not None:
            self.nets.load_state_dict(weights)


def _coupling(size: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, 2 * size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)


def _log_normal(z: Tensor) -> Tensor:
    return -z.square().sum(1) / 2 - z.shape[1] * math.log(2 * math.pi) / 2


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

    def begin(self, model: nn.Module, context: RankContext) -> None:
        self.noise = copy.deepcopy(self.noise).to(context.device, torch.promote_types(context.dtype, torch.float32))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        r"""Returns the loss. Its scalars are `accuracy`, the share of data and noise that is recognized at equal numbers, `margin`, the
        mean of $E(x') - E(x)$, `magnitude`, the mean absolute energy, and `excess` of the loss over that of the noise itself.
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
        at_data, at_noise = real.detach(), fake[0].detach()
        right = (-at_data > real_noise).float().mean() + (-at_noise < drawn[0][1]).float().mean()
        margin, magnitude = at_noise.mean() - at_data.mean(), (at_data.abs().mean() + at_noise.abs().mean()) / 2
        most = 1.02 * (math.log1p(self.ratio) + self.ratio * math.log1p(1 / self.ratio))  # the loss where the energy is that of the noise
        return Loss(value, {"accuracy": right / 2, "margin": margin, "magnitude": magnitude, "excess": value.detach() - most})


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
        """Returns the loss. Its scalars are `margin`, the mean of $E(x_j) - E(x)$ over noisy points, `magnitude` and `excess`."""
        conditions, scale = get_conditions(require_energy(model), batch, self.condition), math.sqrt(self.variance)
        centers, back = batch.x + scale * batch.noise.child("there").normal(batch.x), batch.noise.child("back")
        points = torch.stack([batch.x, *(centers + scale * back.normal(centers, stream) for stream in range(self.particles))], 1)
        repeated = {name: value.repeat_interleave(points.shape[1], 0) for name, value in conditions.items()}
        energies = as_float32(model(points.flatten(0, 1), **repeated)).view(points.shape[:2])
        differences = energies[:, :1] - energies[:, 1:]
        if self.stabilizer:
            differences = torch.cat([differences, differences.new_full((len(differences), 1), math.log(self.stabilizer))], 1)
        value, found = differences.logsumexp(1).mean() - math.log(self.particles), energies.detach()
        excess = value.detach() - math.log1p(self.stabilizer / self.particles) + 0.002  # over the loss of a constant
        return Loss(value, {"margin": (found[:, 1:].mean(1) - found[:, 0]).mean(), "magnitude": found.abs().mean(), "excess": excess})
