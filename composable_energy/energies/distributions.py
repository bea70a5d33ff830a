r"""Torch distributions as energies: $E(x) = -\log p(x)$, infinite outside the support."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
    constraints,
    transform_to,
)
from torch.utils._python_dispatch import TorchDispatchMode

from composable_energy.arithmetic import Estimate, zeros
from composable_energy.energies.energy import Energy
from composable_energy.errors import LiftError, OptionError, ShapeError
from composable_energy.options import check_instance
from composable_energy.supports import Support, format_support
from composable_energy.supports.distributions import ARGUMENTS, inherits, map_tensors, support_of, tensors_in

LogProb = Callable[[Tensor], Tensor]


class DistributionEnergy(Energy):
    r"""The energy $-\log p(x)$ of a torch distribution; axes of its batch shape are independent axes of a point.

    Outside the support the energy is infinite with zero gradient, so that other branches of a mixture keep theirs. The energy of a NaN
    point is NaN.

    Its tensors are constants, which move with the energy. To learn them, lift a module that builds the distribution in its `forward`.

    Args:
        distribution: The distribution; a point has its batch shape followed by its event shape. It is copied; its tensors are shared.
        name: The name in expressions; the class name of the distribution if empty.
        event_shape: The shape of one point; it must be that of the distribution.
        decoder: The decoder, for a density of latent points.

    Raises:
        LiftError: The distribution is discrete or has no support, or one of its tensors requires a gradient.
        ShapeError: `event_shape` is not the shape of a point.

    Example:
        >>> import torch, composable_energy as ce
        >>> energy = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> energy(torch.ones(1, 2))
        tensor([2.8379])
    """

    def __init__(
        self,
        distribution: Distribution,
        *,
        name: str = "",
        event_shape: Sequence[int] | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(name, str):
            raise OptionError(f"name must be text, got {name!r}.")
        _check(distribution)
        self.name = name or type(distribution).__name__
        shape = self.event_shape = distribution.batch_shape + distribution.event_shape
        if event_shape is not None and torch.Size(event_shape) != shape:
            raise ShapeError(
                f"A point of {self.name} has shape {tuple(shape)}, its batch shape followed by its event shape; got the "
                f"event_shape {tuple(event_shape)}. Leave it out, or `expand` the distribution."
            )
        if decoder is not None:
            self.decoder = check_instance("decoder", decoder, nn.Module)
        self.distribution = map_tensors(distribution, lambda tensor: tensor)
        if not _is_positive(self.distribution):
            _check_fits(self.distribution)
        self._log_prob = _log_prob_of(self.distribution)

    @property
    def support(self) -> Support:
        return support_of(self.distribution)

    @property
    def log_normalizer(self) -> Estimate:
        return Estimate(0.0)

    def forward(self, x: Tensor) -> Tensor:
        energies = -self._log_prob(x)
        energies = energies.flatten(1).sum(1) if energies.ndim > 1 else energies
        if not isinstance(self._log_prob, partial):  # positive everywhere
            return energies
        broken = x.isnan().flatten(1).any(1) if x.ndim > 1 else x.isnan()
        energies = energies.masked_fill(energies == math.inf, math.inf).masked_fill(broken, math.nan)  # without a gradient
        return energies + zeros(x) if x.requires_grad else energies  # a uniform density also needs a (zero) gradient

    def config(self) -> dict[str, Any]:
        decoder = {} if self.decoder is None else {"decoder": self.decoder}
        return {"distribution": self.distribution, "name": self.name, **decoder}

    # Torch calls it when a module is moved or converted; `test_constants_move_with_the_energy` pins it.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistributionEnergy:
        super()._apply(fn, recurse)
        self.distribution = map_tensors(self.distribution, fn)
        self._log_prob = _log_prob_of(self.distribution)
        return self


def _check(distribution: Distribution) -> None:
    """Raises if a distribution is discrete, has no support, or has learnable tensors: after a step others computed from them are stale."""
    name, inner = type(distribution).__name__, distribution
    while isinstance(inner, Independent | MixtureSameFamily | TransformedDistribution):
        inner = inner.component_distribution if isinstance(inner, MixtureSameFamily) else inner.base_dist
    try:
        support: Any = inner.support
    except (NotImplementedError, AttributeError):
        support = None
    if support is None or constraints.is_dependent(support):
        raise LiftError(f"{name} has no `support`, so an energy cannot be infinite outside; give the class one of torch's constraints.")
    if support.is_discrete:
        raise LiftError(
            f"{name} is discrete: its points are numbers without a gradient, which samplers need. Draw them with its own `sample`, or "
            "relax it (`RelaxedBernoulli`, `RelaxedOneHotCategorical`). For labels of points use `composable_energy.ClassifierEnergy`."
        )
    learnt = next((path for path, (_, tensor) in tensors_in(distribution).items() if tensor.requires_grad), None)
    if learnt is not None:
        raise LiftError(
            f"{learnt} of this {name} requires a gradient, and a distribution does not follow its parameters. To learn them, lift a module "
            "whose `forward(x)` builds the distribution and returns `-log_prob(x)`; `.detach()` the tensor to hold it constant."
        )


def _check_fits(distribution: Distribution) -> None:
    """Raises if the support of a distribution is not one of points with its batch and event shape."""
    try:
        point = _interior(distribution).unsqueeze(0)
        found = _inside(distribution, point)
    except LiftError:
        raise
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise LiftError(f"The support of {type(distribution).__name__} does not fit its points: {type(error).__name__}: {error}") from error
    if found.shape != (1, *distribution.batch_shape):
        raise LiftError(
            f"The support of {type(distribution).__name__}, {format_support(distribution.support)}, checks points of more axes than its "
            f"event_shape, {tuple(distribution.event_shape)}, has."
        )


# Log densities that are safe outside the support, where the gradients of torch's formulas may be NaN ------------------------------


def _log_prob_of(distribution: Distribution) -> LogProb:
    r"""Returns $\log p$ with $-\infty$ and zero gradient outside the support; a `partial` if the support is not all points."""
    if _is_positive(distribution):
        return distribution.log_prob
    if inherits(distribution, Independent, "log_prob"):
        return partial(_independent_log_prob, _log_prob_of(distribution.base_dist), distribution.reinterpreted_batch_ndims)
    if inherits(distribution, MixtureSameFamily, "log_prob"):
        return partial(_mixture_log_prob, _log_prob_of(distribution.component_distribution), distribution)
    log_prob: LogProb = distribution.log_prob
    if inherits(distribution, TransformedDistribution, "log_prob") and inherits(distribution, TransformedDistribution, "support"):
        log_prob = partial(_transformed_log_prob, _log_prob_of(distribution.base_dist), distribution)
    return partial(_guard_support, log_prob, distribution, _interior(distribution))


def _is_positive(distribution: Distribution) -> bool:
    """Returns whether a density is positive at all points, and its class is known not to validate them."""
    if type(distribution) is Independent:
        return _is_positive(distribution.base_dist)
    if type(distribution) is MixtureSameFamily:
        return _is_positive(distribution.component_distribution)
    if type(distribution) is TransformedDistribution:
        return _is_positive(distribution.base_dist) and all(_is_real(transform.codomain) for transform in distribution.transforms)
    return type(distribution) in ARGUMENTS and _is_real(distribution.support)


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _independent_log_prob(log_prob: LogProb, axes: int, x: Tensor) -> Tensor:
    return _rightmost(log_prob(x), axes)


def _mixture_log_prob(log_prob: LogProb, mixture: MixtureSameFamily, x: Tensor) -> Tensor:
    logs = log_prob(x.unsqueeze(-1 - len(mixture.event_shape)))
    nowhere = (logs == -math.inf).all(-1)
    logs = logs.masked_fill(nowhere.unsqueeze(-1), 0.0)  # the gradient of logsumexp is NaN if all terms are minus infinity
    return torch.logsumexp(logs + mixture.mixture_distribution.logits.log_softmax(-1), -1).masked_fill(nowhere, -math.inf)


def _transformed_log_prob(log_prob: LogProb, distribution: TransformedDistribution, x: Tensor) -> Tensor:
    """Returns torch's formula with another log density of the base distribution."""
    total, axes = torch.zeros((), dtype=x.dtype, device=x.device), len(distribution.event_shape)
    for transform in reversed(distribution.transforms):
        domain, codomain = transform.domain.event_dim, transform.codomain.event_dim  # pyright: ignore[reportAttributeAccessIssue]
        before: Any = transform.inv(x)
        axes += domain - codomain
        total = total - _rightmost(transform.log_abs_det_jacobian(before, x), axes - domain)
        x = before
    return total + _rightmost(log_prob(x), axes - len(distribution.base_dist.event_shape))


