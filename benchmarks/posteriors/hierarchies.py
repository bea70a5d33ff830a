"""Eight schools, a Gaussian process, a mixture with ordered means, Dirichlet-multinomial counts, and the Lotka-Volterra equations."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.posteriors.target import Target, log_normal, numbered

# Effects and standard errors of coaching in eight schools (Rubin, 1981).
SCHOOLS = ((28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0), (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0))


def eight_schools(*, centered: bool) -> Target:
    """Eight schools; the coordinates are $\\mu$, $\\log\\tau$, and the effects or their standardised deviations."""
    effects, errors = (torch.tensor(values, dtype=torch.float64) for values in SCHOOLS)

    def log_density(x: Tensor) -> Tensor:
        mean, log_scale, rest = x[:, :1], x[:, 1:2], x[:, 2:]
        scale = log_scale.exp()
        prior = log_normal(mean, sd=5.0) - torch.log1p((scale / 5).square()) + log_scale
        if centered:
            theta, group = rest, -((rest - mean) / scale).square() / 2 - log_scale
        else:
            theta, group = mean + scale * rest, log_normal(rest)
        return prior.squeeze(1) + group.sum(1) + log_normal(theta, effects.to(x), errors.to(x)).sum(1)

    def center(x: Tensor) -> Tensor:
        return torch.cat([x[:, :2], x[:, :1] + x[:, 1:2].exp() * x[:, 2:]], 1)

    names = ("mu", "log_tau", *numbered("theta", 8))
    if not centered:
        return Target("schools", "eight schools, non-centred", 10, log_density, names, center)
    about = {"reference": "schools", "from_reference": center}
    return Target("schools-centered", "eight schools, centred", 10, log_density, names, lambda x: x, **about)


def gp_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 20 places in [-2, 2], and a noisy curve there."""
    random = np.random.RandomState(4)
    x = np.sort(random.uniform(-2, 2, 20))
    return x, np.sin(2 * x) + 0.5 * x + 0.3 * random.randn(20)


def gaussian_process() -> Target:
    """Hyper-parameters of a Gaussian process with half-normal priors: logarithms of length scale, amplitude and noise."""
    places, values = (torch.from_numpy(array) for array in gp_data())

    def log_density(x: Tensor) -> Tensor:
        length, amplitude, noise = x.exp()[:, :, None, None].unbind(1)
        distances, y = (places[:, None] - places).square().to(x), values.to(x)
        covariance = amplitude.square() * (-distances / (2 * length.square())).exp() + (noise.square() + 1e-6) * torch.eye(len(y)).to(x)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        white = torch.linalg.solve_triangular(factor, y[:, None].expand(len(x), -1, -1), upper=False)
        likelihood = -white.square().sum((1, 2)) / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        prior = x.sum(1) - (x.exp() / x.new_tensor([1.0, 2.0, 1.0])).square().sum(1) / 2
        return torch.where(failed > 0, -torch.inf, likelihood) + prior

    return Target("gp", "Gaussian process", 3, log_density, ("log_length", "log_amplitude", "log_noise"), lambda x: x)


def mixture_data() -> np.ndarray:
    """Returns 120 numbers of two overlapping normals."""
    random = np.random.RandomState(5)
    return np.concatenate([-1 + 0.8 * random.randn(70), 1.5 + 0.6 * random.randn(50)])


def mixture() -> Target:
    """Two normals with ordered means; the coordinates are the first mean, the log gap, two log sds, and the logit of the first weight."""
    numbers = torch.from_numpy(mixture_data())

    def log_density(x: Tensor) -> Tensor:
        means, log_sds, logit = _means(x), x[:, 2:4], x[:, 4]
        weights = torch.nn.functional.logsigmoid(torch.stack([logit, -logit], 1))
        normals = -((numbers.to(x)[:, None] - means[:, None]) / log_sds[:, None].exp()).square() / 2 - log_sds[:, None]
        likelihood = torch.logsumexp(weights[:, None] + normals, 2).sum(1)
        prior = log_normal(means, sd=2.0).sum(1) + x[:, 1] - log_sds.exp().square().sum(1) / 2 + log_sds.sum(1) + 5 * weights.sum(1)
        return likelihood + prior  # Beta(5, 5) on the weight, half-normal sds

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([_means(x), x[:, 2:4].exp(), x[:, 4:].sigmoid()], 1)

    return Target("mixture", "mixture, ordered means", 5, log_density, ("mu[0]", "mu[1]", "sd[0]", "sd[1]", "weight"), statistics)


def _means(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], x[:, 0] + x[:, 1].exp()], 1)


