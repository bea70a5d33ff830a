"""Integration of flows with a step size for each chain, flows down a potential, and a sampler of latent points by them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, biject_to, constraints

import composable_energy as ce
from composable_energy import Energy, SamplingWarning
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import ComposableEnergyError, ExpressionError, OptionError
from composable_energy.options import check_instance, check_integer, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, has_rows, repeated

_SAFETY, _LEAST, _GREATEST = 0.9, 0.2, 5.0
_SPAN = 5.0  # the time of the paper's process
_FIRST = 0.2  # the greatest change in the first step, relative to 1 + |x|

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


class EditError(ComposableEnergyError, ValueError):
    """An edit that contradicts what it keeps, or that left the support of the prior."""

    documentation: ClassVar[str] = "errors.md#editerror"


def integrate(
    velocity: Velocity, x: Tensor, start: float, end: float, *, tolerance: float, first: float, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns the points at the end of the flow $dx / dt = v(x, t)$, by the method of Bogacki and Shampine of order 3(2).

    Each chain has its own steps, so its result does not depend on the others. The results are the points, with shape $(B, *)$, and the
    number of evaluations of each chain and whether it arrived, with shape $(B,)$.

    The velocity gets points of shape $(b, *)$, their times with shape $(b,)$, and the rows of the chains that they belong to. The tolerance
    is the error of a step, relative to $1 + |x|$, as a root mean square over coordinates; `first` is the longest first step that is tried,
    and `rounds` the largest number of tried steps of a chain.
    """
    x, active = x.clone(), torch.arange(len(x), device=x.device)
    time, step = x.new_full((len(x),), start), x.new_full((len(x),), first)
    slope, count = velocity(x, time, active), x.new_ones(len(x))
    speed = (slope / (1 + x.abs())).flatten(1).square().mean(1).sqrt()
    step = step.minimum(_FIRST / speed.clamp(min=_FIRST / first))  # a long step may end where the flow is still, and look right
    for _ in range(rounds):
        if not len(active):
            break
        t, before, one = time[active], x[active], slope[active]
        h = torch.minimum(step[active], end - t)
        wide = unsqueeze_to(h, before)
        two = velocity(before + wide / 2 * one, t + h / 2, active)
        three = velocity(before + wide * 0.75 * two, t + h * 0.75, active)
        after = before + wide / 9 * (2 * one + 3 * two + 4 * three)
        four = velocity(after, t + h, active)
        wrong = wide * (-5 / 72 * one + two / 12 + three / 9 - four / 8) / (1 + torch.maximum(before.abs(), after.abs()))
        error = wrong.flatten(1).square().mean(1).sqrt() / tolerance
        good = error <= 1  # NaN is not: the step becomes shorter, and a chain that cannot go on does not arrive
        count[active] += 3
        moved = active[good]
        x[moved], slope[moved] = after[good], four[good]
        time[moved] += h[good]
        factor = (_SAFETY * error.clamp(min=1e-6) ** (-1 / 3)).clamp(_LEAST, _GREATEST)
        step[active] = h * torch.where(error.isfinite(), factor, _LEAST)
        active = active[time[active] < end - 1e-6 * (end - start)]
    return x, count, x.new_ones(len(x), dtype=torch.bool).index_fill(0, active, False)