def _rightmost(values: Tensor, axes: int) -> Tensor:
    """Returns sums over the last axes."""
    return values.flatten(-axes).sum(-1) if axes else values


def _guard_support(log_prob: LogProb, distribution: Distribution, interior: Tensor, x: Tensor) -> Tensor:
    axes = (...,) + (None,) * len(distribution.event_shape)
    inside = _inside(distribution, x.detach())
    point = torch.where(inside[axes], x, interior)
    if distribution.support is constraints.positive_definite:  # its check tests only symmetry if one matrix is not symmetric
        inside = inside & _inside(distribution, point.detach())
        point = torch.where(inside[axes], x, interior)
    logs = log_prob(point)
    expected = point.shape[: point.ndim - len(distribution.event_shape)]
    if logs.shape != expected:
        raise ShapeError(
            f"`log_prob` of {type(distribution).__name__} returned {tuple(logs.shape)} for points of shape {tuple(point.shape)}, expected "
            f"{tuple(expected)}: a log density is one number for all axes of the event_shape, {tuple(distribution.event_shape)}."
        )
    if point.requires_grad:  # at a boundary in the support the density may be zero with an infinite slope
        nowhere = (logs == -math.inf)[axes]
        point.register_hook(lambda gradient: gradient.masked_fill(nowhere, 0.0))
    return torch.where(inside, logs, -math.inf)


