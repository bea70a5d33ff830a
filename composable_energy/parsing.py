r"""Expressions as text: `parse("male & ~smiling", resolve)`, a grammar of its own that runs nothing.

    expression  = term, { operator, term }
    term        = { "~" }, ( name | number | "(", expression, ")" )
    operator    = "*" | "/" | ">>" | "&" | "|"
    number      = [ "+" | "-" ], digits with an optional point and exponent: 2, .5, 1e-3
    name        = words of letters, digits and "_", joined by "-", "=", "/" or ":"; the first begins with no digit
                | a path that begins with "/", "./" or "../", of the same characters and "."
                | anything between single or double quotes

Precedence is Python's, from tight to loose: `~`, then `*` and `/`, then `>>`, then `&`, then `|`; all of them group from the left. Numbers
are weights: `2 * smiling`, `smiling / 2`, and products of numbers such as `(1 / 3) * smiling`. A `/` without spaces belongs to the name
(`faces/male`), so a division has spaces, parentheses or numbers around it.

Syntax stands apart from building: `parse_tree` finds every mistake of form without an energy, `build` then asks for the names. A mistake is
a `ParseError` that shows its place:

    Expected an operator, found `smiling`; join two terms by `&` or `|`.
      male smiling
           ^^^^^^^

This file imports no torch, so that a command line can speak of a typo at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from composable_energy.errors import ComposableEnergyError, ExpressionError, PluginNotFound

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "Chain",
    "Complement",
    "Name",
    "ParseError",
    "Place",
    "Scaled",
    "Tree",
    "build",
    "leaves",
    "parse",
    "parse_tree",
    "unknown_name",
]

MAX_LENGTH = 10_000
MAX_DEPTH = 64

_PRECEDENCE = {"|": 1, "&": 2, ">>": 3, "*": 4, "/": 4}
_COMPLEMENT = 5
_NUMBER = re.compile(r"[+-]?\s*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NAME = re.compile(r"[^\W\d]\w*(?:[-=/:]\w+)*")
_PATH = re.compile(r"\.{0,2}/[\w\-=/:.]+")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"\w+|&&|\|\||->|=>|<<|\*\*|==|!=|.", re.DOTALL)
_ELSEWHERE = {
    "and": "write `&`",
    "&&": "write `&`",
    "or": "write `|`",
    "||": "write `|`",
    "not": "write `~`",
    "!": "write `~`",
    "->": "write `>>`",
    "=>": "write `>>`",
    "<<": "write `>>` the other way round",
    "+": "write `&` to join two concepts",
    "-": "write `& ~` to exclude a concept; a difference of energies is made in Python",
    "**": "write `2 * A` for a power of the density",
    "^": "write `(A & ~B) | (~A & B)`",
    ".": "methods are called in Python, a name with a point is written in quotes",
    "=": "write `hair=red` without spaces",
}


@dataclass(frozen=True)
class Place:
    """A stretch of an expression's text, from character `start` to before `end`."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        """Returns the line around the stretch, and carets below it."""
        first = max(0, self.start - 60)
        last = min(len(self.text), max(self.start + 60, first + 100))
        shown = "".join(c if c.isprintable() else " " for c in self.text[first:last])
        before, after = "..." * (first > 0), "..." * (last < len(self.text))
        carets = "^" * max(1, min(self.end, last) - self.start)
        return f"  {before}{shown}{after}".rstrip() + f"\n  {' ' * (len(before) + self.start - first)}{carets}"


class ParseError(ExpressionError):
    """An expression is not written as it should be.

    Attributes:
        place: Where.
    """

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(f"{message}\n{place}" if place.text.strip() else message)
        self.place = place


@dataclass(frozen=True)
class Name:
    """A name, which an energy stands for."""

    name: str
    place: Place = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        if (_NAME.fullmatch(self.name) and self.name not in _ELSEWHERE) or _PATH.fullmatch(self.name):
            return self.name
        return f"'{self.name}'" if "'" not in self.name else f'"{self.name}"'


