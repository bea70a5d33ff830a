"""A diffusion model as an energy at noise levels, with one call of its network for all of its concepts in an expression."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.algebra import Conditioned
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.conditions import parameters_of
from composable_energy.energies.evaluation import current
from composable_energy.errors import ExpressionError, LiftError, OptionError, ShapeError
from composable_energy.options import check_choice
from composable_energy_diffusion.parametrisations import PARAMETRISATIONS, noise_of
from composable_energy_diffusion.schedules import Schedule, schedule_of

Conditions = Mapping[str, Tensor]
Check = Callable[[Tensor, dict[str, Any]], Conditions]
Gradient = Callable[[Tensor, Conditions], Tensor]


def batched_gradient(energy: Energy, x: Tensor, conditions: Conditions, check: Check, gradient: Gradient) -> Tensor | None:
    """Returns the gradient of a leaf from a batch with all conditions under which the expression evaluates it; None if it stands alone. The
    expression is that of the current `with_gradient`. Conditions with one row for each chain are not batched."""
    if (evaluation := current()) is None or not x.requires_grad or torch.compiler.is_compiling():
        return None
    root = evaluation.root
    if root is energy or not isinstance(root, Energy):
        return None
    sigma = conditions["sigma"]

    # `_version` counts writes to a tensor; the memo of the expression ends with its evaluation, and holds what the key names.
    memo, key = evaluation.memo, ("batched", id(energy), id(x), x._version, id(sigma))
    if memo is None:
        return None
    if key not in memo:
        memo[key] = _gradients(root, energy, x, conditions, check, gradient), (energy, x, sigma)
    return next((found for use, found in memo[key][0] if _same(use, conditions)), None)


def _gradients(
    root: Energy, energy: Energy, x: Tensor, conditions: Conditions, check: Check, gradient: Gradient
) -> list[tuple[Conditions, Tensor]]:
    """Returns all conditions under which an expression evaluates a leaf at these points, with the gradients."""
    sigma, point, uses = conditions["sigma"], x.detach(), [conditions]
    for values in _bound_values(root, energy):
        rows = check(x, {"sigma": sigma, **values})
        if torch.equal(rows["sigma"], sigma) and _alike(rows, conditions) and not any(_same(rows, use) for use in uses):
            uses.append(rows)
    if len(uses) == 1:
        return [(conditions, gradient(point, conditions))]
    joined = {name: torch.cat([use[name] for use in uses]) for name in conditions}
    return list(zip(uses, gradient(torch.cat([point] * len(uses)), joined).chunk(len(uses)), strict=True))


def _bound_values(root: Energy, energy: Energy) -> list[Mapping[str, Any]]:
    """Returns the conditions that are bound where a leaf occurs in an expression, without those of which each chain has its own."""
    found: list[Mapping[str, Any]] = []
    todo: list[tuple[Energy, Mapping[str, Any]]] = [(root, {})]
    seen: set[tuple[Energy, tuple[tuple[str, int], ...]]] = set()
    for node, outer in todo:
        values = {**outer, **node.values} if isinstance(node, Conditioned) else outer
        for part in dict.fromkeys((*node.terms, *(base.energy for base in node.bases))):
            if part is energy:
                complete = energy.required_conditions <= values.keys() | {"sigma"}
                if complete and not any(isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1 for value in values.values()):
                    found.append({name: value for name, value in values.items() if name in energy.conditions})
            if (key := (part, tuple((name, id(value)) for name, value in values.items()))) not in seen:
                seen.add(key)
                todo.append((part, values))
    return found


def _alike(some: Conditions, others: Conditions) -> bool:
    """Returns whether rows of conditions can be joined."""
    return some.keys() == others.keys() and all((v.shape, v.dtype) == (others[name].shape, others[name].dtype) for name, v in some.items())


def _same(some: Conditions, others: Conditions) -> bool:
    return _alike(some, others) and all(v is others[name] or torch.equal(v, others[name]) for name, v in some.items())


_VALUES = "energy"  # the parametrisation of a model that returns energies
_READY: ContextVar[tuple[Energy, Tensor] | None] = ContextVar("ready", default=None)


class DiffusionEnergy(Energy):
    r"""The energy of a diffusion model at a noise level, $E(y, \sigma) = -\log p_\sigma(y)$ with $p_\sigma = p_0 * N(0, \sigma^2 I)$.

    The model is called as `model(x_t, t, **conditions)` with $x_t = a\, y$, where the scale $a$ and the time $t$ are those of the schedule
    at $\sigma$. Its output gives the gradient $\nabla_y E = \hat\epsilon / \sigma$. There is no value, so samplers that accept and reject
    refuse the energy, unless the parametrisation is `energy`: then the model returns $-\log p_t(x_t)$ up to a constant, with shape $(B,)$.

    `E.concept(y=3)` is relative to the unconditional model. Concepts of one model that occur in an expression are evaluated by one call of
    the network, with a batch that holds all of them, in eval mode (as `sample` does).

    Args:
        model: A module or function of points with shape $(B, *)$, times with shape $(B,)$, and conditions.
        schedule: A schedule, its name, or a mapping with `name` and options.
        parametrisation: What the model returns: `epsilon`, `x0`, `v`, `flow`, `score`, `edm` or `energy`.
        unconditional: Values of conditions for calls that give none, such as the null class: `{"y": 10}`.
        event_shape: The shape of one point, if there is only one.

    Raises:
        LiftError: The model is not callable.
        OptionError: A name is unknown, or the parametrisation does not fit the schedule.

    References:
        Compositional visual generation with composable diffusion models (Liu et al., 2022), https://arxiv.org/abs/2206.01714

    Example:
        >>> import torch
        >>> E = DiffusionEnergy(lambda x, t: x / (1 + t[:, None] ** 2) ** 0.5, "ve", "score", event_shape=(2,))
        >>> E.conditions, E.has_value
        (frozenset({'sigma'}), False)
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("schedule", "parametrisation", "name")

    def __init__(
        self,
        model: Callable[..., Tensor],
        schedule: Schedule | str | Mapping[str, Any] = "vp-discrete",
        parametrisation: str = "epsilon",
        *,
        unconditional: Mapping[str, Any] | None = None,
        name: str = "",
        event_shape: Sequence[int] | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not callable(model) or isinstance(model, type):
            raise LiftError(f"model must be a module or function of points and times, got {model!r}.")
        self.model, self.schedule = model, schedule_of(schedule)
        self.parametrisation = check_choice("parametrisation", parametrisation, (*PARAMETRISATIONS, _VALUES))
        if parametrisation != _VALUES:
            PARAMETRISATIONS[parametrisation](self.schedule, torch.ones(1))  # whether it fits the schedule
        self.has_value = parametrisation == _VALUES
        self._taken = parameters_of(model, 2)
        self.unconditional = dict(unconditional or {})
        self.name = name or (type(model).__name__ if isinstance(model, nn.Module) else "diffusion")
        if event_shape is not None:
            self.event_shape = torch.Size(event_shape)
        if decoder is not None:
            self.decoder = decoder
        if self.unconditional.keys() - self._names:
            self.given(**self.unconditional)  # raises

    @property
    def _names(self) -> frozenset[str]:
        return self._taken.names - {"sigma"}

    @property
    def conditions(self) -> frozenset[str]:
        return self._names | {"sigma"}

    @property
    def required_conditions(self) -> frozenset[str]:
        return (self._taken.required - self.unconditional.keys()) | {"sigma"}

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.schedule.sigma_range

    def config(self) -> dict[str, Any]:
        shape = None if self.event_shape is None else tuple(self.event_shape)
        own = {"model": self.model, "schedule": self.schedule.config(), "parametrisation": self.parametrisation}
        return {**own, "unconditional": self.unconditional, "name": self.name, "event_shape": shape, "decoder": self.decoder}

    def concept(self, **conditions: Any) -> Energy:
        """Returns the energy with conditions bound, such as `y=3`, relative to the unconditional model.

        Raises:
            ExpressionError: The model takes no condition of that name, or there are no values for the unconditional model.
        """
        if missing := sorted(self.required_conditions - {"sigma"}):
            raise ExpressionError(
                f"The unconditional model of {self} is not known, as it needs {', '.join(missing)}: give the values of no concept, such as "
                f"`unconditional={{{missing[0]!r}: 0}}`, or make a base of your own and write `E.given(...).relative_to(base)`."
            )
        return self.given(**conditions).relative_to(self)

    def __call__(self, x: Tensor, **conditions: Any) -> Tensor:
        if self.has_value or self.training:
            return super().__call__(x, **conditions)
        gradient = batched_gradient(self, x, self._check_input(x, conditions), self._check_input, self._gradient)
        token = _READY.set(None if gradient is None else (self, gradient))
        try:
            return super().__call__(x, **conditions)
        finally:
            _READY.reset(token)

    def forward(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        if not self.has_value:
            raise ExpressionError(f"{self} is a diffusion model with the output {self.parametrisation}, and has no value.")
        return self.predict(x, sigma, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        if self.has_value:
            return super().with_gradient(x, **conditions)
        if (ready := _READY.get()) is not None and ready[0] is self:
            return x.new_zeros(len(x)), ready[1]
        return x.new_zeros(len(x)), self._gradient(x.detach(), self._check_input(x, conditions))

    def predict(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        r"""Returns what the model gives for points $y = x_t / a$ at noise levels with shape $(B,)$, with the graph of its weights.

        Raises:
            OptionError: A noise level is outside of the schedule, or the model has no class of a number.
            ShapeError: The model returns no tensor.
        """
        low, high = self.sigma_range
        if not bool(((sigma >= low * (1 - 1e-4)) & (sigma <= high * (1 + 1e-4))).all()):
            raise OptionError(
                f"{self} knows the noise levels from {low:.4g} to {high:.4g} of its schedule {self.schedule.name}, "
                f"got {sigma.min():.4g} to {sigma.max():.4g}."
            )
        sigma = sigma.clamp(low, high)
        try:
            output = self.model(unsqueeze_to(self.schedule.scale(sigma), x) * x, self.schedule.time(sigma), **conditions)
        except IndexError as error:  # that of an embedding
            given = ", ".join(f"{name} from {value.min():.4g} to {value.max():.4g}" for name, value in conditions.items() if value.numel())
            raise OptionError(f"{self} failed at {given}: {error}. Give classes that the model has, also as `unconditional`.") from error
        if not isinstance(output, Tensor):
            raise ShapeError(f"The model of {self} gave a {type(output).__name__}; return the tensor alone, such as `output.sample`.")
        return output

    def _check_input(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        return super()._check_input(x, {**self.unconditional, **conditions})

    def _gradient(self, x: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            sigma = conditions["sigma"]
            return noise_of(self.predict(x, **conditions), x, sigma, self.parametrisation, self.schedule) / unsqueeze_to(sigma, x)