def counts_data() -> np.ndarray:
    """Returns counts of four kinds in eight groups of 25."""
    random = np.random.RandomState(6)
    shares = random.dirichlet(6 * np.array([0.4, 0.3, 0.2, 0.1]), 8)
    return np.stack([random.multinomial(25, share) for share in shares]).astype(float)


def dirichlet_multinomial() -> Target:
    """Counts whose shares vary among groups; the coordinates are the log concentration and three log ratios of the mean shares.

    Ratios of gamma functions are products: the difference of two large logarithms would have an error of thousands in float32.
    """
    counts = torch.from_numpy(counts_data())

    def log_density(x: Tensor) -> Tensor:
        log_shares, y = _log_shares(x), counts.to(x.device)
        log_total, log_alpha = x[:, :1], (x[:, :1] + log_shares)[:, None]
        groups = _log_rising(log_alpha, y).sum(2) - _log_rising(log_total, y.sum(1))
        return groups.sum(1) + log_shares.sum(1) + log_normal(x[:, 0], 2.0, 1.0)  # a uniform prior of the shares

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], _log_shares(x).exp()], 1)

    names = ("log_concentration", *numbered("share", 4))
    return Target("dirichlet", "Dirichlet-multinomial", 4, log_density, names, statistics)


def _log_rising(log_a: Tensor, n: Tensor) -> Tensor:
    r"""Returns $\log \Gamma(a + n) - \log \Gamma(a) = \sum_{i < n} \log(a + i)$."""
    i = torch.arange(int(n.max()), device=n.device)
    terms = torch.logaddexp(log_a[..., None], i.to(log_a).log())
    return torch.where(i < n[..., None], terms, 0.0).sum(-1)


def _log_shares(x: Tensor) -> Tensor:
    return torch.log_softmax(torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1), 1)


# Medians of the priors of birth, predation, death, growth and both first populations, and their sds in the logarithm.
CENTER, SPREAD = (0.6, 0.03, 0.8, 0.025, 25.0, 8.0), (0.4, 0.4, 0.4, 0.4, 0.5, 0.5)
LOG_NOISE = (-1.5, 0.5)
_TRUE = (0.55, 0.028, 0.84, 0.026, 30.0, 5.0)
SPAN, STEPS, BETWEEN = 12.0, 40, 4  # of time, of the integrator, and between two observations


def runge_kutta(rates: Callable[[Any], Any], y: Any) -> list[Any]:
    """Returns the state at ten times; the classical method with a fixed step, on any kind of array."""
    h, kept = SPAN / STEPS, []
    for step in range(1, STEPS + 1):
        a = rates(y)
        b = rates(y + h / 2 * a)
        c = rates(y + h / 2 * b)
        d = rates(y + h * c)
        y = y + h / 6 * (a + 2 * (b + c) + d)
        if step % BETWEEN == 0:
            kept.append(y)
    return kept


def populations() -> np.ndarray:
    """Returns logarithms of both populations at ten times, with noise of sd .2, and shape (10, 2)."""
    birth, predation, death, growth, prey, predators = _TRUE
    constant, factor = np.array([birth, -death]), np.array([-predation, growth])
    path = runge_kutta(lambda y: constant + factor * np.exp(y[::-1]), np.log([prey, predators]))
    return np.array(path) + 0.2 * np.random.RandomState(7).randn(10, 2)


def lotka_volterra() -> Target:
    """The coordinates are standardised logarithms: normal a priori. The last is that of the noise of the log populations."""
    observed = torch.from_numpy(populations())
    center, spread = torch.tensor(CENTER, dtype=torch.float64).log(), torch.tensor(SPREAD, dtype=torch.float64)

    def parameters(x: Tensor) -> Tensor:
        return torch.cat([center.to(x) + spread.to(x) * x[:, :6], LOG_NOISE[0] + LOG_NOISE[1] * x[:, 6:]], 1).exp()

    def log_density(x: Tensor) -> Tensor:
        birth, predation, death, growth, prey, predators, noise = parameters(x).unbind(1)
        constant, factor = torch.stack([birth, -death], 1), torch.stack([-predation, growth], 1)
        first = torch.stack([prey, predators], 1).log()
        path = runge_kutta(lambda y: torch.addcmul(constant, factor, y.flip(1).exp()), first)
        residuals = (observed.to(x) - torch.stack(path, 1)).square().sum((1, 2))
        return log_normal(x).sum(1) - residuals / (2 * noise.square()) - observed.numel() * noise.log()

    names = ("birth", "predation", "death", "growth", "prey", "predators", "noise")
    return Target("lotka-volterra", "Lotka-Volterra", 7, log_density, names, parameters)
