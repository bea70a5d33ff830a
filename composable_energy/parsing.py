r"""Parsing of expressions: `parse("male & ~smiling", resolve)`. Text is never executed.

    expression  = term, { operator, term }
    term        = { "~" }, ( name | number | "(", expression, ")" )
    operator    = "*" | "/" | ">>" | "&" | "^" | "|"
    number      = [ "+" | "-" ], digits with an optional point and exponent: 2, .5, 1e-3
    name        = words of letters, digits and "_", joined by "-", "=", "/" or ":"; the first begins with no digit
                | a path that begins with "/", "./" or "../", of the same characters and "."
                | anything between single or double quotes

Precedence is Python's, from high to low: `~`, then `*` and `/`, then `>>`, `&`, `^` and `|`; all are left-associative. Numbers are
weights: `2 * smiling`, `smiling / 2`, and products of numbers such as `(1 / 3) * smiling`. A `/` without spaces belongs to the name
(`faces/male`), so a division needs spaces, parentheses or numbers around it.

`parse_tree` finds all syntax errors without an energy or torch; `build` then looks up the names. A `ParseError` shows its location:

    Expected an operator, found `smiling`; join two terms by `&` or `|`.
      male smiling
           ^^^^^^^
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from composable_energy.errors import ComposableEnergyError, ExpressionError, PluginNotFound
from composable_energy.suggestions import nearest_names

if TYPE_CHECKING:
    from composable_energy.energy import Energy

MAX_LENGTH = 10_000
MAX_DEPTH = 64

_PRECEDENCE = {"|": 1, "^": 2, "&": 3, ">>": 4, "*": 5, "/": 5, "~": 6}
_NAME = re.compile(r"[^\W\d]\w*(?:[-=/:]\w+)*|\.{0,2}/[\w\-=/:.]+")
_TERM = re.compile(
    r"""[~(] | (?P<quoted>'[^']*'|"[^"]*") | (?P<number>[+-]?\s*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?) | """
    rf"(?P<name>{_NAME.pattern})",
    re.VERBOSE,
)
_OPERATOR = re.compile(r"&(?!&)|\|(?!\|)|\*(?!\*)|\^|>>|/")
_WORD = re.compile(r"\w+|&&|\|\||->|=>|<<|\*\*|==|!=|.", re.DOTALL)
_ADVICE = {
    "and": "write `&`",
    "&&": "write `&`",
    "or": "write `|`",
    "||": "write `|`",
    "xor": "write `^`",
    "not": "write `~`",
    "!": "write `~`",
    "->": "write `>>`",
    "=>": "write `>>`",
    "<<": "write `>>` the other way round",
    "+": "write `&` to join two concepts",
    "-": "write `& ~` to exclude a concept; a difference of energies is made in Python",
    "**": "write `2 * A` for a power of the density",
    ".": "methods are called in Python, a name with a point is written in quotes",
    "=": "write `hair=red` without spaces",
}
"""Operators of other languages, which are no names, with the advice for each."""


@dataclass(frozen=True)
class SourceSpan:
    """A range of the text of an expression, from character `start` to before `end`."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        """Returns the text around the range, and carets below it."""
        first = max(0, self.start - 60)
        last = min(len(self.text), max(self.start + 60, first + 100))
        shown = "".join(c if c.isprintable() else " " for c in self.text[first:last])
        before, after = "..." * (first > 0), "..." * (last < len(self.text))
        carets = "^" * max(1, min(self.end, last) - self.start)
        return f"  {before}{shown}{after}".rstrip() + f"\n  {' ' * (len(before) + self.start - first)}{carets}"


class ParseError(ExpressionError):
    """The text of an expression is malformed; `place` is the location."""

    def __init__(self, message: str, place: SourceSpan) -> None:
        super().__init__(f"{message}\n{place}" if place.text.strip() else message)
        self.place = place


@dataclass(frozen=True)
class Name:
    """The name of an energy."""

    name: str
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        if _NAME.fullmatch(self.name) and self.name not in _ADVICE:
            return self.name
        return f"'{self.name}'" if "'" not in self.name else f'"{self.name}"'


@dataclass(frozen=True)
class Complement:
    """The complement `~A`."""

    operand: Tree
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        return "~" + _in_parentheses(self.operand, _PRECEDENCE["~"])


@dataclass(frozen=True)
class Scaled:
    """The weighted `w * A`; also `A / T`, with w = 1 / T."""

    weight: float
    operand: Tree
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        short = f"{self.weight:g}"
        return f"{short if float(short) == self.weight else repr(self.weight)} * {_in_parentheses(self.operand, _PRECEDENCE['~'])}"


@dataclass(frozen=True)
class Chain:
    """The chain `A & B & ...` or `A | B | ...`, or two terms joined by `^` or `>>`."""

    operator: str
    terms: tuple[Tree, ...]
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        own = _PRECEDENCE[self.operator]
        return f" {self.operator} ".join(_in_parentheses(term, own + (k > 0)) for k, term in enumerate(self.terms))


@dataclass(frozen=True)
class _Number:
    """A number, which becomes a weight; a complete tree has none."""

    value: float
    place: SourceSpan
    depth: int = 1


Tree: TypeAlias = Name | Complement | Scaled | Chain


def leaves(tree: Tree) -> Iterator[Name]:
    """Yields the names of a tree with their locations, in reading order."""
    if isinstance(tree, Name):
        yield tree
    else:
        for term in tree.terms if isinstance(tree, Chain) else (tree.operand,):
            yield from leaves(term)


def parse_tree(text: str) -> Tree:
    """Returns the syntax tree of an expression, without looking up names.

    Raises:
        ParseError: The text is not an expression, has more than `MAX_LENGTH` characters or is nested more than `MAX_DEPTH` deep.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"An expression has at most {MAX_LENGTH} characters, got {len(text)}.", SourceSpan(text, MAX_LENGTH, len(text)))
    if not text.strip():
        raise ParseError("Expected an expression, found nothing; write one such as `male & ~smiling`.", SourceSpan(text, 0, 0))
    parser = _Parser(text)
    part = parser.expression(1)
    if parser.position < len(text):
        raise parser.unexpected("an operator")
    return _energy(part, "An expression stands for an energy, and this is a number")