@dataclass(frozen=True)
class Complement:
    """`~A`."""

    operand: Tree
    place: Place = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        return "~" + _written(self.operand, _COMPLEMENT)


@dataclass(frozen=True)
class Scaled:
    """`w * A`; `A / T` is that with w = 1 / T."""

    weight: float
    operand: Tree
    place: Place = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        short = f"{self.weight:g}"
        return f"{short if float(short) == self.weight else repr(self.weight)} * {_written(self.operand, _PRECEDENCE['*'] + 1)}"


@dataclass(frozen=True)
class Chain:
    """`A & B & ...`, `A | B | ...`, or `A >> B`, which has two terms."""

    operator: str
    terms: tuple[Tree, ...]
    place: Place = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        first, *others = self.terms
        own = _PRECEDENCE[self.operator]
        return f" {self.operator} ".join([_written(first, own), *(_written(term, own + 1) for term in others)])


@dataclass(frozen=True)
class _Number:
    """A number on its way into a weight; a finished tree has none."""

    value: float
    place: Place = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)


Tree = Name | Complement | Scaled | Chain
_Part = Name | Complement | Scaled | Chain | _Number


def parse(text: str, resolve: Callable[[str], Energy], names: Iterable[str] = ()) -> Energy:
    """Returns the energy that an expression in text stands for.

    Args:
        text: The expression, as `male & ~smiling`.
        resolve: Gives the energy of a name, once for each name; for an unknown one it raises a `LookupError`.
        names: Names to propose where one is unknown.

    Raises:
        ParseError: The text is no expression, or a name is unknown.
        ExpressionError: The energies cannot be joined as written; the message shows where.
    """
    return build(parse_tree(text), resolve, names)


