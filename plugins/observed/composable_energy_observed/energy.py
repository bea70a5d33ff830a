"""Energies that tilt a density: evidence for what was observed, and rewards, what a function prefers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Size, Tensor

import composable_energy as ce
from composable_energy import Energy, Recommendation
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.evaluation import denoised_level
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.options import check_flag, check_number
from composable_energy.sampling import twin
from composable_energy_observed.noises import Gaussian, Noise, noise_of
from composable_energy_observed.operators import Operator, description_of, is_linear, operator_of

_ROUNDS, _TOLERANCE = 100, 1e-4  # of conjugate gradients


class ObservedEnergy(Energy):
    r"""Evidence for a measurement, $E(x) = -\log p(y \mid A x)$; for Gaussian noise $\lVert A x - y \rVert^2 / 2 \sigma^2$ + const.

    With a base it is the posterior of an inverse problem: `faces & ce.observed(half, mask, 0.05)`. It has no base of its own and grounds
    nothing. Beside energies of latent points it is evaluated at the decoded ones. The constants make it a probability density of $y$,
    so that `observed(y, A) | observed(y, B)` weighs two instruments rightly. `~` of a measurement with Gaussian noise excludes the points
    whose misfit is within the 95 % quantile of the noise; for other noise give `ce.negate(..., mode="level", level=...)`.

    It recommends `chees`, which is exact where values exist. Samplers along noise levels evaluate it at the denoised point, with the noise
    of the measurement widened by what is not known there yet (the form of pseudo-inverse guidance; Song et al., 2023). This is exact for
    Gaussian data of the standard deviation `spread`, Gaussian noise and the library's operators, without a decoder.

    References:
        Diffusion posterior sampling for general noisy inverse problems (Chung et al., 2023), https://arxiv.org/abs/2209.14687
        Pseudoinverse-guided diffusion models for inverse problems (Song et al., 2023), https://openreview.net/forum?id=9_gsMA8MRKQ

    Args:
        y: What was measured. For a mask it may be a whole point, of which the other numbers are ignored.
        operator: $A$: an `Operator`, its name, a mapping with `name` and options, a mask of truth values, or any function of points of
            shape $(B, *)$; None for the identity.
        noise: A standard deviation, a `Noise`, its name, or a mapping with `name` and options.
        event_shape: The shape of one point, if the operator does not tell it.
        spread: $s$, the standard deviation of the data, or of the latents of a decoder, for samplers along noise levels.
        check: Whether to try a function at a point of random numbers in $[0, 1)$, where its result must be finite and differentiable.

    Raises:
        OptionError: The noise is not positive, a mask measures nothing, counts are negative, or a measured number is not finite.
        ShapeError: A measurement does not have the shape of what the operator returns.
        ExpressionError: The operator is not differentiable, random, or returns a number that is not finite.

    Example:
        >>> import torch, composable_energy as ce
        >>> prior = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> seen = ce.observed(torch.tensor([2.0, 0.0]), torch.tensor([True, False]), 1.0)
        >>> (prior & seen).sample(1000, seed=0).mean(0)[0].round()
        tensor(1.)
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("operator", "noise", "name")

    y: Tensor
    widens_itself = True
    grounded = False

    def __init__(
        self,
        y: Tensor,
        operator: Operator | str | Mapping[str, Any] | Tensor | Callable[[Tensor], Tensor] | None = None,
        noise: Noise | float | Tensor | str | Mapping[str, Any] | None = None,
        *,
        event_shape: Sequence[int] | None = None,
        name: str = "",
        spread: float = 1.0,
        check: bool = True,
    ) -> None:
        super().__init__()
        self.operator, self.noise = operator_of(description_of(operator_of(operator))), noise_of(noise)  # a mask learns its shape
        self.spread = check_number("spread", spread, above=0)
        if not isinstance(y, Tensor) or y.is_complex():
            got = f"{y.dtype}; use torch.view_as_real" if isinstance(y, Tensor) else f"{type(y).__name__}; use torch.as_tensor"
            raise DtypeError(f"y, what was measured, is a tensor of real numbers, got {got}.")
        if not y.is_floating_point():
            y = y.to(torch.get_default_dtype())
        selected = self.operator.select(y)
        if (count := selected.numel()) == 0 or not bool(selected.isfinite().all()):
            missing = f"{int((~selected.isfinite()).sum())} of {count} measured numbers are not finite, and at least one must be"
            raise OptionError(f"{missing}: leave the others out, `Mask(y.isfinite())`.")
        self.noise.check(selected)
        self.register_buffer("y", selected.detach().clone())
        own = self.operator.point_shape(selected.shape)
        if event_shape is not None and own is not None and Size(event_shape) != own:
            raise ShapeError(f"The operator {self.operator} gives {tuple(y.shape)} for points of {tuple(own)}, not {tuple(event_shape)}.")
        self.event_shape = own if event_shape is None else event_shape
        self.name = name or (f"observed({self.operator})" if operator is not None else "observed")
        self.evidence_normalized = True
        self.recommended = Recommendation("chees", precedence=1)
        if self.known_level(0.5) is None:
            self.no_complement = f"{self.noise.name} noise has no level of its own; give one, `ce.negate(A, mode='level', level=...)`."
        if check_flag("check", check) and self.event_shape is not None:
            _check_operator(twin(self), torch.Generator().manual_seed(0))

    def config(self) -> dict[str, Any]:
        noise, shape = {"name": self.noise.name, **self.noise.config()}, None if self.event_shape is None else tuple(self.event_shape)
        measured = {"y": self.y, "operator": description_of(self.operator), "noise": noise}
        return {**measured, "event_shape": shape, "name": self.name, "spread": self.spread, "check": False}

    def known_level(self, quantile: float) -> float | None:
        return self.noise.level(self.y, quantile)

    def predict(self, x: Tensor) -> Tensor:
        """Returns $A x$, with shape $(B, *)$ of measurements.

        Raises:
            ExpressionError: The gradient is needed, and the operator has none.
        """
        predicted: Any = self.operator(x)
        if not isinstance(predicted, Tensor) or not predicted.is_floating_point():
            got = predicted.dtype if isinstance(predicted, Tensor) else type(predicted).__name__
            raise DtypeError(f"The operator of {self} must return a floating tensor, got {got}.")
        if predicted.shape != (len(x), *self.y.shape):
            raise ShapeError(
                f"The operator of {self} gave shape {tuple(predicted.shape)} for points of shape {tuple(x.shape)}, and the measurement "
                f"has shape {tuple(self.y.shape)}; expected ({', '.join(map(str, (len(x), *self.y.shape)))})."
            )
        if x.requires_grad and torch.is_grad_enabled() and not predicted.requires_grad:
            raise ExpressionError(
                f"The operator of {self} is not differentiable: it detaches its points (`detach`, `no_grad`, NumPy, `.item()`) or rounds "
                "them. Compute it with torch alone; or weigh points by `ce.reward(f, differentiable=False)`, which needs no gradient."
            )
        return predicted

    def forward(self, x: Tensor) -> Tensor:
        predicted, y = self.predict(x), self.y.to(x)
        if (level := denoised_level()) is None or not (predicted.requires_grad and level[0].requires_grad):
            return _total(self.noise.energies(predicted, y))
        z, spread = level[0], level[1] ** 2 * self.spread**2 / (level[1] ** 2 + self.spread**2)
        variance = self._uncertainty(predicted, y, z, spread)
        if not (z is x and isinstance(self.noise, Gaussian) and is_linear(self.operator)):
            return _total(self.noise.energies(predicted, y, variance))
        residual = predicted - y
        value = _total(self._whitened(residual, x, spread) * residual)
        return value - value.detach() / 2 + _total(self.noise.energies(y.expand_as(predicted), y, variance))

    def _uncertainty(self, predicted: Tensor, y: Tensor, z: Tensor, spread: float) -> Tensor:
        r"""Returns the variance of predictions at a noise level, $\rho\, r^2$ with shape $(B, 1, \dots)$.
        The data vary around a denoised point $z$ by about $r^2 = \sigma^2 s^2 / (\sigma^2 + s^2)$, with the spread $s$ of the data, and
        predictions by $r^2 J J^\top$ with $J = \partial \hat y / \partial z$. The number $\rho$ is the quotient $\lVert J^\top e \rVert^2 /
        \lVert e \rVert^2$ at the residual $e$: exact where $J J^\top$ is a multiple of the identity."""
        residual = (predicted - y).detach()
        (pull,) = torch.autograd.grad(predicted, z, residual, retain_graph=True)
        pulled, missed = _total(pull.square()), _total(residual.square())
        return unsqueeze_to(spread * pulled / missed.clamp_min(torch.finfo(missed.dtype).tiny), predicted)

    def _whitened(self, residual: Tensor, x: Tensor, spread: float) -> Tensor:
        r"""Returns $(\Sigma + r^2 A A^\top)^{-1} e$ by conjugate gradients, for a linear operator and Gaussian noise of variance $\Sigma$.
        A row that has arrived stays, so that rows do not depend on each other."""
        noise, left = cast(Gaussian, self.noise).scale.to(x).square(), residual.detach()
        found, direction, size = torch.zeros_like(left), left, _total(left.square())
        tiny, enough = torch.finfo(size.dtype).tiny, _TOLERANCE**2 * size
        for _ in range(_ROUNDS):
            if not bool((going := size > enough).any()):
                break
            (pulled,) = torch.autograd.grad(residual, x, direction, retain_graph=True)
            with torch.no_grad():
                applied = noise * direction + spread * self.operator(pulled)
            step = unsqueeze_to(torch.where(going, size / _total(direction * applied).clamp_min(tiny), 0.0), left)
            found, left, before = found + step * direction, left - step * applied, size
            size = _total(left.square())
            direction = left + unsqueeze_to(size / before.clamp_min(tiny), left) * direction
        return found

    def extra_repr(self) -> str:
        return f"{self.operator}, {self.noise}, measured={tuple(self.y.shape)}"


