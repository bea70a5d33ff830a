"""Lifting of distributions, callables and modules to energies."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, TransformedDistribution, constraints

from composable_energy.arithmetic import Estimate, unsqueeze_to, zeros
from composable_energy.energies.checks import advise_output, changed_points
from composable_energy.energies.conditions import parameters_of
from composable_energy.energies.energy import Energy
from composable_energy.errors import DtypeError, ExpressionError, LiftError, OptionError, ShapeError
from composable_energy.options import check_instance
from composable_energy.supports import Support, circle, contains, ends_of, interior
from composable_energy.supports.distributions import ARGUMENTS, inherits, map_tensors, support_of, tensors_in
from composable_energy.supports.variables import join_parts, read_variables, size_of, split


class DistributionEnergy(Energy):
    r"""The energy $-\log p(x)$ of a torch distribution; axes of its batch shape are independent axes of a point.

    Outside the support the energy is infinite with zero gradient, so that other branches of a mixture keep theirs; at NaN it is NaN.
    Tensors of the distribution are constants, which move with the energy. To learn them, lift a module that builds it in its `forward`.

    Args:
        distribution: The distribution; a point has its batch shape followed by its event shape. It is copied; its tensors are shared.
        name: The name in expressions; the class name of the distribution if empty.
        event_shape: The shape of one point; it must be that of the distribution.
        decoder: The decoder, for a density of latent points.

    Raises:
        LiftError: The distribution has no support, or one of its tensors requires a gradient.
        OptionError: It is discrete, and its points are neither whole numbers in an interval nor one-hot.
        ShapeError: `event_shape` is not the shape of a point.

    Example:
        >>> energy = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> energy(torch.ones(1, 2))
        tensor([2.8379])
    """

    infinite_outside = True

    def __init__(
        self, distribution: Distribution, *, name: str = "", event_shape: Sequence[int] | None = None, decoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.name = check_instance("name", name, str) or type(distribution).__name__
        _check(distribution)
        shape = self.event_shape = distribution.batch_shape + distribution.event_shape
        if event_shape not in (None, shape, list(shape)):
            raise ShapeError(
                f"A point of {self.name} has shape {tuple(shape)}, its batch shape followed by its event shape; got the "
                f"event_shape {event_shape}. Leave it out, or `expand` the distribution."
            )
        self.decoder = decoder
        self.has_gradient = not isinstance(getattr(distribution, "base_dist", distribution), Categorical)
        self.distribution = map_tensors(distribution)
        self._interior = None
        try:
            self.support = support_of(self.distribution)
            if not _is_positive(self.distribution):
                like = next((one for _, one in tensors_in(distribution).values() if one.is_floating_point()), torch.empty(0))
                self._interior = interior(self.support, like.new_zeros((1, *shape)))
        except (ValueError, RuntimeError, IndexError, TypeError, AssertionError) as error:
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
        return {"distribution": self.distribution, "name": self.name} | ({} if self.decoder is None else {"decoder": self.decoder})

    # Torch calls it when a module is moved or converted; `test_constants_move_with_the_energy` pins it.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DistributionEnergy":
        super()._apply(fn, recurse)
        self.distribution = map_tensors(self.distribution, fn)
        self._interior = None if self._interior is None else fn(self._interior)
        return self


def _check(distribution: Distribution) -> None:
    """Raises if a distribution has no support, or has learnable tensors: after a step others computed from them are stale."""
    name, inner, moved = type(distribution).__name__, distribution, False
    while isinstance(inner, Independent | MixtureSameFamily | TransformedDistribution):
        moved = moved or isinstance(inner, TransformedDistribution)
        inner = inner.component_distribution if isinstance(inner, MixtureSameFamily) else inner.base_dist
    try:
        support: Any = inner.support
    except (NotImplementedError, AttributeError):
        support = None
    if support is None or constraints.is_dependent(support):
        raise LiftError(f"{name} has no `support`, so an energy cannot be infinite outside; give the class one of torch's constraints.")
    if support.is_discrete and moved:
        raise LiftError(f"{name} transforms discrete numbers: lift the distribution of these, and transform points in a function.")
    for path, (_, tensor) in tensors_in(distribution).items():
        if tensor.requires_grad:
            raise LiftError(
                f"{path} of this {name} requires a gradient, and a distribution does not follow its parameters. To learn them, lift a "
                "module whose `forward(x)` builds the distribution and returns `-log_prob(x)`; `.detach()` the tensor to hold it constant."
            )


def _is_positive(distribution: Distribution) -> bool:
    """Returns whether a density is positive at all points, and its class is known not to validate them."""
    kind, support, of = type(distribution), support_of(distribution), cast(Any, distribution)
    if kind not in ARGUMENTS or not (support is None or support is circle):
        return False
    if kind is MixtureSameFamily:
        return _is_positive(of.component_distribution)
    return kind not in (Independent, TransformedDistribution) or _is_positive(of.base_dist)


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
    if support is not None and (ends := ends_of(support)) is not None:  # they may differ between components
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


class CallableEnergy(Energy):
    r"""The energy that a callable or module computes.

    Args:
        function: A function of points of shape $(B, *)$ that returns energies of shape $(B,)$. Its other parameters are conditions.
        name: The name in expressions; that of the function if empty.
        event_shape: The shape of one point, if there is only one.
        decoder: The decoder, for an energy of latent points.
        modules: Modules that the function is called with, as `function(x, *modules, **conditions)`. They become parts of the energy, so
            that sampling evaluates copies in eval mode. A module that the function uses otherwise must not be in training mode.
        support: Where the density lives, as of `Energy`, such as `constraints.positive`; the function is not evaluated outside.
        variables: Named variables in place of points, as in `Energy.over`: the function gets a tensor of shape $(B, *)$ for each.

    Raises:
        OptionError: The support is no constraint, one of `modules` is not a module, or the function does not take as many.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        name: str = "",
        event_shape: tuple[int, ...] | None = None,
        decoder: nn.Module | None = None,
        modules: Sequence[nn.Module] = (),
        support: Support = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for module in modules if isinstance(modules, Sequence | nn.ModuleList) else (None,):
            if not isinstance(module, nn.Module):
                raise OptionError(f"modules is a list of modules that the function is called with, got {modules!r:.100}.")
        self.function = function
        self.arguments = nn.ModuleList(modules) if modules else ()
        if modules:
            try:
                inspect.signature(function).bind_partial(*range(1 + len(modules)))
            except TypeError as error:
                raise OptionError(f"With `modules` the function is called as f(x, *modules, **conditions): {error}.") from error
        self.conditions, self.required_conditions, others = parameters_of(function, (variables is None) + len(modules))
        named = getattr(function, "func", None) or getattr(function, "_orig_mod", function)  # of functools.partial, of torch.compile
        own = getattr(named, "__name__", "") or getattr(named, "original_name", "") or type(named).__name__
        self.name, self.event_shape = name or ("energy" if own == "<lambda>" else own), event_shape
        self.decoder, self.support = decoder, support
        if variables is None:
            return
        self.variables, supports = read_variables(variables)
        taken = {"event_shape": self.event_shape, "decoder": self.decoder, "support": self.support}
        if wrong := [name for name, value in taken.items() if value is not None]:
            raise OptionError(f"`variables` say shapes and supports, and points are not latent: leave out {', '.join(wrong)}.")
        if not others and (unknown := self.variables.keys() - self.conditions):
            raise OptionError(f"{self.name} takes {', '.join(sorted(self.conditions)) or 'nothing'}, not {', '.join(sorted(unknown))}.")
        self.conditions, self.required_conditions = (names - self.variables.keys() for names in (self.conditions, self.required_conditions))
        self.event_shape, self.support = (size_of(self.variables),), join_parts(supports, self.variables)

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if len(self.variables):  # torch.compile takes an empty `MappingProxyType` for true
            return self.function(*self.arguments, **split(x, self.variables), **conditions)
        return self.function(x, *self.arguments, **conditions)