def parse_tree(text: str) -> Tree:
    """Returns the syntax tree of an expression, with every mistake of form found and no name looked up.

    Raises:
        ParseError: The text is no expression, is longer than `MAX_LENGTH` characters or nested more than `MAX_DEPTH` deep.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"An expression has at most {MAX_LENGTH} characters, got {len(text)}.", Place(text, MAX_LENGTH, len(text)))
    return _Parser(text).whole()


def build(tree: Tree, resolve: Callable[[str], Energy], names: Iterable[str] = ()) -> Energy:
    """Returns the energy that a syntax tree stands for; the arguments and errors are those of `parse`."""
    found: dict[str, Energy] = {}
    for leaf in leaves(tree):
        if leaf.name not in found:
            found[leaf.name] = _resolved(leaf, resolve, names)
    return _built(tree, found)


def leaves(tree: Tree) -> Iterator[Name]:
    """Yields the names of a tree with their places, in reading order."""
    match tree:
        case Name():
            yield tree
        case Chain():
            for term in tree.terms:
                yield from leaves(term)
        case Complement() | Scaled():
            yield from leaves(tree.operand)


def unknown_name(leaf: Name, names: Iterable[str], reason: str = "") -> ParseError:
    """Returns the error for a name that nothing stands for, with the nearest names.

    Args:
        leaf: The name, with its place.
        names: The names that there are.
        reason: What whoever looked it up said; empty takes a list of names.
    """
    names = sorted(set(names))
    near = difflib.get_close_matches(leaf.name, names, n=3, cutoff=0.6)
    head, _, last = leaf.name.rpartition("/")
    if head in names and last.isdecimal():
        advice = f"; a division has spaces around it: `{head} / {last}`."
    elif near:
        advice = f"; did you mean {' or '.join(f'`{name}`' for name in near)}?"
    elif reason:
        advice = f": {reason}"
    else:
        advice = f"; there are {', '.join(names[:20])}{', ...' * (len(names) > 20)}." if names else "."
    return ParseError(f"Unknown name `{leaf.name}`{advice}", leaf.place)


class _Parser:
    """Recursive descent over the text itself: what a character means depends on whether a term or an operator is due."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.open: list[int] = []
        self._skip()

    def whole(self) -> Tree:
        if self.position == len(self.text):
            raise ParseError("Expected an expression, found nothing; write one such as `male & ~smiling`.", Place(self.text, 0, 0))
        part = self._expression(1)
        if self.position < len(self.text):
            raise self._unexpected("an operator")
        return self._energy(part, "An expression stands for an energy, and this is a number")

    def _expression(self, lowest: int) -> _Part:
        left = self._term()
        while (operator := self._operator()) and _PRECEDENCE[operator] >= lowest:
            self._take(self.position + len(operator))
            right = self._expression(_PRECEDENCE[operator] + 1)
            left = self._bounded(self._joined(left, operator, right))
        return left

    def _term(self) -> _Part:
        at = self.position
        if self.text.startswith("~", at):
            return self._complement()
        if self.text.startswith("(", at):
            return self._group()
        if match := _QUOTED.match(self.text, at):
            place = self._take(match.end())
            if not match[0][1:-1].strip():
                raise ParseError("A name between quotes is not empty.", place)
            return Name(match[0][1:-1], place)
        if match := _NUMBER.match(self.text, at):
            place = self._take(match.end())
            return _number(float("".join(match[0].split())), place)
        match = _NAME.match(self.text, at) or _PATH.match(self.text, at)
        if match is None or match[0] in _ELSEWHERE:
            raise self._unexpected("a name, a number, `~` or `(`")
        return Name(match[0], self._take(match.end()))

    def _complement(self) -> Tree:
        signs = []
        while self.text.startswith("~", self.position):
            signs.append(self._take(self.position + 1))
            if len(signs) > MAX_DEPTH:
                raise self._too_deep(signs[-1])
        part = self._term()
        tree = self._energy(part, "`~` takes an energy, and this is a number")
        for sign in reversed(signs):
            tree = Complement(tree, Place(self.text, sign.start, tree.place.end), tree.depth + 1)
            self._bounded(tree)
        return tree

    def _group(self) -> _Part:
        self.open.append(self.position)
        place = self._take(self.position + 1)
        if len(self.open) > MAX_DEPTH:
            raise self._too_deep(place)
        part = self._expression(1)
        if not self.text.startswith(")", self.position):
            raise self._unexpected("an operator or `)`")
        self.open.pop()
        self._take(self.position + 1)
        return part

    def _operator(self) -> str:
        """Returns the operator at the position, empty if there is none."""
        two = self.text[self.position : self.position + 2]
        if two in ("&&", "||", "**"):
            return ""
        return next((operator for operator in _PRECEDENCE if two.startswith(operator)), "")

    def _joined(self, left: _Part, operator: str, right: _Part) -> _Part:
        place = Place(self.text, left.place.start, right.place.end)
        if operator in ("*", "/"):
            return self._scaled(left, operator, right, place)
        terms = [self._energy(part, f"`{operator}` joins energies, and this is a number") for part in (left, right)]
        if operator != ">>":
            terms = [inner for term in terms for inner in _flat(term, operator)]
        return Chain(operator, tuple(terms), place, max(term.depth for term in terms) + 1)

    def _scaled(self, left: _Part, operator: str, right: _Part, place: Place) -> _Part:
        if operator == "/":
            if not isinstance(right, _Number):
                raise ParseError("`/` divides by a number, and this is an energy.", right.place)
            if right.value == 0:
                raise ParseError("A temperature is not zero.", right.place)
            if isinstance(left, _Number):
                return _number(left.value / right.value, place)
            right = _number(1 / right.value, right.place)
        weight, operand = (left, right) if isinstance(left, _Number) else (right, left)
        if isinstance(weight, _Number):
            if isinstance(operand, _Number):
                return _number(weight.value * operand.value, place)
            return Scaled(weight.value, operand, place, operand.depth + 1)
        raise ParseError("`*` takes a number and an energy, and these are two energies; join them by `&`.", place)

    def _energy(self, part: _Part, otherwise: str) -> Tree:
        if isinstance(part, _Number):
            raise ParseError(f"{otherwise}; a number is a weight, as in `2 * smiling`.", part.place)
        return part

    def _bounded(self, part: _Part) -> _Part:
        if part.depth > MAX_DEPTH:
            raise self._too_deep(part.place)
        return part

    def _take(self, end: int) -> Place:
        place = Place(self.text, self.position, end)
        self.position = end
        self._skip()
        return place

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.position)
        self.position = match.end() if match else self.position

    def _too_deep(self, place: Place) -> ParseError:
        return ParseError(f"An expression is nested at most {MAX_DEPTH} deep.", place)

    def _unexpected(self, expected: str) -> ParseError:
        match = _WORD.match(self.text, self.position)
        if match is None:
            advice = f"; the `(` at character {self.open[-1] + 1} is not closed." if self.open else "."
            return ParseError(f"Expected {expected}, found the end{advice}", Place(self.text, len(self.text), len(self.text)))
        found = match[0]
        advice = _ELSEWHERE.get(found, "")
        if not advice and "operator" in expected:
            if found == ")":
                advice = "no `(` is open"
            elif found[0] in "~('\"" or found[0].isalnum() or found[0] == "_":
                advice = "join two terms by `&` or `|`, a weight and a term by `*`"
        place = Place(self.text, self.position, match.end())
        shown = f"`{found}`" if found.isprintable() else ascii(found)
        return ParseError(f"Expected {expected}, found {shown}{f'; {advice}' if advice else ''}.", place)


