"""Samplers that never reject: unadjusted and underdamped Langevin with step sizes by a bound of their bias, and gradient descent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from composable_energy import Energy, SamplingWarning
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.options import check_interval, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, energy_and_gradient, langevin_step, normal, underdamped_step
from composable_energy_mcmc.batch import finite_rows, flatten_points, select, sum_of_each
from composable_energy_mcmc.metric import IDENTITY, Metric
from composable_energy_mcmc.tuning import approach, redraw_outliers

_NO_INFO = Info()
_MINIBATCH = "minibatch"  # the condition of an energy whose gradient is estimated: a number in [0, 1) for each chain and step
_LINES, _WRONG = 8, 0.1  # points whose gradients are compared with energies; relative, as differences in float32 are off by a few per cent


@dataclass(frozen=True)
class Langevin(Sampler):
    r"""Unadjusted Langevin: $x' = x - \tfrac{\lambda}{2} \nabla E(x) + \sqrt{\lambda T}\, \xi$ (Welling & Teh, 2011).

    A step costs one gradient. It is biased by the step size: on a Gaussian with variance $s^2$ its variance is
    $T s^2 / (1 - \lambda / 4 s^2)$. Of an energy that is `minibatched` it chooses the rows by its noise.

    Args:
        step_size: $\lambda > 0$, in units of $x^2$; None tunes it on pilot chains, so that `max_bias` holds.
        temperature: $T \ge 0$; 0 is gradient descent.
        clamp: The lowest and the highest value of a coordinate, such as `(0, 1)` for images; None leaves points alone.
        metric: $S$ in $x' = x - \tfrac{\lambda}{2} S S^\top \nabla E(x) + \sqrt{\lambda T}\, S\, \xi$: a tensor of scales with the shape of
            a point, such as standard deviations of data, or the metric of a tuned `chees`; $\lambda$ is then in units of whitened points,
            $S^{-1} x$. A dense metric excludes `clamp`: a reflection at the wall would have to follow $S S^\top$, and clamping each
            coordinate draws from another density.
        max_gradient: The largest absolute value of a coordinate of the gradient; larger ones are clipped, as in the training of Du &
            Mordatch (2019). Draws are then not from the density. None clips nothing.
        max_bias: The relative excess of the variance to tune for: that of a Gaussian, along the coordinate with the steepest gradients.
    """

    step_size: float | None = None
    temperature: float = 1.0
    clamp: tuple[float, float] | None = None
    metric: Metric | Tensor | None = None
    max_gradient: float | None = None
    max_bias: float = 0.05

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_number("temperature", self.temperature, least=0)
        check_number("max_bias", self.max_bias, above=0, below=1)
        if self.temperature == 0:
            object.__setattr__(self, "traits", replace(self.traits, stationary=False))
        if self.clamp is not None:
            object.__setattr__(self, "clamp", check_interval("clamp", self.clamp))
        check_number("max_gradient", self.max_gradient, above=0, optional=True)
        if self.metric is not None:
            object.__setattr__(self, "metric", _to_metric(self.metric))
            if self.clamp is not None and self._metric.kind == "dense":
                raise OptionError("A dense metric and clamp draw from another density: take a diagonal metric, or leave one of them out.")

    @classmethod
    def from_step_and_noise(cls, step: float, noise: float, clamp: tuple[float, float] | None = None) -> Langevin:
        r"""Returns the sampler $x' = x - \tfrac12 \text{step}\, \nabla E(x) + \text{noise}\, \xi$, for papers that give these two numbers.

        Args:
            step: $\lambda$; a paper that writes $x - a \nabla E$ has $\lambda = 2 a$.
            noise: The standard deviation of the noise, $\sqrt{\lambda T}$.
        """
        check_number("step", step, above=0)
        check_number("noise", noise, least=0)
        return cls(step, noise**2 / step, clamp)

    @property
    def tuned(self) -> bool:
        return self.step_size is not None

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.tuned:
            return self, x
        if self.temperature == 0:
            raise OptionError("At temperature 0 there is no bias to tune a step size for: give `step_size`, or use descent.")
        if _MINIBATCH in energy.conditions:
            raise OptionError(f"Gradients of {energy} are estimates, for which no step size is tuned: give `step_size`.", ["step_size"])
        found, points = tune_unadjusted(energy, x, noise, max_bias=self.max_bias, temperature=self.temperature, metric=self._metric)
        return replace(self, step_size=found), points

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        if not energy.has_value or self.temperature != 1:
            return super().approach(energy, x, noise, level)
        state, arrived = approach(energy, x, noise, level=level, metric=self._metric)
        return state.x, arrived

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        if self.metric is not None:
            self._metric.check(x)
        return State(x, *_with_gradient(energy, x, noise))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        x = self.move(state, noise)
        return State(x, *_with_gradient(energy, x, noise)), _NO_INFO

    def move(self, state: State, noise: Noise) -> Tensor:
        if self.step_size is None:
            raise OptionError("Langevin has no step_size yet: give one, or let `sample` tune it.")
        drift, scale = self.step_size / 2, math.sqrt(self.step_size * self.temperature)
        grad = state.grad if self.max_gradient is None else state.grad.clamp(-self.max_gradient, self.max_gradient)
        if self.metric is None:
            return langevin_step(state.x, grad, noise=noise, drift=drift, scale=scale, box=self.clamp)
        whitened = langevin_step(state.x, self._metric.whiten_gradient(grad), noise=noise, drift=drift, scale=scale, keep=0.0)
        x = state.x + self._metric.unwhiten(whitened)
        return x if self.clamp is None else x.clamp_(*self.clamp)

    def bias(self, state: State) -> Tensor | None:
        r"""Returns $\lambda \lVert \nabla E \rVert^2 / 4 T d$ of points with $d$ coordinates: since the mean of $\lVert x \rVert^2$ stays
        as it is, $\langle x \cdot \nabla E \rangle = T d + \tfrac{\lambda}{4} \langle \lVert \nabla E \rVert^2 \rangle$ exactly."""
        if self.step_size is None or self.clamp is not None or self.temperature == 0 or self.max_gradient is not None:
            return None
        grad = state.grad if self.metric is None else self._metric.whiten_gradient(state.grad)
        return grad.reshape(len(state.x), -1).double().square().mean(1) * (self.step_size / (4 * self.temperature))

    def minibatches(self, energy: Energy) -> tuple[float, float, float]:
        """Returns the numbers of minibatches by which energies are compared; for `Traits.binds`."""
        return 0.0, 0.5, 0.25

    def compare(self, energy: Energy, x: Tensor) -> Sequence[SamplingWarning]:
        """Returns a warning where energies beside most of up to 8 points change by other than their gradients, as by a wrong `backward` or
        a hook; for `Traits.check_draws`. Points where energies are not on a straight line, as at kinks, do not count."""
        if not energy.has_value or energy.conditions or energy.sites:
            return ()
        x, eps = x[:_LINES], torch.finfo(x.dtype).eps
        energies, gradients = energy.with_gradient(x)
        slopes = gradients.reshape(len(x), -1)
        way, step = normalize(normalize(slopes) + normalize(Noise(0, range(len(x))).normal(slopes))), eps ** (1 / 3) * (1 + x.abs().max())
        up, down = (energy.with_gradient(x + sign * step * way.reshape(x.shape))[0] for sign in (1, -1))
        slope, expected, bend = (up - down) / (2 * step), (slopes * way).sum(1), (up - 2 * energies + down).abs() / step
        largest, rounding = _WRONG * slope.abs(), 100 * eps * (1 + energies.abs().max()) / step
        known = expected.isfinite() & (bend <= largest) & (largest > rounding)
        off = known & ((slope - expected).abs() > 2 * _WRONG * torch.maximum(slope.abs(), expected.abs()))
        if 2 * int(off.sum()) <= int(known.sum()):
            return ()
        row = int(off.nonzero()[0])
        seen = f"Beside a draw the energy changes by {slope[row]:.4g} along a line, and by {expected[row]:.4g} by its gradient."
        advice = "Draws follow the gradients: correct the `backward`, or what clips or detaches; `mala` draws by the energies."
        return (SamplingWarning("gradient", seen, advice),)

    traits: ClassVar[Traits] = Traits(gradients=1, values=False, move=move, bias=bias, binds={_MINIBATCH: minibatches}, check_draws=compare)

    @property
    def _metric(self) -> Metric:
        return self.metric if isinstance(self.metric, Metric) else IDENTITY


def _with_gradient(energy: Energy, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    if _MINIBATCH in energy.conditions:
        return energy.with_gradient(x, minibatch=noise.uniform(x, stream=1))
    return energy.with_gradient(x)


def _to_metric(given: object) -> Metric:
    metric = Metric(given.detach().clone()) if isinstance(given, Tensor) else given
    if not isinstance(metric, Metric):
        raise OptionError(f"metric must be a Metric, or a tensor of scales with the shape of a point, got {given!r}.")
    scale = metric.scale
    if scale is not None and not bool(((scale if metric.kind == "diagonal" else scale.diagonal()) > 0).all() & scale.isfinite().all()):
        raise OptionError("The scales of a metric must be positive, finite numbers.")
    return metric


_STEPS, _MEASURED = 120, 40  # of the pilots, and the last ones that are measured
_FORGET = 0.98
_FALLBACK = 0.1  # where no chain starts at a finite energy, which the driver reports
_PROBE = 1e-3  # relative to the size of points
_AWAY = 1e3  # the growth of points that have run away


def tune_unadjusted(
    energy: Energy, x: Tensor, noise: Noise, *, max_bias: float, temperature: float, metric: Metric = IDENTITY
) -> tuple[float, Tensor]:
    r"""Returns the step size of `langevin`, $\lambda = 4 b / \max_i \langle g_i^2 \rangle$, and the last points of the pilot chains. With
    the gradients $g$ of $E / T$ at whitened points, $\langle g_i^2 \rangle$ is the mean curvature along coordinate $i$, and $\lambda
    \langle g_i^2 \rangle / 4$ the relative excess of the variance along it on a Gaussian."""
    state = State(x, *energy.with_gradient(x))
    if energy.has_value and temperature == 1:
        state, _ = approach(energy, x, noise.child("approach"), metric=metric)
        state = redraw_outliers(energy, state, noise.child("redraw"))
    if not finite_rows(state).any():
        return _FALLBACK, state.x
    curvature, squares = _probe_curvature(energy, state, metric), []
    for step in range(1, _STEPS + 1):
        length = 1 / max(curvature / temperature, 1e-30)
        kick = normal(state.x, noise.at(step))
        way = metric.unwhiten(math.sqrt(length) * kick - length / 2 / temperature * metric.whiten_gradient(state.grad))
        after = State(state.x + way, *energy.with_gradient(state.x + way))
        curvature = max(_FORGET * curvature, _secant_curvature(state, after, way, metric))
        state = select(finite_rows(after), after, state)
        if step > _STEPS - _MEASURED:
            here = flatten_points(metric.whiten_gradient(state.grad))[finite_rows(state)]
            squares.append((here.double() / temperature).square().mean(0))
    if not energy.has_value and (state.x * state.grad).sum() < 0 and state.x.abs().max() > _AWAY * (1 + x.abs().max()):
        where = "its chains run away. A score is the gradient of log p and points to the density: is its sign right?"
        raise OptionError(f"No step size can be tuned for {energy}: {where}")
    if (steepest := torch.stack(squares).mean(0).max().item()) == 0:
        raise OptionError(f"No step size can be tuned for {energy}: its gradients at the pilot chains are zero. Give `step_size`.")
    return 4 * max_bias / steepest, state.x


def _probe_curvature(energy: Energy, state: State, metric: Metric) -> float:
    """Returns the curvature from a small displacement along the gradient; 1 where the gradient is zero or not finite."""
    whitened = metric.whiten_gradient(state.grad)
    length = _PROBE * (1 + state.x.abs().max()) / whitened.abs().max().clamp_min(torch.finfo(state.x.dtype).tiny)
    way = metric.unwhiten(whitened * length)
    found = _secant_curvature(state, State(state.x + way, *energy.with_gradient(state.x + way)), way, metric)
    return found if found > 0 else 1.0


def _secant_curvature(before: State, after: State, way: Tensor, metric: Metric) -> float:
    """Returns the largest change of the gradient per length of the way over all chains, in whitened units; 0 if none is finite."""
    change = flatten_points(metric.whiten_gradient(after.grad - before.grad)).norm(dim=1)
    ratio = change / flatten_points(metric.whiten(way)).norm(dim=1)
    ratio = ratio[ratio.isfinite()]
    return ratio.max().item() if len(ratio) else 0.0


@dataclass(frozen=True)
class MomentumState(State):
    """A state with a momentum for each coordinate, with shape $(B, *)$."""

    momentum: Tensor


_CLAMPED = {"clamp": "a point that is clamped keeps a momentum that points out of the box; use langevin."}


@dataclass(frozen=True)
class Underdamped(Sampler):
    r"""Underdamped Langevin in the splitting BAOAB (Leimkuhler & Matthews, 2013): points have a momentum that friction slowly renews.

    With $c = e^{-\gamma h}$ a step is

    $$p \leftarrow p - \tfrac{h}{2} \nabla E(x), \quad x \leftarrow x + \tfrac{h}{2} p, \quad p \leftarrow c\, p + \sqrt{(1 - c^2) T}\, \xi,
    \quad x \leftarrow x + \tfrac{h}{2} p, \quad p \leftarrow p - \tfrac{h}{2} \nabla E(x)$$

    and costs one gradient. Points keep their direction for a while, so they cross long valleys in fewer steps. On a Gaussian with variance
    $s^2$ its points are unbiased for every $h < 2 s$, and its momenta have the variance $T (1 - h^2 / 4 s^2)$; on other energies the bias
    is of the order of $h^2$. Of an energy that is `minibatched` it chooses the rows by its noise: stochastic-gradient HMC with a mode as
    control variate. The variance $V$ of the estimate heats momenta and points by about $h V / 2 \gamma$.

    Args:
        step_size: $h > 0$, in units of $x$; $\lambda = h^2$ is that of `langevin`. None tunes it on pilot chains, for `max_bias`.
        friction: $\gamma > 0$, by time: forgets the momentum in about $1 / \gamma h$ steps. A Gaussian mixes fastest near $2 / s$.
        temperature: $T \ge 0$; 0 rolls down to a mode.
        max_bias: The relative loss of the variance of a momentum, $h^2 / 4 s^2$, to tune for: that of a Gaussian, along the coordinate with
            the steepest gradients. The bias of points is smaller.

    References:
        Rational construction of stochastic numerical methods for molecular sampling (Leimkuhler & Matthews, 2013),
        https://doi.org/10.1093/amrx/abs010
        Stochastic gradient Hamiltonian Monte Carlo (Chen et al., 2014), https://arxiv.org/abs/1402.4102
    """

    step_size: float | None = None
    friction: float = 1.0
    temperature: float = 1.0
    max_bias: float = 0.05

    def bias(self, state: MomentumState) -> Tensor | None:
        """Returns by how much momenta are hotter than the temperature, as gradients with noise make them and points."""
        if self.temperature == 0:
            return None
        return state.momentum.reshape(len(state.x), -1).double().square().mean(1) / self.temperature - 1

    traits: ClassVar[Traits] = replace(Langevin.traits, move=None, bias=bias, refused=_CLAMPED)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, optional=True)
        check_number("max_bias", self.max_bias, above=0, below=1)
        check_number("friction", self.friction, above=0)
        check_number("temperature", self.temperature, least=0)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
        if self.step_size is not None:
            return self, x
        overdamped, points = Langevin(temperature=self.temperature, max_bias=self.max_bias).tune(energy, x, noise)
        return replace(self, step_size=math.sqrt(cast(Langevin, overdamped).step_size or 0.0)), points

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        return Langevin(temperature=self.temperature).approach(energy, x, noise, level)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> MomentumState:
        return MomentumState(x, *_with_gradient(energy, x, noise), normal(x, noise, math.sqrt(self.temperature)))

    def step(self, energy: Energy, state: MomentumState, noise: Noise) -> tuple[MomentumState, Info]:
        if self.step_size is None:
            raise OptionError("Underdamped has no step_size yet: give one, or let `sample` tune it.")
        half, kept = self.step_size / 2, math.exp(-self.friction * self.step_size)
        scale = math.sqrt((1 - kept**2) * self.temperature)
        x, momentum = underdamped_step(state.x, state.grad, state.momentum, noise=noise, drift=half, scale=scale, keep=kept, move=half)
        energies, grad = _with_gradient(energy, x, noise)
        return MomentumState(x, energies, grad, momentum.add_(grad, alpha=-half)), Info()


@dataclass(frozen=True)
class DescentState(State):
    r"""A state with the step size $\eta$ of each chain, with shape $(B,)$."""

    rate: Tensor


@dataclass(frozen=True)
class Descent(Sampler):
    r"""Gradient descent, $x' = x - \eta \nabla E(x)$: finds modes; it does not sample.

    It is `langevin` at temperature 0, with $\eta = \lambda / 2$, but needs no choice of a step size. Each chain has its own: after a step
    $s$ that changes the gradient by $g$ it is $\eta = s \cdot g / g \cdot g$ (Barzilai & Borwein, 1988), so that narrow valleys take tens
    of steps instead of thousands. A step that would raise the energy is rejected, and $\eta$ falls to a quarter. A step costs one gradient.
    A chain whose gradient has vanished stays, and steps cost nothing once all chains have arrived.

    Args:
        step_size: $\eta > 0$ of the first step, in units of $x^2$.
        tolerance: The largest number in a gradient that counts as vanished.

    References:
        Two-point step size gradient methods (Barzilai & Borwein, 1988), https://doi.org/10.1093/imanum/8.1.141
    """

    step_size: float = 0.01
    tolerance: float = 1e-6

    traits: ClassVar[Traits] = Traits(steps=500, stationary=False, minimizes=True)

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0)
        check_number("tolerance", self.tolerance, least=0)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> DescentState:
        energies, grad = energy_and_gradient(energy, x)
        return DescentState(x, energies, grad, sum_of_each(grad).new_full((len(x),), self.step_size))

    def step(self, energy: Energy, state: DescentState, noise: Noise) -> tuple[DescentState, Info]:
        if not (moving := (state.grad.abs() > self.tolerance).reshape(len(state.x), -1).any(1)).any():
            return state, Info()
        x = state.x - unsqueeze_to(state.rate, state.x).to(state.x.dtype) * state.grad
        energies, grad = energy_and_gradient(energy, x)
        accepted = moving & ~(energies > state.energy)  # an energy that is not a number is accepted, so that the driver finds it
        curvature, change = sum_of_each((x - state.x) * (grad - state.grad)), sum_of_each((grad - state.grad).square())
        rate = torch.where(curvature > 0, torch.minimum(curvature / change, state.rate * 10), state.rate * 2)
        rate = torch.where(accepted, rate, torch.where(moving, state.rate / 4, state.rate)).clamp_min(torch.finfo(rate.dtype).tiny)
        after = select(accepted, State(x, energies, grad), state)
        return DescentState(after.x, after.energy, after.grad, rate), Info()
