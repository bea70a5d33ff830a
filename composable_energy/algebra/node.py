"""The abstract nodes of expressions, what terms have in common, such as bases and a space, and the text of expressions."""

import math
import weakref
from abc import ABC
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import filterfalse
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy.energies import Energy, RelativeEnergy
from composable_energy.energies.checks import check_value, has_levels
from composable_energy.energies.conditions import detach_conditions
from composable_energy.energies.identity import Copies, same
from composable_energy.errors import ContradictionError, ExpressionError, OptionError, ShapeError
from composable_energy.events import Formula
from composable_energy.options import Recommendation
from composable_energy.supports import Support, is_bounded, is_discrete, parts_of
from composable_energy.supports.variables import unite_variables

Weight = float | Tensor
Operand = Callable[[Energy, int], str]  # returns the text of an operand, in parentheses if its precedence is lower than a number
_LONGEST = 20_000  # characters


class Node(RelativeEnergy, ABC):
    """Abstract node: an energy computed from energies at the same points and conditions; one of other points is `Transformed`.

    A subclass implements `forward_evidence` and `join_grounded`, and overrides `join_supports` if the supports of its terms may differ.
    `terms` are positional arguments of its constructor, and `config()` returns the others. Its attributes, such as the conditions, are set
    from the terms once, as a part may occur many times; a subclass changes what differs.

    Args:
        operands: The sub-expressions, in one space (see `to_common_space`).

    Attributes:
        precedence: The precedence of its operator in Python; higher binds tighter.
        sums: Whether the energy is a weighted sum of its terms, so that its gradient does not depend on their values.

    Raises:
        ShapeError: The terms take points of different shapes.
    """

    precedence: int = 100
    sums: ClassVar[bool] = False
    conditions: frozenset[str] = frozenset()
    required_conditions: frozenset[str] = frozenset()
    evidence_has_value: bool = True
    unsatisfiable: bool = False
    decoded_shape: torch.Size | None = None
    _notes_needs: ClassVar[bool] = False  # whether the class calls `need_values` itself; else other nodes than sums need all values
    _decoders: tuple[nn.Module, ...] = ()  # one or none; in a tuple it is no module of this node
    _opposite: Energy | weakref.ref[Energy] | None = None

    def __init__(self, *operands: Energy) -> None:
        super().__init__()
        self.operands, self.terms = nn.ModuleList(operands), tuple(operands)
        self.recommended = common_recommendation(operands)
        if operands[0].variables:
            self.variables = operands[0].variables
        shaped, shape = None, None
        for term in operands:
            if shape is None:
                shaped, shape = term, term.event_shape
            elif term.event_shape not in (None, shape):
                raise ShapeError(
                    f"{shaped} takes points of shape {tuple(shape)} and {term} points of shape {tuple(term.event_shape or ())}; "
                    "all terms of an expression must take the same shape."
                )
            if term.variables != self.variables:
                raise ShapeError(f"{operands[0]} and {term} have other variables; bring terms to one space by `to_common_space`.")
            self.conditions |= term.conditions
            self.required_conditions |= term.required_conditions
            self.unsatisfiable |= term.unsatisfiable
            self.evidence_has_value &= term.evidence_has_value
            self.needs_log_densities |= term.needs_log_densities
            self._signed |= term._signed
            if term.decoder is not None:
                self._decoders, self.decoded_shape = self._decoders or (term.decoder,), self.decoded_shape or term.decoded_shape
        self.event_shape, self._copies = shape, Copies(self)
        counts, todo = Counter[Energy](), [cast(Energy, self)]
        while todo:
            for term in todo.pop().terms:
                if term not in counts:
                    todo.append(term)
                counts[term] += 1
                if counts[term] == 2:
                    self._repeated += (term,)
        if not (self.sums or self._notes_needs):
            self.need_values(type(self).__name__, operands)

    def need_values(self, use: str, energies: Iterable[Energy]) -> None:
        """Notes energies whose values, or those of their evidence, this node needs for a `use` that messages name.

        Raises:
            ExpressionError: One has no value, and is no expression of scores with noise levels, along which values can be carried.
        """
        lacking = tuple(energy for energy in energies if not energy.evidence_has_value)
        for energy in lacking:
            if not has_levels(energy):
                check_value(energy, use, evidence=True)
        self._valueless, self._values_for = self._valueless + lacking, use
        self.needs_log_densities |= bool(lacking)
        self.evidence_has_value = self.evidence_has_value and not lacking

    @property
    def decoder(self) -> nn.Module | None:
        return self._decoders[0] if self._decoders else None

    @property
    def support(self) -> Support:
        return self.find("support", {})

    @property
    def grounded(self) -> bool:
        return self.find("grounded", {}) or (all(map(is_discrete, parts_of(self.support))) and is_bounded(self.support))

    def join_supports(self, supports: Sequence[Support]) -> Support:
        """Returns the support of a density from those of the terms; that of the first term by default."""
        return supports[0]

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        """Returns whether the density can be normalised, from whether those of the terms can; by default if a base can."""
        densities = [*filter(attrgetter("grounded"), map(attrgetter("energy"), self.bases))]
        return bool(densities) and (not self.variables or self.covered_by(densities))

    def covered_by(self, densities: Iterable[Energy]) -> bool:
        """Returns whether each named variable is one of a density."""
        return {name for density in densities for name in getattr(density, "names", density.variables)} >= self.variables.keys()

    def find(self, name: Literal["support", "grounded"], found: dict[Energy, Any]) -> Any:
        """Returns what `join_supports` or `join_grounded` makes of the terms; `found` has it of parts, so that each is visited once."""
        if self not in found:
            of_terms, usual = list[Any](), getattr(Node, name)
            for term in self.terms:  # without a frame of its own, in a deep recursion
                of_terms.append(cast(Node, term).find(name, found) if getattr(type(term), name) is usual else getattr(term, name))
            found[self] = self.join_supports(of_terms) if name == "support" else self.join_grounded(of_terms)
        return found[self]

    def config(self) -> dict[str, Any]:
        return {}

    def __str__(self) -> str:
        texts: dict[Energy, str] = {}  # a part that occurs several times is formatted once

        def operand(energy: Any, precedence: int) -> str:
            if energy not in texts:
                text = energy.text(operand) if type(energy).__str__ is Node.__str__ else str(energy)
                texts[energy] = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
            return f"({texts[energy]})" if getattr(energy, "precedence", 100) < precedence else texts[energy]

        return operand(self, 0)

    def text(self, operand: Operand) -> str:
        """Returns the text of the expression, from those of its operands."""
        return self.name or type(self).__name__

    def _check_input(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        if self._copies.pairs and (pair := self._copies.differ()) is not None:
            raise ExpressionError(
                f"{self} counts two copies of one {type(pair[0]).__name__} once, but their numbers differ now. Build the expression again; "
                "or, to train both as one, build the terms over one object: `b = b.rebuild(base=a.base)`."
            )
        return super()._check_input(x, conditions)

    @property
    def opposite(self) -> Energy | None:
        """The complement of this node that exists already, if there is one."""
        return self._opposite() if isinstance(self._opposite, weakref.ref) else self._opposite

    def link_opposite(self, opposite: "Node") -> None:
        """Makes two nodes each other's complement, so that `~~A is A`, and a parity of 12 events has 97 nodes instead of 8,201."""
        self._opposite = weakref.ref(opposite)  # weak, so that no cycle keeps networks in memory
        object.__setattr__(opposite, "_opposite", self)  # not as a sub-module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opposite": None}

    def became_twin(self) -> None:
        super().became_twin()
        if self._copies.pairs:
            self._copies.watch(True)
            self._direct = frozenset()  # each evaluation looks whether the copies are still equal

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._opposite = None  # it is not converted
        self._copies.watch(False)
        return super()._apply(fn, recurse)


class Transformed(Node, ABC):
    """Abstract node that evaluates its first term at other points, such as decoded ones, or under other conditions with bound `values`."""

    sums: ClassVar[bool] = True
    values: Mapping[str, Any] = MappingProxyType({})

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return grounded[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.values = {name: fn(value) if isinstance(value, Tensor) else value for name, value in self.values.items()}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "values": detach_conditions(self.values)}


@contextmanager
def dividing_by(node: Node, power: Weight = -1.0) -> Iterator[None]:
    """A context in which a node takes a power of a density, a negative one by default."""
    try:
        yield
    except ContradictionError as error:
        if as_float(power) >= 0:  # a power of 0 keeps the support
            raise
        raise ExpressionError(f"{node} divides by a density that is 0 everywhere, so it has no value. {error}") from error


def set_weight(node: Node, weight: Weight) -> None:
    """Sets the weight of a node: a learnable parameter, a buffer for another tensor, or a number."""
    try:
        if (isinstance(weight, Tensor) and weight.ndim) or not math.isfinite(as_float(weight)):
            raise ValueError("not a finite number")
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
        raise OptionError(f"A weight must be a finite real number or a 0-d tensor of one, got {weight!r}{shape}.") from error
    if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
        node.register_buffer("weight", weight)
    else:
        setattr(node, "weight", weight if isinstance(weight, Tensor) else float(weight))  # noqa: B010  (declared by subclasses)


def as_float(weight: Weight) -> float:
    """Returns the value of a weight, which may be learnable."""
    return float(weight.detach() if isinstance(weight, Tensor) else weight)


def format_value(value: Any) -> str:
    """Returns the value of a condition or variable as text."""
    if isinstance(value, Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
    return f"{value:g}" if isinstance(value, (int, float)) else repr(value)


def flatten(terms: Sequence[Any], kind: type[Energy]) -> list[Energy]:
    """Returns terms with nodes of a class, without weights, that occur once replaced by their terms: so `E = E & E` adds one node each.
    So are those with events inside of factors of the same variables, as events join others."""
    counts, result = Counter(terms), list[Energy]()
    names = Counter(term.names for term in terms if hasattr(term, "place_in_point")) if terms and terms[0].variables else {}
    for term in terms:
        shared = hasattr(term, "place_in_point") and names.get(term.names, 0) > 1 and not term.values
        mixed = shared and any(part.formula for part in getattr(term.terms[0], "terms", ()))
        node = term.terms[0] if mixed else term
        whole = not isinstance(node, kind) or counts[term] > 1 or getattr(node, "weighted", False)
        result += (term,) if whole else map(term.around, node.terms) if mixed else term.terms
    return result


def join_events(terms: Sequence[Energy], join: Callable[[Sequence[Formula]], Formula]) -> tuple[tuple[Formula, ...], tuple[Energy, ...]]:
    """Returns one formula for the events over each base, and the terms that are not events."""
    groups: list[list[Formula]] = []
    for formula in filter(None, map(attrgetter("formula"), terms)):
        group = next((group for group in groups if all(map(formula.same_base, group))), None)
        groups.append([formula]) if group is None else group.append(formula)
    return tuple(map(join, groups)), tuple(filterfalse(attrgetter("formula"), terms))


def common_recommendation(terms: Sequence[Energy]) -> Recommendation | None:
    """Returns the recommendation of the terms with the highest precedence; None if there is none or they disagree."""
    found: list[Recommendation] = []
    for term in terms:
        if (advice := term.recommended) is None or (found and advice.precedence < found[0].precedence):
            continue
        found = [*found, advice] if found and advice.precedence == found[0].precedence else [advice]
    return found[0] if found and found.count(found[0]) == len(found) else None


def to_common_space(terms: Sequence[Energy]) -> tuple[Energy, ...]:
    """Returns terms in one space: over all named variables; pulled back if others are latent, other than a prior of latent points.

    Raises:
        ExpressionError: The terms have different decoders, shapes do not tell whether a term is latent, or only some have named variables.
        ShapeError: A term has neither the shape of latent nor that of decoded points, or a variable has two shapes.
    """
    latent: list[Energy] = []
    for term in terms:
        if term.decoder is None:
            continue
        latent.append(term)
        if not same(term.decoder, latent[0].decoder):
            raise ExpressionError(
                f"{latent[0]} and {term} have different decoders, {type(latent[0].decoder).__name__} and "
                f"{type(term.decoder).__name__}; an expression has one. Combine energies of one decoder, or energies of decoded points."
            )
    if latent:
        terms = [term if term.decoder is not None else _in_latent_space(term, latent) for term in terms]
    for term in terms:
        if term.variables:
            union = unite_variables([(other, other.variables) for other in terms])
            return tuple(other if [*other.variables.items()] == [*union.items()] else other.over(union) for other in terms)
    return tuple(terms)


def _in_latent_space(term: Energy, latent: Sequence[Energy]) -> Energy:
    """Returns a term without a decoder as one of latent points: pulled back, or as it is."""
    decoder: Any = latent[0].decoder
    shape, name = term.event_shape, type(decoder).__name__
    below = next((other.event_shape for other in latent if other.event_shape is not None), None)
    decoded = next((other.decoded_shape for other in latent if other.decoded_shape is not None), None)
    if shape is None or below == decoded or (below is None and shape == decoded):
        of = "of unknown shape" if shape is None else f"of shape {tuple(shape)}, the shape of both latent and decoded points,"
        raise ExpressionError(
            f"{term} takes points {of} and is combined with {latent[0]}, an energy of latent points of {name}. For decoded points write "
            "`.pull_back(decoder)`, or set its `event_shape`; for latent points set its `decoder`, as in `as_energy(..., decoder=decoder)`."
        )
    if below is None or shape == below:
        return term
    if decoded not in (None, shape):
        way = f"decoded ones {tuple(decoded or ())}, so it is neither a prior nor an energy of decoded points."
        raise ShapeError(f"{term} takes points of shape {tuple(shape)}. Latent points of {name} have shape {tuple(below)}, {way}")
    return term.pull_back(decoder)


def tree(energy: Energy) -> str:
    """Returns an expression as a tree with one line for each term; the terms of a repeated part are drawn once."""
    shown = set[Energy]()

    def branches(energy: Energy) -> list[str]:
        detail = f"{energy}" if energy.name and not energy.terms else energy.extra_repr()
        head = f"{type(energy).__name__}({detail})" if detail else type(energy).__name__
        if energy in shown:
            return [f"{head} (as above)"]
        if energy.terms:
            shown.add(energy)
        lines = [head]
        for i, term in enumerate(energy.terms):
            first, rest = ("└─ ", "   ") if i == len(energy.terms) - 1 else ("├─ ", "│  ")
            lines += [(rest if row else first) + line for row, line in enumerate(branches(term))]
        return lines

    return "\n".join(branches(energy))