class _Parser:
    """A recursive descent parser without tokens: the meaning of a character depends on whether a term or an operator is expected."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = len(text) - len(text.lstrip())
        self.open: list[int] = []

    def expression(self, lowest: int) -> Tree | _Number:
        left = self._term(0)
        while (match := _OPERATOR.match(self.text, self.position)) and _PRECEDENCE[match[0]] >= lowest:
            self._take(match)
            right = self.expression(_PRECEDENCE[match[0]] + 1)
            left = _checked(_join(left, match[0], right, SourceSpan(self.text, left.place.start, right.place.end)))
        return left

    def _term(self, signs: int) -> Tree | _Number:
        match = _TERM.match(self.text, self.position)
        if match is None or match["name"] in _ADVICE:
            raise self.unexpected("a name, a number, `~` or `(`")
        place = self._take(match)
        if len(self.open) + (match[0] == "(") > MAX_DEPTH or signs + (match[0] == "~") > MAX_DEPTH:
            raise _too_deep(place)
        if match[0] == "~":
            operand = _energy(self._term(signs + 1), "`~` takes an energy, and this is a number")
            return _checked(Complement(operand, SourceSpan(self.text, place.start, operand.place.end), operand.depth + 1))
        if match[0] == "(":
            self.open.append(place.start)
            part = self.expression(1)
            if not self.text.startswith(")", self.position):
                raise self.unexpected("an operator or `)`")
            self.open.pop()
            self._take(_WORD.match(self.text, self.position))
            return part
        if match["number"]:
            return _as_number(float("".join(match[0].split())), place)
        if match["quoted"] and not match[0][1:-1].strip():
            raise ParseError("The name between the quotes is empty.", place)
        return Name(match[0][1:-1] if match["quoted"] else match[0], place)

    def _take(self, match: re.Match[str] | None) -> SourceSpan:
        assert match is not None
        rest = self.text[match.end() :]
        self.position = len(self.text) - len(rest.lstrip())
        return SourceSpan(self.text, *match.span())

    def unexpected(self, expected: str) -> ParseError:
        match = _WORD.match(self.text, self.position)
        if match is None:
            advice = f"; the `(` at character {self.open[-1] + 1} is not closed." if self.open else "."
            return ParseError(f"Expected {expected}, found the end{advice}", SourceSpan(self.text, len(self.text), len(self.text)))
        found = match[0]
        advice = _ADVICE.get(found, "")
        if not advice and "operator" in expected:
            if found == ")":
                advice = "no `(` is open"
            elif found[0] in "~('\"_" or found[0].isalnum():
                advice = "join two terms by `&` or `|`, a weight and a term by `*`"
        shown = f"`{found}`" if found.isprintable() else ascii(found)
        return ParseError(f"Expected {expected}, found {shown}{f'; {advice}' if advice else ''}.", SourceSpan(self.text, *match.span()))


def _join(left: Tree | _Number, operator: str, right: Tree | _Number, place: SourceSpan) -> Tree | _Number:
    if operator in ("*", "/"):
        return _scale(left, operator, right, place)
    terms = tuple(_energy(part, f"`{operator}` joins energies, and this is a number") for part in (left, right))
    if operator in ("&", "|"):  # flat
        terms = tuple(t for term in terms for t in (term.terms if isinstance(term, Chain) and term.operator == operator else (term,)))
    return Chain(operator, terms, place, max(term.depth for term in terms) + 1)


def _scale(left: Tree | _Number, operator: str, right: Tree | _Number, place: SourceSpan) -> Tree | _Number:
    if operator == "/":
        if not isinstance(right, _Number):
            raise ParseError("`/` divides by a number, but this is an energy.", right.place)
        if right.value == 0:
            raise ParseError("A temperature must not be zero.", right.place)
        if isinstance(left, _Number):
            return _as_number(left.value / right.value, place)
        right = _as_number(1 / right.value, right.place)
    weight, operand = (left, right) if isinstance(left, _Number) else (right, left)
    if not isinstance(weight, _Number):
        raise ParseError("`*` takes a number and an energy, but both of these are energies; join them by `&`.", place)
    if isinstance(operand, _Number):
        return _as_number(weight.value * operand.value, place)
    return Scaled(weight.value, operand, place, operand.depth + 1)


def _as_number(value: float, place: SourceSpan) -> _Number:
    if not math.isfinite(value):
        raise ParseError("A weight must be finite.", place)
    return _Number(value, place)


def _energy(part: Tree | _Number, otherwise: str) -> Tree:
    if isinstance(part, _Number):
        raise ParseError(f"{otherwise}; a number is a weight, as in `2 * smiling`.", part.place)
    return part


def _checked(part: Tree | _Number) -> Tree | _Number:
    if part.depth > MAX_DEPTH:
        raise _too_deep(part.place)
    return part


def _too_deep(place: SourceSpan) -> ParseError:
    return ParseError(f"An expression is nested at most {MAX_DEPTH} deep.", place)


def _in_parentheses(tree: Tree, precedence: int) -> str:
    """Returns the text of an operand, in parentheses if its precedence is lower."""
    operator = tree.operator if isinstance(tree, Chain) else "*" if isinstance(tree, Scaled) else "~"
    return f"({tree})" if _PRECEDENCE[operator] < precedence else str(tree)


def parse(text: str, resolve: Callable[[str], Energy], names: Iterable[str] = ()) -> Energy:
    """Returns the energy of an expression in text.

    Args:
        text: The expression, such as `male & ~smiling`.
        resolve: A function that returns the energy of a name, called once for each; for an unknown name it raises a `LookupError`.
        names: Names to suggest for an unknown one.

    Raises:
        ParseError: The text is not an expression, or a name is unknown.
        ExpressionError: The energies cannot be combined; the message shows the location.
    """
    return build(parse_tree(text), resolve, names)


def build(tree: Tree, resolve: Callable[[str], Energy], names: Iterable[str] = ()) -> Energy:
    """Returns the energy of a syntax tree; see `parse` for the arguments and errors."""
    found: dict[str, Energy] = {}
    for leaf in leaves(tree):
        if leaf.name not in found:
            found[leaf.name] = _resolve(leaf, resolve, names)
    return _build(tree, found)


def unknown_name(leaf: Name, names: Iterable[str], reason: str = "") -> ParseError:
    """Returns the error for an unknown name, with the nearest names.

    Args:
        leaf: The name, with its location.
        names: The known names.
        reason: Why the look-up failed; empty for a list of names.
    """
    names = sorted(set(names))
    near = nearest_names(leaf.name, names)
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


def _resolve(leaf: Name, resolve: Callable[[str], Energy], names: Iterable[str]) -> Energy:
    try:
        return resolve(leaf.name)
    except ParseError:
        raise
    except LookupError as error:
        if isinstance(error, ComposableEnergyError) and not isinstance(error, PluginNotFound):
            _add_location(error, leaf.place)
            raise
        reason = str(error) if isinstance(error, ComposableEnergyError) else ""
        raise unknown_name(leaf, names, reason) from error


def _build(tree: Tree, found: dict[str, Energy]) -> Energy:
    if isinstance(tree, Name):
        return found[tree.name]
    operands = [_build(term, found) for term in (tree.terms if isinstance(tree, Chain) else (tree.operand,))]
    try:
        return _apply(tree, operands)
    except ComposableEnergyError as error:
        _add_location(error, tree.place)
        raise


def _apply(tree: Complement | Scaled | Chain, operands: list[Energy]) -> Energy:
    """Applies an operator to its operands. A chain is built at once: term by term takes quadratic time."""
    from composable_energy.algebra import all_of, any_of

    first = operands[0]
    if isinstance(tree, Complement):
        return ~first
    if isinstance(tree, Scaled):
        return first * tree.weight
    if tree.operator in ("&", "|"):
        return (all_of if tree.operator == "&" else any_of)(*operands)
    return first ^ operands[1] if tree.operator == "^" else first >> operands[1]


def _add_location(error: ComposableEnergyError, place: SourceSpan) -> None:
    """Adds the location to the message of an error."""
    error.args = (f"{error}\n{place}", *error.args[1:])