def _total(numbers: Tensor) -> Tensor:
    """Returns the sums over all numbers of each row, with shape $(B,)$."""
    return numbers[..., None].flatten(1).sum(1)


def _check_operator(energy: ObservedEnergy, generator: torch.Generator) -> None:
    """Tries the operator at one point of random numbers in $[0, 1)$."""
    x = torch.rand(1, *(energy.event_shape or ()), generator=generator, dtype=energy.y.dtype).to(energy.y.device)
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        predicted = energy.predict(point)
        gradient = torch.autograd.grad(predicted.sum(), point, allow_unused=True)[0]
    ways = "If it is right elsewhere, say check=False."
    if not bool(predicted.isfinite().all()) or (gradient is not None and not bool(gradient.isfinite().all())):
        what = "gradient" if bool(predicted.isfinite().all()) else "result"
        raise ExpressionError(f"The {what} of the operator of {energy} is not finite at a point of numbers in [0, 1). {ways}")
    if gradient is None or not bool(gradient.any()):
        way = f"it rounds or compares them. {ways} Points are weighed without a gradient by `ce.reward(f, differentiable=False)`."
        raise ExpressionError(f"The operator of {energy} has no gradient at a point of numbers in [0, 1): {way}")
    with torch.no_grad():
        again = energy.predict(x)
    if not torch.allclose(predicted.detach(), again, rtol=1e-3, atol=1e-5 * float(again.abs().max())):
        raise ExpressionError(
            f"The operator of {energy} is random: two calls at one point differ. It must be without noise, which `noise` describes; of a "
            "physics object of DeepInverse pass the method `physics.A`."
        )


