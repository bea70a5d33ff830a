"""Densities whose moments are known: Neal's funnel, eight far modes, bananas, and four modes on a torus."""

import math

import torch
from torch import Tensor

from benchmarks.posteriors.target import ClosedForm, Target, log_normal, numbered

TORUS_MODES = ((-1.0, -0.8), (2.1, -0.5), (-1.2, 2.2), (2.0, 2.5))
TORUS_SHARES = (0.4, 0.3, 0.2, 0.1)
_CONCENTRATION, _WIDTH = 2.0, 0.2


def funnel() -> Target:
    """Neal's funnel: $v \\sim N(0, 3)$, nine $x_i \\sim N(0, e^{v/2})$. Compared are $v$ and $\\log|x_i|$, whose moments are moderate."""

    def log_density(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return log_normal(v, sd=3.0) - rest.square().sum(1) * (-v).exp() / 2 - 4.5 * v

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1:].abs().clamp_min(torch.finfo(x.dtype).tiny).log()], 1)

    def closed_form() -> ClosedForm:
        # The logarithm of a chi-square variable of one degree has mean -gamma - log 2 and variance pi^2 / 2; log|x| = (v + that) / 2.
        mean = torch.tensor([0.0] + [(-0.5772156649015329 - math.log(2)) / 2] * 9, dtype=torch.float64)
        sd = torch.tensor([3.0] + [math.sqrt(9 + math.pi**2 / 2) / 2] * 9, dtype=torch.float64)
        scale = torch.tensor([3.0] + [math.exp(9 / 4)] * 9, dtype=torch.float64)
        return ClosedForm(mean, sd, torch.zeros(10, dtype=torch.float64), scale, "moments of a normal and of a log chi-square")

    names = ("v", *numbered("log_abs_x", 9))
    return Target("funnel", "Neal's funnel", 10, log_density, names, statistics, closed_form=closed_form)


def far_modes() -> Target:
    """Eight normals of sd .5 on a circle of radius 10, with equal weights. Compared are both coordinates and the shares of the modes."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    means = 10 * torch.stack([angle.cos(), angle.sin()], 1)

    def log_density(x: Tensor) -> Tensor:
        return torch.logsumexp(-2 * (x[:, None] - means.to(x)).square().sum(2), 1)

    def statistics(x: Tensor) -> Tensor:
        nearest = (x[:, None] - means.to(x)).square().sum(2).argmin(1)
        return torch.cat([x, torch.nn.functional.one_hot(nearest, 8).to(x)], 1)

    def closed_form() -> ClosedForm:
        center, scale = torch.zeros(2, dtype=torch.float64), torch.full((2,), math.sqrt(50.25), dtype=torch.float64)
        share = torch.full((8,), 0.125, dtype=torch.float64)
        mean, sd = torch.cat([center, share]), torch.cat([scale, (share * (1 - share)).sqrt()])
        return ClosedForm(mean, sd, center, scale, "moments of a mixture of normals; the symmetry of the modes")

    names = ("x[0]", "x[1]", *numbered("share", 8))
    return Target("modes", "8 far modes", 2, log_density, names, statistics, closed_form=closed_form)


def banana(pairs: int, width: float) -> Target:
    """Pairs of $a \\sim N(0, 1)$ and $b \\mid a \\sim N(a^2, w)$; first all $a$, then all $b$."""

    def log_density(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return (log_normal(a) + log_normal(b, a.square(), width)).sum(1)

    def closed_form() -> ClosedForm:
        mean = torch.tensor([0.0] * pairs + [1.0] * pairs, dtype=torch.float64)
        sd = torch.tensor([1.0] * pairs + [math.sqrt(2 + width**2)] * pairs, dtype=torch.float64)
        return ClosedForm(mean, sd, mean, sd, "moments of a normal and of its square")

    names = (*numbered("a", pairs), *numbered("b", pairs))
    size = 2 * pairs
    return Target(f"banana-{size}", f"banana, {size}-d", size, log_density, names, lambda x: x, closed_form=closed_form)


def torus() -> Target:
    r"""A mixture of four products of von Mises densities on a torus, with shares .4, .3, .2, .1.

    Each angle is that of two coordinates, $\varphi = \operatorname{atan2}(x_1, x_0)$, whose radius has density $\propto r\,
    e^{-(r - 1)^2 / .08}$ independently of all angles. A support for angles would take two coordinates instead of four.
    """
    modes, weights = torch.tensor(TORUS_MODES, dtype=torch.float64), torch.tensor(TORUS_SHARES, dtype=torch.float64)
    cosines, sines = modes.cos(), modes.sin()

    def terms(cos: Tensor, sin: Tensor) -> Tensor:
        """Returns the log densities of the four terms, with shape $(B, 4)$, given $(B, 2)$."""
        waves = cos[:, None] * cosines.to(cos) + sin[:, None] * sines.to(cos)
        return weights.to(cos).log() + _CONCENTRATION * waves.sum(2)

    def log_density(x: Tensor) -> Tensor:
        radius = x.unflatten(1, (2, 2)).norm(dim=2)
        x = x / radius.repeat_interleave(2, 1)
        return terms(x[:, ::2], x[:, 1::2]).logsumexp(1) - ((radius - 1) / _WIDTH).square().sum(1) / 2

    def of_angles(cos: Tensor, sin: Tensor) -> Tensor:
        nearest = torch.nn.functional.one_hot(terms(cos, sin).argmax(1), 4)
        return torch.cat([cos, sin, nearest.to(cos)], 1)

    def statistics(x: Tensor) -> Tensor:
        x = x / x.unflatten(1, (2, 2)).norm(dim=2).repeat_interleave(2, 1)
        return of_angles(x[:, ::2], x[:, 1::2])

    def closed_form() -> ClosedForm:
        line = (torch.arange(800, dtype=torch.float64) + 0.5) * (2 * torch.pi / 800) - torch.pi
        angles = torch.cartesian_prod(line, line)
        cos, sin = angles.cos(), angles.sin()
        share = terms(cos, sin).logsumexp(1).softmax(0)[:, None]
        values = of_angles(cos, sin)
        mean = (share * values).sum(0)
        sd = (share * (values - mean).square()).sum(0).sqrt()
        first, second = _radius_moments()
        center = first * torch.stack([mean[:2], mean[2:4]], 1).flatten()
        squares = second * torch.stack([(share * cos.square()).sum(0), (share * sin.square()).sum(0)], 1).flatten()
        return ClosedForm(mean, sd, center, (squares - center.square()).sqrt(), "quadrature with 800 x 800 angles")

    names = (*numbered("cos", 2), *numbered("sin", 2), *numbered("share", 4))
    about = {"closed_form": closed_form, "origin": (1.0, 0.0, 1.0, 0.0)}
    return Target("torus", "4 modes on a torus", 4, log_density, names, statistics, **about)


def _radius_moments() -> tuple[float, float]:
    """Returns the first two moments of the radius, by quadrature."""
    r = torch.linspace(0, 3, 30_001, dtype=torch.float64)
    density = r * (-((r - 1) / _WIDTH).square() / 2).exp()
    density = density / density.sum()
    return float((density * r).sum()), float((density * r.square()).sum())
