"""Lifting of callables, modules and distributions to energies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.conditions import parameters_of
from composable_energy.energies.distributions import DistributionEnergy
from composable_energy.energies.energy import Energy
from composable_energy.errors import ExpressionError, LiftError, OptionError, ShapeError
from composable_energy.options import check_instance
from composable_energy.supports import Support, contains, evaluate_inside, interior


class CallableEnergy(Energy):
    r"""The energy that a callable or module computes.

    Args:
        function: A function of points of shape $(B, *)$ that returns energies of shape $(B,)$. Its other parameters are conditions.
        name: The name in expressions; that of the function if empty.
        event_shape: The shape of one point, if there is only one.
        decoder: The decoder, for an energy of latent points.
        modules: Modules that the function is called with, as `function(x, *modules, **conditions)`. They become parts of the energy, and
            sampling evaluates copies in eval mode. A function that uses a module in training mode otherwise, such as in its closure, is not
            sampled.
        support: Where the density lives, such as `torch.distributions.constraints.positive`; None for all of $\mathbb{R}^n$. The energy is
            infinite outside, and the function is not evaluated there.

    Raises:
        OptionError: The support is no continuous constraint, one of `modules` is not a module, or the function does not take as many.
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
    ) -> None:
        super().__init__()
        wrong = [type(module).__name__ for module in modules if not isinstance(module, nn.Module)]
        if wrong:
            raise OptionError(f"modules takes modules that the function is called with, got {', '.join(wrong)}.")
        self.function = function
        self.arguments = nn.ModuleList(modules) if modules else ()
        if modules:
            try:
                inspect.signature(function).bind_partial(*range(1 + len(modules)))
            except TypeError as error:
                raise OptionError(f"With `modules` the function is called as f(x, *modules, **conditions): {error}.") from error
        self.conditions, self.required_conditions, _ = parameters_of(function, 1 + len(modules))
        self.name = name or _name_of(function)
        if event_shape is not None:
            self.event_shape = torch.Size(event_shape)
        if decoder is not None:
            self.decoder = check_instance("decoder", decoder, nn.Module)
        if support is not None:
            self.support = support

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if self.support is None:
            return self.function(x, *self.arguments, **conditions)
        return evaluate_inside(self.support, x, lambda points: self.function(points, *self.arguments, **conditions))


def as_energy(obj: Any, **options: Any) -> Energy:
    """Returns an object as an energy: an energy itself, a callable, a module, or a distribution with energy -log p.

    Args:
        obj: The object; an instance, not a class.
        **options: Options of `CallableEnergy`, such as `name`, `event_shape`, `support`, `decoder` and `modules`; for a distribution,
            those of `DistributionEnergy`. An energy takes a `decoder` alone: then it is one of latent points.

    Raises:
        LiftError: The object cannot become an energy: a class, a discrete distribution, or not a callable.
        OptionError: An option is unknown, or the object is already an energy and there are options other than `decoder`.
        ShapeError: The `event_shape` is not that of the distribution.
    """
    if isinstance(obj, Energy):
        if options.keys() == {"decoder"}:
            return obj if options["decoder"] is None else obj.shown_by(options["decoder"])
        if options:
            raise OptionError(f"{obj} is already an energy and takes no options, got {', '.join(options)}, other than a `decoder` alone.")
        return obj
    if not liftable(obj):
        got = f"the class {obj.__name__}; make an instance of it" if isinstance(obj, type) else type(obj).__name__
        raise LiftError(f"An energy is a callable (B, *) -> (B,), a module or a torch distribution, got {got}.{_advise(obj)}")
    cls: type[Any] = DistributionEnergy if isinstance(obj, Distribution) else CallableEnergy
    _, *known = inspect.signature(cls).parameters
    unknown = options.keys() - set(known)
    if unknown:
        raise OptionError(f"as_energy takes {', '.join(known)} for a {type(obj).__name__}, got {', '.join(sorted(unknown))}.")
    return cls(obj, **options)


def liftable(obj: object) -> bool:
    """Returns whether `as_energy` takes an object; not a distribution of another library, whose call is not its energy."""
    return isinstance(obj, Distribution | nn.Module | FunctionType) or (callable(obj) and not isinstance(obj, type) and not _advise(obj))


def _advise(obj: object) -> str:
    """Returns what to write instead of a distribution of another library, after a space; empty for anything else."""
    names = ("log_prob", "score_samples", "logpdf", "logpmf")
    method = None if isinstance(obj, type) else next((name for name in names if callable(getattr(obj, name, None))), None)
    if method is None:
        return ""
    if method == "log_prob":
        return " If its `log_prob` takes and returns tensors of torch, write `as_energy(lambda x: -obj.log_prob(x))`."
    return (
        f" Its log density, `{method}`, has no gradient. To evaluate it at points, write "
        f"`as_energy(lambda x: -torch.as_tensor(obj.{method}(x.numpy())))`; to sample it, take one of `torch.distributions`."
    )


def _name_of(function: Callable[..., Any]) -> str:
    function = getattr(function, "func", None) or getattr(function, "_orig_mod", function)  # of functools.partial, of torch.compile
    name = getattr(function, "__name__", "") or getattr(function, "original_name", "") or type(function).__name__
    return "energy" if name == "<lambda>" else name


class ScoreEnergy(CallableEnergy):
    r"""An energy whose gradient is the negative of a score $\nabla_x \log p(x)$; it has no value.

    It works with `&`, weights, `-` and `|` of events, and with samplers that need only gradients, such as `langevin`.

    Args:
        function: The score: a function of points of shape $(B, *)$ that returns $\nabla_x \log p(x)$ of the same shape. Its other
            parameters are conditions.
        name: The name in expressions; that of the function if empty.
        event_shape: The shape of one point, if there is only one.
        decoder: The decoder, for a score of latent points.
        modules: Modules that the function uses; see `CallableEnergy`.
        support: Where the density lives; None for all of $\mathbb{R}^n$.

    Example:
        >>> import torch, composable_energy as ce
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
            ShapeError: The model gives another shape.
        """
        score = self.function(x, *self.arguments, **self._check_input(x, conditions))
        if not isinstance(score, Tensor) or score.shape != x.shape:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ShapeError(f"The score {self} gave {got} for points of shape {tuple(x.shape)}; expected the shape of the points.")
        return score