def _inside(distribution: Distribution, x: Tensor) -> Tensor:
    """Returns whether points are in the support, with a shape that ends in the batch shape."""
    if inherits(distribution, Independent, "support"):
        inside, axes = _inside(distribution.base_dist, x), distribution.reinterpreted_batch_ndims
        return inside.flatten(-axes).all(-1) if axes else inside
    if inherits(distribution, MixtureSameFamily, "support"):
        return _inside(distribution.component_distribution, x.unsqueeze(-1 - len(distribution.event_shape))).any(-1)
    if not inherits(distribution, TransformedDistribution, "support"):
        return _all_entries(distribution.support.check(x), distribution, x)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    # Torch's support is the codomain of the last transform; that of a shifted uniform distribution is smaller.
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    y: Any = x
    for transform in reversed(distribution.transforms):
        check: Any = transform.codomain.check(y)  # pyright: ignore[reportAttributeAccessIssue]
        inside, y = inside & _all_entries(check, distribution, x), transform.inv(y)
    return inside & _all_entries(_inside(distribution.base_dist, y), distribution, x)


def _all_entries(inside: Tensor, distribution: Distribution, x: Tensor) -> Tensor:
    """Returns a check for each point, where a constraint checks the entries of the event shape one by one."""
    axes = x.ndim - len(distribution.event_shape)
    return inside.flatten(axes).all(-1) if inside.ndim > axes else inside


@torch.no_grad()
def _interior(distribution: Distribution) -> Tensor:
    """Returns a point inside the support, with batch and event shape."""
    if inherits(distribution, Independent, "support"):
        return _interior(distribution.base_dist)
    if inherits(distribution, MixtureSameFamily, "support"):
        return _interior(distribution.component_distribution).select(len(distribution.batch_shape), 0)
    if inherits(distribution, TransformedDistribution, "support"):
        point: Any = _interior(distribution.base_dist)
        for transform in distribution.transforms:
            point = transform(point)
        return point
    try:
        to_support = transform_to(distribution.support)
    except NotImplementedError as error:
        raise LiftError(
            f"{type(distribution).__name__} has a support in which no point is known; register a transform to it with "
            f"`torch.distributions.transform_to.register({type(distribution.support).__name__})`."
        ) from error
    shape = to_support.inverse_shape(distribution.batch_shape + distribution.event_shape)
    like = next((tensor for _, tensor in tensors_in(distribution).values() if tensor.is_floating_point()), torch.empty(0))
    return to_support(like.new_zeros(shape))


@torch.no_grad()
def seeded_draws(distribution: Distribution, count: int, device: torch.device, seed: int) -> Tensor | None:
    """Returns independent draws; None if the distribution has no method for them. Torch's global random state stays."""
    with _Seeded(torch.Generator(device).manual_seed(seed)):
        try:
            return distribution.sample((count,))
        except NotImplementedError:
            return None


class _Seeded(TorchDispatchMode):
    """Random numbers of torch come from a generator: those of this thread inside, not from the state that the caller's code uses."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and "generator" not in str(func._schema):
            func = func.overloadpacket.generator
        return func(*args, **{**(kwargs or {}), **({"generator": self.generator} if random else {})})