def _number(value: float, place: Place) -> _Number:
    if not math.isfinite(value):
        raise ParseError("A weight is a finite number.", place)
    return _Number(value, place)


def _flat(term: Tree, operator: str) -> tuple[Tree, ...]:
    return term.terms if isinstance(term, Chain) and term.operator == operator else (term,)


def _written(tree: Tree, precedence: int) -> str:
    """Returns an operand as written inside a tree, in parentheses where it binds less tightly."""
    match tree:
        case Chain():
            own = _PRECEDENCE[tree.operator]
        case Scaled():
            own = _PRECEDENCE["*"]
        case _:
            own = _COMPLEMENT
    return f"({tree})" if own < precedence else str(tree)


def _resolved(leaf: Name, resolve: Callable[[str], Energy], names: Iterable[str]) -> Energy:
    try:
        return resolve(leaf.name)
    except ParseError:
        raise
    except LookupError as error:
        if isinstance(error, ComposableEnergyError) and not isinstance(error, PluginNotFound):
            _point(error, leaf.place)
            raise
        reason = str(error) if isinstance(error, ComposableEnergyError) else ""
        raise unknown_name(leaf, names, reason) from error


def _built(tree: Tree, found: dict[str, Energy]) -> Energy:
    match tree:
        case Name():
            return found[tree.name]
        case Complement():
            operands = [_built(tree.operand, found)]
        case Scaled():
            operands = [_built(tree.operand, found)]
        case Chain():
            operands = [_built(term, found) for term in tree.terms]
    try:
        return _joined(tree, operands)
    except ComposableEnergyError as error:
        _point(error, tree.place)
        raise


def _joined(tree: Complement | Scaled | Chain, operands: list[Energy]) -> Energy:
    """Applies the operator; chains are built whole, since term by term would take the square of the time."""
    from composable_energy.algebra import all_of, any_of

    match tree:
        case Complement():
            return ~operands[0]
        case Scaled():
            return operands[0] * tree.weight
        case Chain(operator="&"):
            return all_of(*operands)
        case Chain(operator="|"):
            return any_of(*operands)
        case _:
            return operands[0] >> operands[1]


def _point(error: ComposableEnergyError, place: Place) -> None:
    """Adds the place to an error's message; it keeps its class."""
    error.args = (f"{error}\n{place}", *error.args[1:])
