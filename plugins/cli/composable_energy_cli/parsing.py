r"""Parsing of expressions: `parse("male & ~smiling").build(energies)`. Text is never executed.

    expression  = term, { operator, term }
    term        = { "~" }, ( name | number | "(", expression, ")" )
    operator    = "*" | "/" | ">>" | "&" | "^" | "|"
    number      = [ "+" | "-" ], digits with an optional point and exponent: 2, .5, 1e-3
    name        = words of letters, digits and "_", joined by "-", "=", "/" or ":"; the first begins with no digit
                | a path that begins with "/", "./" or "../", of the same characters and "."
                | anything between single or double quotes

Precedence is Python's. Numbers are weights: `2 * smiling`, `smiling / 2`, `(1 / 3) * smiling`. A `/` without spaces belongs to the name
(`faces/male`), so a division needs spaces, parentheses or numbers around it. `parse` finds all mistakes of syntax without an energy or
torch, and shows their location:

    Expected an operator, found `smiling`; join two terms by `&` or `|`.
      male smiling
           ^^^^^^^
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import invert, mul, rshift, xor
from typing import Any, NamedTuple

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, ExpressionError
from composable_energy.options import nearest_names

MAX_LENGTH = 10_000
MAX_DEPTH = 64
_TOO_DEEP = f"An expression is nested at most {MAX_DEPTH} deep."

_TERM = re.compile(
    r"""(?P<open>[~(]) | '(?P<single>[^']*)' | "(?P<double>[^"]*)"
    | (?P<number>[+-]?\s*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<name>[^\W\d]\w*(?:[-=/:]\w+)*|\.{0,2}/[\w\-=/:.]+)""",
    re.VERBOSE,
)
_OPERATOR = re.compile(r"&(?!&)|\|(?!\|)|\*(?!\*)|\^|>>|/")
_STRENGTH = {"|": 1, "^": 2, "&": 3, ">>": 4, "*": 5, "/": 5}
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


@dataclass(frozen=True)
class Expression:
    """An expression whose syntax is right.

    Args:
        text: The text.
        names: The names in it, in reading order.
        terms: The texts of the terms of its outermost `&`, in parentheses where the text has them; else the whole text.
    """

    text: str
    names: tuple[Name, ...]
    terms: tuple[str, ...]
    _root: _Node = field(repr=False, compare=False)

    def build(self, energies: Mapping[str, ce.Energy]) -> ce.Energy:
        """Returns the energy of the expression.

        Args:
            energies: The energies by name.
        """
        for name in self.names:
            if name.name not in energies:
                raise unknown_name(name, energies)
        return _evaluate(self._root, energies)


def parse(text: str) -> Expression:
    """Returns the expression that a text says, without looking up names.

    Raises:
        ParseError: The text is not an expression, has more than `MAX_LENGTH` characters or is nested more than `MAX_DEPTH` deep.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"An expression has at most {MAX_LENGTH} characters, got {len(text)}.", SourceSpan(text, MAX_LENGTH, len(text)))
    if not text.strip():
        raise ParseError("Expected an expression, found nothing; write one such as `male & ~smiling`.", SourceSpan(text, 0, 0))
    parser = _Parser(text)
    root = parser.expression()
    is_sum = root.value == "&" and root.place.start == root.parts[0].place.start  # not in parentheses as a whole
    terms = tuple(text[part.place.start : part.place.end] for part in root.parts) if is_sum else (text.strip(),)
    return Expression(text, tuple(parser.names), terms, root)


def unknown_name(leaf: Name, names: Iterable[str], reason: str = "") -> ParseError:
    """Returns the error for an unknown name, with the nearest of the known names, or else with the reason or all of them."""
    names = sorted(set(names))
    near = nearest_names(leaf.name, names)
    head, _, last = leaf.name.rpartition("/")
    if head in names and last.isdecimal():
        advice = f"; a division has spaces around it: `{head} / {last}`."
    elif near:
        advice = f"; did you mean {' or '.join(f'`{quoted(name)}`' for name in near)}?"
    elif reason:
        advice = f": {reason}"
    else:
        advice = f"; there are {', '.join(names[:20])}{', ...' * (len(names) > 20)}." if names else "."
    return ParseError(f"Unknown name `{leaf.name}`{advice}", leaf.place)


def quoted(name: str) -> str:
    """Returns a name as an expression has it: in quotes, if it would not be read as one name."""
    match = _TERM.fullmatch(name)
    if match and match.lastgroup == "name" and name not in _ADVICE:
        return name
    return f'"{name}"' if "'" in name else f"'{name}'"


class _Node(NamedTuple):
    """A part of an expression: a `Name`, the number of a weight, or the text of an operator; its range, operands and depth."""

    value: Any
    place: SourceSpan
    parts: tuple[_Node, ...] = ()
    depth: int = 1


