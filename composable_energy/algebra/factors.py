"""Energies over named variables: factors over some of the variables of an expression, at given values of others, or over an index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra.node import Operand, Transformed, format_value
from composable_energy.algebra.transformed import bind_conditions, noise_leaves
from composable_energy.arithmetic import Estimate
from composable_energy.energies import Energy, as_energy
from composable_energy.energies.bases import WeightedBase, evidence_of
from composable_energy.energies.conditions import copy_condition
from composable_energy.energies.evaluation import THREAD, evaluating, memoize
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.events import Formula, Variable
from composable_energy.options import check_integer
from composable_energy.supports import Support, contains, format_support
from composable_energy.supports.variables import Variables, flatten_support, join_parts, parts_by_name, places_of, read_variables, size_of


@dataclass(frozen=True)
class Place:
    """Where a point of an energy is in one of named variables: a point of variables itself if it is `named`, else a tensor of them."""

    variables: tuple[tuple[str, torch.Size], ...]
    names: tuple[str, ...]
    named: bool

    def put(self, formula: Formula) -> Formula:
        """Returns a formula of points at this place as one of points of all variables."""
        placed = list[Variable]()
        for own in formula.variables:
            place = self if own.source.place is None else replace(own.source.place, variables=self.variables)
            base = None if own.base is None else _put(own.base, dict(self.variables), self.names)
            placed.append(replace(own, source=replace(own.source, place=place), base=base))
        return Formula(tuple(placed), formula.nodes)

    def select(self, x: Tensor, values: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """Returns the points at this place, with values of names that are no variables; factors at one place share them."""
        version = 0 if x.is_inference() else x._version
        return memoize(("factor", id(x), version, self, *map(id, values.values())), (x, values), lambda: self._select(x, values))

    def _select(self, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        shapes, places = dict(self.variables), places_of(dict(self.variables))
        parts = [x[:, places[n]] if n in places else values[n].to(x).reshape(1, -1).expand(len(x), -1) for n in self.names]
        if not self.named:
            shapes = [shapes[name] for name in self.names]
            parts = [part.reshape(len(x), *(shape or (1,) * (len(shapes) > 1))) for part, shape in zip(parts, shapes, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class Factor(Transformed):
    r"""An energy over some of the named variables of a point: a factor of a factor graph.

    Args:
        operand: The energy, over named variables, or of points that are one variable, or several joined along their last axis.
        variables: The variables of a point, with their shapes.
        names: Which variables, in this order, a point of the operand consists of.
        values: The values of those names that are no variables of a point.

    Raises:
        ExpressionError: The operand has latent points, only some of its terms have noise levels, or a name is also that of a condition.
    """

    def __init__(self, operand: Energy, variables: Variables, names: Sequence[str], values: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(operand)
        if operand.decoder is not None:
            raise ExpressionError(f"{operand} is an energy of latent points, which have no named variables.")
        if "sigma" in operand.conditions and noise_leaves(operand).plain:
            raise ExpressionError(f"{operand} has noise levels in some terms: name each of its terms, as in `A.over(name) & B.over(name)`.")
        self.names, self.values = tuple(names), dict(values or {})
        self.variables = {name: torch.Size(shape) for name, shape in variables.items()}
        if both := self.conditions & {*self.variables, *self.names}:
            raise ExpressionError(f"{', '.join(sorted(both))} of {operand} would be the name of a condition and of a variable.")
        self.event_shape = (size_of(self.variables),)
        self.precedence = 100 if self.values else getattr(operand, "precedence", 100)
        self.place_in_point = Place((*self.variables.items(),), self.names, bool(operand.variables))
        if operand.formula is not None and not self.values:
            self.formula = self.place_in_point.put(operand.formula)
        self.bases = tuple(WeightedBase(_put(base.energy, variables, names, values), base.scaled_by) for base in operand.bases)

    def around(self, operand: Energy) -> "Factor":
        """Returns a factor of another energy at the same place; unlike `rebuild` with the recommendation of that energy."""
        return Factor(operand, self.variables, self.names, self.values)

    def config(self) -> dict[str, Any]:
        return {"variables": {name: tuple(shape) for name, shape in self.variables.items()}, "names": self.names, "values": self.values}

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer if self.variables.keys() == {*self.names} else None

    def join_supports(self, supports: Sequence[Support]) -> Support:
        operand, (support,) = self.terms[0], supports
        if support is None:
            return None
        if len(own := operand.variables or {name: self.variables[name] for name in self.names}) == 1 and not operand.variables:
            return join_parts({name: flatten_support(name, support, shape) for name, shape in own.items()}, self.variables)
        return join_parts(parts_by_name(support, own), self.variables)

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return self.terms[0].grounded  # also for finitely many states

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        evaluation, point = THREAD.evaluation, self.point(x)
        noisy, clean, sigma = (None, None, None) if evaluation is None else evaluation.denoised
        if noisy is not x:
            return evidence_of(self.terms[0], point, conditions)
        with evaluating(denoised=(point, None if clean is None else self.point(clean), sigma)):
            return evidence_of(self.terms[0], point, conditions)

    def point(self, x: Tensor) -> Tensor:
        """Returns the points of the operand, for points of all variables."""
        return self.place_in_point.select(x, self.values)

    def text(self, operand: Operand) -> str:
        if not self.values:
            return operand(self.terms[0], self.precedence)
        given = ", ".join(f"{name}={format_value(value)}" for name, value in self.values.items())
        return f"{operand(self.terms[0], 95)}.given({given})"


class OverTime(Transformed):
    r"""An energy of rows in succession at each place of an index, such as time: $E(x) = \sum_t E_k(x_t, \dots, x_{t + k - 1})$.

    For a normalised $-\log p(s' \mid s)$ it is the density of trajectories given their first state; other terms say where they are.

    Args:
        pair: The energy of $k$ rows, with `event_shape` $(k, *)$, such as a pair of states.
        horizon: $T$, the number of rows of a point, which has the shape $(T, *)$.

    Raises:
        ShapeError: The energy has no `event_shape` of rows, or named variables.
        OptionError: There are fewer than $k$ rows.
        ExpressionError: The energy is relative to a base, which would count once for each window, or its support joins rows.

    Example:
        >>> step = ce.energies.CallableEnergy(lambda x: (x[:, 1] - x[:, 0]).square().sum(1) / 2, event_shape=(2, 1))
        >>> ce.over_time(step, 3).over("path")({"path": torch.tensor([[[0.0], [1.0], [3.0]]])})
        tensor([2.5000])
    """

    def __init__(self, pair: Energy, horizon: int) -> None:
        super().__init__(pair := as_energy(pair))
        if not pair.event_shape or pair.variables:
            found = f"is over {', '.join(pair.variables)}" if pair.variables else "has none"
            raise ShapeError(f"The energy of rows in succession needs an event_shape (k, *), such as (2, d) for pairs; {pair} {found}.")
        if pair.bases:
            raise ExpressionError(f"{pair} is relative to {pair.bases[0].energy}, which would count for each window: lift another energy.")
        if getattr(pair.support, "event_dim", 0) >= len(pair.event_shape):
            raise ExpressionError(f"{pair} is on {format_support(pair.support)}, which joins rows, and a row is part of several windows.")
        self.window, *row = pair.event_shape
        self.horizon = check_integer("horizon", horizon, self.window)
        self.event_shape = (self.horizon, *row)

    def config(self) -> dict[str, Any]:
        return {"horizon": self.horizon}

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        count = x.shape[1] - self.window + 1
        for name, value in conditions.items():  # one row for each point
            if isinstance(value, Tensor) and value.ndim and len(value) == len(x) > 1:
                conditions[name] = value.repeat_interleave(count, 0)
        return evidence_of(self.terms[0], self.point(x), conditions).unflatten(0, (len(x), count)).sum(1)

    def point(self, x: Tensor) -> Tensor:
        """Returns the windows, as points of the operand."""
        return x.unfold(1, self.window, 1).movedim(-1, 2).flatten(0, 1)

    def text(self, operand: Operand) -> str:
        return f"over_time({operand(self.terms[0], 0)}, {self.horizon})"


over_time = OverTime
"""An energy of rows in succession over time; see `OverTime`."""


def place(energy: Energy, variables: str | Mapping[str, Any]) -> Energy:
    """Returns the energy over named variables: `&` joins it with others by name, and `sample` returns a mapping.

    Args:
        energy: The energy.
        variables: The name of the point, or a mapping from that name to a shape, a support such as `constraints.positive` for a single
            number, or a pair of both; several names are parts along its last axis. For an energy over variables, these and others.

    Raises:
        OptionError: `variables` is no such mapping.
        ShapeError: The point does not consist of variables of these shapes.
        ExpressionError: The energy is one of latent points.

    Example:
        >>> prior = ce.as_energy(torch.distributions.Normal(0.0, 1.0)).over("mu")
        >>> prior.sample(3, seed=0)["mu"].shape
        torch.Size([3])
    """
    if isinstance(variables, str):
        if energy.event_shape is None:
            raise ShapeError(f"{energy} does not say the shape of its points: write `.over({{{variables!r}: shape}})`.")
        variables = {variables: (energy.event_shape, None)}
    shapes, supports = read_variables(variables)
    support, known = join_parts(supports, shapes), energy.variables
    if not known:
        (first, *others), own = shapes.values(), energy.event_shape
        joined = torch.Size((*first[:-1], sum(shape[-1:].numel() for shape in shapes.values()))) if others else first
        if own not in (None, joined) or any(shape[:-1] != first[:-1] for shape in others):
            found = "points of any shape" if own is None else f"points of shape {tuple(own)}"
            raise ShapeError(f"{energy} takes {found}, which are one variable or several along their last axis, got {_list(shapes)}.")
        factor = Factor(energy, shapes, list(shapes))
    else:
        if wrong := [name for name, shape in known.items() if shapes.get(name) != shape]:
            every = ", ".join(f"{name!r}: {tuple(shape)}" for name, shape in known.items())
            raise ShapeError(
                f"{energy} is over {_list(known)} already, and {', '.join(shapes)} lacks {', '.join(wrong)} of this shape: leave out "
                f"`.over`, or write all variables, these and others, as in `.over({{{every}, 'other': ()}})`."
            )
        factor = _put(energy, shapes, list(known))
    return factor if support is None else factor.on(support)


def _put(energy: Energy, variables: Variables, names: Sequence[str], values: Mapping[str, Tensor] | None = None) -> Factor:
    """Returns the factor of an energy; of a factor without these values that of its operand, so that equal bases stay equal."""
    if isinstance(energy, Factor) and not energy.values and variables.keys() >= {*energy.names}:
        return Factor(energy.terms[0], variables, energy.names)
    return Factor(energy, variables, names, values)


def _list(variables: Variables) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in variables.items())


def bind_names(energy: Energy, given: Mapping[str, Any]) -> Energy:
    """Returns an energy with conditions bound, or at values of some of its variables, over the others; see `Energy.given`."""
    fixed = [name for name in energy.variables if name in given]
    conditions = {name: value for name, value in given.items() if name not in fixed}
    energy = bind_conditions(energy, conditions) if conditions else energy
    if not fixed:
        return energy
    if not (rest := {name: shape for name, shape in energy.variables.items() if name not in fixed}):
        raise OptionError(f"{energy} has no variables but {', '.join(fixed)}: evaluate it there, `E({{...}})`.")
    # A float keeps its digits.
    values = {n: torch.as_tensor(copy_condition(v := given[n]), dtype=torch.float64 if isinstance(v, float) else None) for n in fixed}
    parts = parts_by_name(energy.support, energy.variables)
    for name, value in values.items():
        if value.shape != energy.variables[name]:
            raise ShapeError(f"The variable {name} has shape {tuple(energy.variables[name])}, got a value of shape {tuple(value.shape)}.")
        if not contains(parts[name], value.reshape(1, -1).detach().double()).all():
            raise OptionError(f"{name} is in {format_support(parts[name])}, got {value}.")
    return Factor(energy, rest, list(energy.variables), values)