def as_energy(obj: Any, *, variables: str | Mapping[str, Any] | None = None, **options: Any) -> Energy:
    """Returns an object as an energy: an energy itself, a callable, a module, or a distribution with energy -log p.

    Args:
        obj: The object; an instance, not a class.
        variables: Named variables, as in `Energy.over`: a callable is called with a tensor of shape $(B, *)$ for each, by name; the point
            of anything else is one variable, for which a distribution is expanded.
        **options: Those of `CallableEnergy` or `DistributionEnergy`, such as `name` and `event_shape`. An energy takes a `decoder` alone:
            then it is one of latent points.

    Raises:
        LiftError: The object cannot become an energy: a class, or not a callable.
        OptionError: An option is unknown, or the object is already an energy and there are options other than `decoder`.
        ShapeError: The `event_shape` is not that of the distribution.

    Example:
        >>> bowl = ce.as_energy(lambda x: x.square().sum(1) / 2, name="bowl")
        >>> bowl(torch.ones(2, 3))
        tensor([1.5000, 1.5000])
        >>> joint = ce.as_energy(lambda a, b: (a - b).square().sum(1), variables={"a": (2,), "b": (2,)})
        >>> sorted((joint & ce.as_energy(torch.distributions.Normal(0.0, 1.0), variables={"b": (2,)})).sample(5, seed=0))
        ['a', 'b']
    """
    if variables is not None and isinstance(obj, Distribution | Energy):
        if isinstance(obj, Distribution) and isinstance(variables, Mapping) and len(variables) == 1:
            (shape,) = read_variables(variables)[0].values()
            with suppress(RuntimeError, NotImplementedError):  # else it stays as it is
                obj = obj.expand(shape[: len(shape) - len(obj.event_shape)])
        return as_energy(obj, **options).over(variables)
    options |= {} if variables is None else {"variables": variables}
    if isinstance(obj, Energy):
        if options.keys() == {"decoder"}:
            return obj if options["decoder"] is None else obj.shown_by(options["decoder"])
        if options:
            raise OptionError(f"{obj} is already an energy and takes no options, got {', '.join(options)}, other than a `decoder` alone.")
        return obj
    if not liftable(obj):
        got = f"the class {obj.__name__}; make an instance of it" if isinstance(obj, type) else type(obj).__name__
        got += ", a module without `forward`" if isinstance(obj, nn.Module) else ""
        raise LiftError(f"An energy is a callable (B, *) -> (B,), a module or a torch distribution, got {got}.{_advise(obj)}")
    cls: type[Any] = DistributionEnergy if isinstance(obj, Distribution) else CallableEnergy
    _, *known = inspect.signature(cls).parameters
    if unknown := options.keys() - set(known):
        raise OptionError(f"as_energy takes {', '.join(known)} for a {type(obj).__name__}, got {', '.join(sorted(unknown))}.")
    return cls(obj, **options)