class _Parser:
    """Reads a text by the strength of its operators."""

    def __init__(self, text: str) -> None:
        self.names: list[Name] = []
        self._text, self._at = text, 0
        self._opened: list[int] = []  # the positions of `(` and `~`

    def expression(self) -> _Node:
        root = self._operators(1)
        if self._at < len(self._text):
            raise self._unexpected("an operator")
        _check_energy(root, "An expression stands for an energy")
        return root

    def _operators(self, weakest: int) -> _Node:
        node = self._term()
        while (symbol := self._symbol()) and _STRENGTH[symbol] >= weakest:
            parts = [node]
            while self._symbol() == symbol and (len(parts) == 1 or symbol in "&|"):  # a chain is one node
                self._at += len(symbol)
                parts.append(self._operators(_STRENGTH[symbol] + 1))
            node = _combined(symbol, parts, SourceSpan(self._text, node.place.start, parts[-1].place.end))
        return node

    def _symbol(self) -> str:
        match = _OPERATOR.match(self._text, self._at)
        return match[0] if match else ""

    def _term(self) -> _Node:
        self._skip()
        match = _TERM.match(self._text, self._at)
        if match is None or match[0] in _ADVICE:
            raise self._unexpected("a name, a number, `~` or `(`", expects_term=True)
        place, self._at = SourceSpan(self._text, *match.span()), match.end()
        if match["open"]:
            self._opened.append(place.start)
            if len(self._opened) > MAX_DEPTH:
                raise ParseError(_TOO_DEEP, place)
            if match[0] == "~":
                term = self._term()
                node = _combined("~", [term], SourceSpan(self._text, place.start, term.place.end))
            else:
                node = self._operators(1)
                if not self._text.startswith(")", self._at):
                    raise self._unexpected("an operator or `)`")
                self._at += 1
                node = node._replace(place=SourceSpan(self._text, place.start, self._at))
            self._opened.pop()
        elif match["number"]:
            node = _Node(_finite(float("".join(match[0].split())), place), place)
        else:
            self.names.append(Name(match[match.lastgroup or 0], place))
            if not self.names[-1].name.strip():
                raise ParseError("The name between the quotes is empty.", place)
            node = _Node(self.names[-1], place)
        self._skip()
        return node

    def _skip(self) -> None:
        self._at = len(self._text) - len(self._text[self._at :].lstrip())

    def _unexpected(self, expected: str, expects_term: bool = False) -> ParseError:
        if (match := _WORD.match(self._text, self._at)) is None:
            opened = [at for at in self._opened if self._text[at] == "("]
            advice = f"; the `(` at character {opened[-1] + 1} is not closed." if opened else "."
            return ParseError(f"Expected {expected}, found the end{advice}", SourceSpan(self._text, self._at, self._at))
        found, advice = match[0], _ADVICE.get(match[0], "")
        if not advice and not expects_term:
            if found == ")":
                advice = "no `(` is open"
            elif found[0] in "~('\"_" or found[0].isalnum():
                advice = "join two terms by `&` or `|`, a weight and a term by `*`"
        shown = f"`{found}`" if found.isprintable() else ascii(found)
        return ParseError(f"Expected {expected}, found {shown}{f'; {advice}' if advice else ''}.", SourceSpan(self._text, *match.span()))


def _combined(symbol: str, parts: Sequence[_Node], place: SourceSpan) -> _Node:
    """Returns the node of an operator; a product or quotient of numbers is a number, that with an energy has the energy first."""
    depth, numbers = 1 + max(part.depth for part in parts), [isinstance(part.value, float) for part in parts]
    if depth > MAX_DEPTH:
        raise ParseError(_TOO_DEEP, place)
    if symbol not in "*/":
        for part in parts:
            _check_energy(part, f"`{symbol}` {'takes an energy' if symbol == '~' else 'joins energies'}")
        return _Node(symbol, place, tuple(parts), depth)
    (left, right), (a, b) = parts, (part.value for part in parts)
    if symbol == "/" and not numbers[1]:
        raise ParseError("`/` divides by a number, but this is an energy.", right.place)
    if symbol == "/" and b == 0:
        raise ParseError("A temperature must not be zero.", right.place)
    if all(numbers):
        return _Node(_finite(a / b if symbol == "/" else a * b, place), place, (), depth)
    if not any(numbers):
        raise ParseError("`*` takes a number and an energy, but both of these are energies; join them by `&`.", place)
    energy, weight = (right, a) if numbers[0] else (left, 1 / b if symbol == "/" else b)
    return _Node("*", place, (energy, _Node(_finite(weight, right.place), right.place)), depth)


def _finite(value: float, place: SourceSpan) -> float:
    if not math.isfinite(value):
        raise ParseError("A weight must be finite.", place)
    return value


def _check_energy(part: _Node, otherwise: str) -> None:
    if isinstance(part.value, float):
        raise ParseError(f"{otherwise}, and this is a number; a number is a weight, as in `2 * smiling`.", part.place)


def _evaluate(node: _Node, energies: Mapping[str, ce.Energy]) -> Any:
    """Returns the energy of a node, or the number. A chain is built at once: term by term takes quadratic time."""
    if not isinstance(node.value, str):
        return energies[node.value.name] if isinstance(node.value, Name) else node.value
    parts = [_evaluate(part, energies) for part in node.parts]
    try:
        return {"~": invert, "&": ce.all_of, "|": ce.any_of, "^": xor, ">>": rshift, "*": mul}[node.value](*parts)
    except ComposableEnergyError as error:
        error.args = (f"{error}\n{node.place}", *error.args[1:])
        raise