class RewardEnergy(Energy):
    r"""A reward as an energy, $-\beta\, r(x)$.

    `base & ce.reward(r, beta)` has the density $p(x)\, e^{\beta r(x)}$ up to a constant. It grounds nothing, and its maximum over points
    may be infinite: the density exists if the base falls faster.

    With a gradient every sampler follows it. Without one (`differentiable=False`) samplers that only follow gradients refuse the
    expression, and the default is `smc`, which weights and resamples its particles by the reward.

    Args:
        function: The reward $r$: a function of points of shape $(B, *)$ that returns shape $(B,)$.
        beta: $\beta$; a negative one avoids what $r$ prefers.
        differentiable: Whether $r$ has a gradient; None tries it at a random point if `event_shape` is given, else supposes one.
        event_shape: The shape of one point, if there is only one. A reward of pictures needs it beside energies of latent points.
        name: The name in expressions; that of the function if empty.

    Raises:
        LiftError: The reward is no function or module.
        OptionError: $\beta$ is no finite number.

    References:
        A general framework for inference-time scaling and steering of diffusion models (Singhal et al., 2025),
        https://arxiv.org/abs/2501.06848

    Example:
        >>> import torch, composable_energy as ce
        >>> base = ce.as_energy(torch.distributions.Normal(torch.zeros(1), 1.0))
        >>> (base & ce.reward(lambda x: x[:, 0], 2.0)).sample(1000, seed=0).mean().round()
        tensor(2.)
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("name",)
    grounded = False

    def __init__(
        self,
        function: Callable[..., Tensor],
        beta: float = 1.0,
        *,
        differentiable: bool | None = None,
        event_shape: Sequence[int] | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if differentiable not in (None, True, False):
            raise OptionError(f"differentiable must be True, False or None, got {differentiable!r}.")
        self.function, self.beta = function, check_number("beta", beta)
        lifted = ce.as_energy(function)  # knows the conditions and the name of a function
        self.conditions, self.required_conditions = lifted.conditions, lifted.required_conditions
        self.name = name or ("reward" if lifted.name == "energy" else f"reward({lifted.name})")
        self.event_shape = event_shape
        self.has_gradient = self._tried() if differentiable is None else differentiable
        if not self.has_gradient:
            self.recommended = Recommendation("smc", precedence=2)

    def config(self) -> dict[str, Any]:
        shape = None if self.event_shape is None else tuple(self.event_shape)
        own = {"function": self.function, "beta": self.beta, "differentiable": self.has_gradient}
        return {**own, "event_shape": shape, "name": self.name}

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if not self.has_gradient:
            with torch.no_grad():
                reward: Any = self.function(x.detach(), **conditions)
            return -self.beta * (reward.to(x) if isinstance(reward, Tensor) else torch.as_tensor(reward).to(x))
        reward = self.function(x, **conditions)
        if x.requires_grad and torch.is_grad_enabled() and isinstance(reward, Tensor) and not reward.requires_grad:
            way = "Say `ce.reward(r, beta, differentiable=False)`, which samples by weights."
            raise ExpressionError(f"{self} has no gradient: it detaches, compares or rounds its points. {way}")
        return -self.beta * reward

    def _tried(self) -> bool:
        """Returns whether the reward has a gradient at a random point; True if the shape of points or a condition is unknown."""
        if self.event_shape is None or self.required_conditions:
            return True
        with torch.enable_grad():
            x = torch.rand(2, *self.event_shape, generator=torch.Generator().manual_seed(0))
            x = x.to(next(self.parameters(), x)).requires_grad_()
            reward: Any = self.function(x)
            if not isinstance(reward, Tensor) or not reward.requires_grad:
                return False
            gradient = torch.autograd.grad(reward.sum(), x, allow_unused=True)[0]
        return gradient is not None and bool(gradient.any())

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}" + ("" if self.has_gradient else ", differentiable=False")
