r"""Torch distributions as energies: $E(x) = -\log p(x)$, infinite outside the support."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, constraints
from torch.utils._python_dispatch import TorchDispatchMode

from composable_energy.arithmetic import Estimate, unsqueeze_to, zeros
from composable_energy.energies.energy import Energy
from composable_energy.errors import LiftError, OptionError, ShapeError
from composable_energy.options import check_instance
from composable_energy.supports import contains, interior
from composable_energy.supports.distributions import ARGUMENTS, inherits, map_tensors, support_of, tensors_in
from composable_energy.supports.sets import ends_of


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
        self.name = name or type(distribution).__name__
        _check(distribution)
        shape = self.event_shape = distribution.batch_shape + distribution.event_shape
        if event_shape is not None and torch.Size(event_shape) != shape:
            raise ShapeError(
                f"A point of {self.name} has shape {tuple(shape)}, its batch shape followed by its event shape; got the "
                f"event_shape {tuple(event_shape)}. Leave it out, or `expand` the distribution."
            )
        if decoder is not None:
            self.decoder = check_instance("decoder", decoder, nn.Module)
        self.distribution = map_tensors(distribution, lambda tensor: tensor)
        like = next((tensor for _, tensor in tensors_in(distribution).values() if tensor.is_floating_point()), torch.empty(0))
        try:
            self.support = support_of(self.distribution)
            self._interior = None if _is_positive(self.distribution) else interior(self.support, like.new_zeros((1, *shape)))
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise LiftError(f"The support of {type(distribution).__name__} does not fit its points: {error}") from error

    @property
    def log_normalizer(self) -> Estimate:
        return Estimate(0.0)

    def forward(self, x: Tensor) -> Tensor:
        if self._interior is None:  # positive everywhere
            logs = self.distribution.log_prob(x)
            return -(logs.flatten(1).sum(1) if logs.ndim > 1 else logs)
        inside = contains(self.support, x.detach())
        point = torch.where(unsqueeze_to(inside, x), x, self._interior.to(x))
        logs, event = _log_prob(self.distribution, point), self.distribution.event_shape
        if logs.shape != point.shape[: point.ndim - len(event)]:
            raise ShapeError(
                f"`log_prob` of {type(self.distribution).__name__} returned {tuple(logs.shape)} for points of shape {tuple(point.shape)}: "
                f"a log density is one number for all axes of the event_shape, {tuple(event)}."
            )
        _cut_slopes(point, logs, len(event))
        energies = -(logs.flatten(1).sum(1) if logs.ndim > 1 else logs)
        broken = x.isnan().flatten(1).any(1) if x.ndim > 1 else x.isnan()
        energies = torch.where(inside & (energies != math.inf), energies, math.inf).masked_fill(broken, math.nan)
        return energies + zeros(x) if x.requires_grad else energies  # a uniform density also needs a (zero) gradient

    def config(self) -> dict[str, Any]:
        decoder = {} if self.decoder is None else {"decoder": self.decoder}
        return {"distribution": self.distribution, "name": self.name, **decoder}

    # Torch calls it when a module is moved or converted; `test_constants_move_with_the_energy` pins it.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistributionEnergy:
        super()._apply(fn, recurse)
        self.distribution = map_tensors(self.distribution, fn)
        self._interior = None if self._interior is None else fn(self._interior)
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


def _log_prob(distribution: Distribution, x: Tensor) -> Tensor:
    r"""Returns $\log p$ by torch's formulas, with $-\infty$ and zero gradient where a component of a mixture is 0."""
    if inherits(distribution, Independent, "log_prob"):
        return _rightmost(_log_prob(distribution.base_dist, x), distribution.reinterpreted_batch_ndims)
    if inherits(distribution, MixtureSameFamily, "log_prob"):
        return _mixture_log_prob(distribution, x)
    if not inherits(distribution, TransformedDistribution, "log_prob"):
        return distribution.log_prob(x)
    total, axes = torch.zeros((), dtype=x.dtype, device=x.device), len(distribution.event_shape)
    for transform in reversed(distribution.transforms):
        domain, codomain = transform.domain.event_dim, transform.codomain.event_dim  # pyright: ignore[reportAttributeAccessIssue]
        before: Any = transform.inv(x)
        axes += domain - codomain
        total = total - _rightmost(transform.log_abs_det_jacobian(before, x), axes - domain)
        x = before
    return total + _rightmost(_log_prob(distribution.base_dist, x), axes - len(distribution.base_dist.event_shape))


def _mixture_log_prob(mixture: MixtureSameFamily, x: Tensor) -> Tensor:
    component, axes = mixture.component_distribution, len(mixture.event_shape)
    x = x.unsqueeze(-1 - axes)
    x = x.expand(torch.broadcast_shapes(x.shape, component.batch_shape + component.event_shape))
    support, inside = support_of(component), torch.ones((), dtype=torch.bool, device=x.device)
    ends = ends_of(support)
    if support is not None and ends is not None:  # they may differ between components
        low, high = (torch.as_tensor(end).to(x) for end in ends)
        inside = support.check(x.detach())
        x = torch.where(inside, x, torch.where(low.isinf(), high - 1, torch.where(high.isinf(), low + 1, (low + high) / 2)))
        inside = inside.flatten(inside.ndim - axes).all(-1) if axes else inside
    logs = _log_prob(component, x)
    _cut_slopes(x, logs, axes)
    logs = torch.where(inside, logs, -math.inf)
    nowhere = (logs == -math.inf).all(-1)
    logs = logs.masked_fill(nowhere.unsqueeze(-1), 0.0)  # the gradient of logsumexp is NaN if all terms are minus infinity
    return torch.logsumexp(logs + mixture.mixture_distribution.logits.log_softmax(-1), -1).masked_fill(nowhere, -math.inf)


def _rightmost(values: Tensor, axes: int) -> Tensor:
    """Returns sums over the last axes."""
    return values.flatten(-axes).sum(-1) if axes else values


def _cut_slopes(point: Tensor, logs: Tensor, axes: int) -> None:
    """Lets points have zero gradients where the density is zero, such as at a boundary, where its slope may be infinite."""
    if point.requires_grad:
        nowhere = (logs == -math.inf)[(...,) + (None,) * axes]
        point.register_hook(lambda gradient: gradient.masked_fill(nowhere, 0.0))


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