def descend(
    potential: Callable[[Tensor, Tensor], Tensor], support: Any, z: Tensor, *, tolerance: float, rounds: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Returns where points flow down a potential, $du / d\tau = -\nabla_u U$, in unconstrained coordinates $u$ of their support.

    $U$ is called with points of shape $(b, *)$ and their rows of the start. For the results, `tolerance` and `rounds` see `integrate`.
    """
    try:
        inside = biject_to(constraints.real if support is None or support is ce.supports.circle else support)
    except NotImplementedError as error:
        raise EditError(f"Latent points on {support} have no unconstrained coordinates, in which a flow could move them.") from error

    def velocity(u: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            return -torch.autograd.grad(potential(inside(u), rows).sum(), u)[0]

    u, evaluations, arrived = integrate(velocity, inside.inv(z), 0.0, _SPAN, tolerance=tolerance, first=_SPAN / 4, rounds=rounds)
    return inside(u).detach(), evaluations, arrived


_BETA = (0.1, 20.0)  # of the variance preserving process of the paper
_LAST = 1e-3  # the least time
_POINTS = 2048  # evaluated together
_FEW = 1.5  # effective draws
_AWAY = 5.0  # standard errors
_ROUNDS = 300  # tried steps of a chain in one part of the way


@dataclass(frozen=True)
class FlowState(State):
    """A state with the fixed draws of the prior, with shape $(B, K, *)$, and the evaluations of each chain, with shape $(B,)$."""

    draws: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class LACE(Sampler):
    r"""A flow of latent points from a normal prior to an expression of attributes, without noise on the way.

    The prior is $N(m, s^2)$; in $u = (z - m) / s$ it is standard, and $c(u) = e^{-E(u) + |u|^2 / 2}$ is the evidence of the expression. A
    point of the process that turns data into noise is $u_\theta = u \sin\theta + \xi \cos\theta$. The score of the prior is known at each
    angle, so the probability flow needs the gradient of the evidence alone, averaged over what the noise hides:

    $$\frac{du}{d\theta} = \cos\theta \; \frac{\sum_k c_k\, \nabla \log c_k}{\sum_k c_k}, \qquad
    c_k = c(u \sin\theta + \xi_k \cos\theta), \quad \theta: 0 \to \tfrac\pi2 .$$

    It takes `draws` antithetic $\xi_k$ that each chain keeps. With many draws and a small tolerance the flow is exact, for any expression
    over the prior; the prior itself is kept exactly by any number of draws. Sharp evidence in many dimensions needs more draws than is
    practical: then too few points fulfil the expression, and `chees` is the way. The method has order 3(2), by Bogacki and Shampine.

    `draws=0` is the rule of the paper: the gradient at the noised point itself, $du/d\tau = \nabla \log c(u)$ over the time
    $\tau = \tfrac12 \int \beta = 5$. It costs the least, reaches the attributes, and is *not* exact: its points
    crowd where the attribute has just become certain. One level and a tolerance of 0.1 are enough for it.
    [The figures](../results/lace.md) compare both with `chees`, which is exact.

    `trace.scalars["evaluations"]` counts evaluated points of a chain.

    Args:
        levels: The number of parts of the way, which are the steps of the sampler. Within each, every chain takes its own steps.
        draws: The number of draws $\xi_k$, even; 0 for the rule of the paper.
        tolerance: The error of a step of a chain, relative to $1 + |u|$, as a root mean square over coordinates.
        mean: $m$; None finds it in the expression.
        scale: $s$; None finds it in the expression.

    Raises:
        ExpressionError: The expression has no normal prior.

    References:
        Controllable and compositional generation with latent-space energy-based models (Nie et al., 2021), https://arxiv.org/abs/2110.10873
        Loss-guided diffusion models for plug-and-play controllable generation (Song et al., 2023)
    """

    levels: int = 3
    draws: int = 64
    tolerance: float = 1e-2
    mean: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        check_integer("levels", self.levels)
        if check_integer("draws", self.draws, 0) % 2:
            raise OptionError(f"draws must be even, as they come in pairs, got {self.draws}.")
        check_number("tolerance", self.tolerance, above=0)
        check_instance("mean", self.mean, Tensor)
        check_instance("scale", self.scale, Tensor)

    @property
    def total_steps(self) -> int:
        return self.levels

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        mean, scale = self._prior(energy, x)
        for name, value in (("mean", mean), ("scale", scale)):
            if value.ndim and value.shape != x.shape[1:]:
                raise OptionError(f"{name} is a number or has the shape of points, {tuple(x.shape[1:])}, got {tuple(value.shape)}.", [name])
        return replace(self, mean=mean, scale=scale), x

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        u = noise.normal(like)
        return u if self.mean is None or self.scale is None else self.mean.to(u) + self.scale.to(u) * u

    def check_init(self, energy: Energy, x: Tensor) -> None:
        """Raises if points that a user gives as the start are no draws of the prior, from which alone the averaged flow is right."""
        mean, scale = self._prior(energy, x)
        u = (x - mean) / scale
        away = max(u.mean().abs().item(), (u.square().mean() - 1).abs().item() / math.sqrt(2)) * math.sqrt(u.numel())
        if self.draws and away > _AWAY:
            raise OptionError(
                f"lace starts at draws of the prior of {energy}, and the mean or variance of init is {away:.0f} standard errors from its: "
                "leave out init, or take `draws=0`, which moves any points."
            )

    traits: ClassVar[Traits] = Traits(start=start, check_init=check_init)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> FlowState:
        half = [noise.normal(x, stream) for stream in range(self.draws // 2)]
        draws = torch.stack([*half, *(-draw for draw in half)], 1) if half else x.new_zeros(len(x), 0, *x.shape[1:])
        if self.draws:
            self._warn_of_few(energy, x, draws)
        return FlowState(x, *energy_and_gradient(energy, x), draws, x.new_zeros(len(x)))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        state = cast(FlowState, state)
        mean, scale = self._prior(energy, state.x)
        u = (state.x - mean) / scale
        u, count = self._averaged(energy, u, state.draws, noise.step) if self.draws else self._papers(energy, u, noise.step)
        x = mean + scale * u
        new = FlowState(x, *energy_and_gradient(energy, x), state.draws, state.evaluations + count)
        return new, Info(scalars={"evaluations": new.evaluations})

    def _averaged(self, energy: Energy, u: Tensor, draws: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns points after a part of the quarter turn, and how many points were evaluated for each."""
        start, end = (math.pi / 2 * i / self.levels for i in (step - 1, step))

        def velocity(points: Tensor, angles: Tensor, rows: Tensor) -> Tensor:
            sine, cosine = (unsqueeze_to(of, points).unsqueeze(1) for of in (angles.sin(), angles.cos()))
            log_c, slopes = self._evidence(energy, sine * points.unsqueeze(1) + cosine * draws[rows], rows, len(u))
            weights = torch.softmax(log_c, 1).nan_to_num(0.0)  # no draw is possible: the chain stays
            return cosine.squeeze(1) * torch.einsum("bk,bk...->b...", weights, slopes)

        return self._integrate(energy, velocity, u, start, end, end - start, self.draws)

    def _papers(self, energy: Energy, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Returns points after a part of the time of the paper's process, from time 1 to the last."""
        start, end = (1 + (_LAST - 1) * i / self.levels for i in (step - 1, step))
        span = _elapsed(start) - _elapsed(end)

        def velocity(points: Tensor, times: Tensor, rows: Tensor) -> Tensor:
            return self._evidence(energy, points.unsqueeze(1), rows, len(u))[1].squeeze(1)

        return self._integrate(energy, velocity, u, 0.0, span, span / 4, 1)

    def _integrate(
        self, energy: Energy, velocity: Velocity, u: Tensor, start: float, end: float, first: float, points: int
    ) -> tuple[Tensor, Tensor]:
        found, count, arrived = integrate(velocity, u, start, end, tolerance=self.tolerance, first=first, rounds=_ROUNDS)
        if not arrived.all():
            seen = f"{int((~arrived).sum())} of {len(u)} chains did not reach the end of the flow to {energy} in {_ROUNDS} tried steps."
            advice = "Its evidence is too sharp for a flow: take `chees`, or wider values, or raise `tolerance`."
            SamplingWarning("flow", seen, advice).emit()
        return found, count * points

    def _evidence(self, energy: Energy, u: Tensor, rows: Tensor, chains: int) -> tuple[Tensor, Tensor]:
        r"""Returns $\log c$ with shape $(b, K)$, and its gradients, of points with shape $(b, K, *)$ of some of the chains."""
        if has_rows(energy) and len(u) < chains:  # each chain has its own rows of conditions, so all are evaluated
            whole = u.new_zeros(chains, *u.shape[1:])
            whole[rows] = u
            return tuple(found[rows] for found in self._evidence(energy, whole, rows, chains))  # pyright: ignore[reportReturnType]
        n, count = u.shape[:2]
        mean, scale = self._prior(energy, u[:, 0])
        flat, found = u.reshape(n * count, *u.shape[2:]), []
        several = repeated(energy, n, count) if has_rows(energy) else energy
        for part in [flat] if has_rows(energy) else flat.split(_POINTS):
            energies, gradients = energy_and_gradient(several, mean + scale * part)
            found.append((part.flatten(1).square().sum(1) / 2 - energies, part - scale * gradients))
        log_c, slopes = (torch.cat(of) for of in zip(*found, strict=True))
        return log_c.view(n, count), slopes.view_as(u)

    def _warn_of_few(self, energy: Energy, x: Tensor, draws: Tensor) -> None:
        """Warns if hardly any draw of the prior fulfils the expression, so that the first levels have no direction."""
        rows = torch.arange(len(x) if has_rows(energy) else min(len(x), max(1, _POINTS // self.draws)), device=x.device)
        log_c, _ = self._evidence(energy, draws[rows], rows, len(x))
        effective = (2 * log_c.logsumexp(1) - (2 * log_c).logsumexp(1)).exp().mean().item()
        if effective < _FEW:
            seen = f"Of {self.draws} draws of the prior only {effective:.1f} count for {energy}."
            advice = "The first levels then have no direction, and chains may miss branches: raise `draws`, or take `chees` or `smc`."
            SamplingWarning("draws", seen, advice).emit()

    def _prior(self, energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = self.mean, self.scale
        if mean is None or scale is None:
            found = _normal_prior(energy, x)
            mean, scale = found[0] if mean is None else mean, found[1] if scale is None else scale
        return mean.to(x), scale.to(x)


def _elapsed(t: float) -> float:
    r"""Returns $\tfrac12 \int_0^t \beta$."""
    return (_BETA[0] * t + (_BETA[1] - _BETA[0]) * t * t / 2) / 2


def _normal_prior(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of the normal prior of an expression, each with the shape of one point."""
    parts = [one for part in energy.modules() if isinstance(part, Energy) for one in (*(base.energy for base in part.bases), part)]
    for part in parts:  # the bases of an expression come before its terms
        distribution = getattr(part, "distribution", None)
        while isinstance(distribution, Independent):
            distribution = distribution.base_dist
        if isinstance(distribution, Normal) and part.event_shape == x.shape[1:]:
            mean, scale = (tensor.detach().to(x).expand(x.shape[1:]).contiguous() for tensor in (distribution.loc, distribution.scale))
            return mean, scale
    raise ExpressionError(
        f"The sampler lace follows the noise of a normal prior, and {energy} has none with independent coordinates of shape "
        f"{tuple(x.shape[1:])}: take `chees`, the default, which is exact for any prior."
    )