def liftable(obj: object) -> bool:
    """Returns whether `as_energy` takes an object; not a distribution of another library, whose call is not its energy."""
    if isinstance(obj, nn.Module):
        return getattr(obj.forward, "__func__", None) is not nn.Module.forward  # as of a flow, or a list of modules
    return isinstance(obj, Distribution | FunctionType) or (callable(obj) and not isinstance(obj, type) and not _advise(obj))


def _advise(obj: object) -> str:
    """Returns what to write instead of a distribution of another library, after a space; empty for anything else."""
    names = [] if isinstance(obj, type) else ["log_prob", "score_samples", "logpdf", "logpmf"]
    if (method := next((name for name in names if callable(getattr(obj, name, None))), None)) is None:
        return ""
    if method == "log_prob":
        return " If its `log_prob` takes and returns tensors of torch, write `as_energy(lambda x: -obj.log_prob(x))`."
    return (
        f" Its log density, `{method}`, has no gradient. To evaluate it at points, write "
        f"`as_energy(lambda x: -torch.as_tensor(obj.{method}(x.numpy())))`; to sample it, take one of `torch.distributions`."
    )


class ScoreEnergy(CallableEnergy):
    r"""An energy whose gradient is the negative of a score $\nabla_x \log p(x)$; it has no value.

    It works with `&`, weights, `-` and `|` of events, and with samplers that need only gradients, such as `langevin`.

    Args:
        function: The score: a function of points of shape $(B, *)$ that returns $\nabla_x \log p(x)$ of that shape. Others are conditions.
            The other arguments of the class are those of `CallableEnergy`.

    Example:
        >>> score = ce.ScoreEnergy(lambda x: 3 - x, event_shape=(1,))
        >>> score.sample(1000, sampler="langevin", step_size=0.1, steps=200, seed=0).mean().round()
        tensor(3.)
    """

    has_value = False

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        raise ExpressionError(f"{self} is a score and has no value.")

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        point = x.detach()
        if self.support is None:
            return x.new_zeros(len(x)), -self.predict(point, **conditions).detach()
        inside = contains(self.support, point)
        score = self.predict(torch.where(unsqueeze_to(inside, x), point, interior(self.support, x)), **conditions).detach()
        return torch.where(inside, 0.0, torch.inf).to(x), torch.where(unsqueeze_to(inside, x), -score, 0.0)

    def score(self, x: Tensor, *, create_graph: bool = False, **conditions: Any) -> Tensor:
        return self.predict(x, **conditions) if create_graph else super().score(x, **conditions)

    def predict(self, x: Tensor, **conditions: Any) -> Tensor:
        """Returns the scores that the model gives, with the shape of the points and with the graph of its parameters.

        Raises:
            ShapeError, DtypeError: The model gives another shape, or no floating numbers.
        """
        version = None if x.is_inference() else x._version
        score = super().forward(x, **self._check_input(x, conditions))
        if version is not None and x._version != version:
            raise changed_points(self)
        if not isinstance(score, Tensor) or score.shape != x.shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ShapeError(f"The score {self} gave {got} for points of shape {tuple(x.shape)}; expected the shape of the points.")
        if not score.is_floating_point():
            raise DtypeError(f"The score {self} gave {score.dtype}; expected a floating tensor.{advise_output(score)}")
        return score.to(x.dtype)
