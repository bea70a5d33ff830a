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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import invert, mul, rshift, xor
from typing import TYPE_CHECKING, Any, NamedTuple

from composable_energy.errors import ComposableEnergyError, ExpressionError
from composable_energy.options import nearest_names

if TYPE_CHECKING:
    from composable_energy.energies.energy import Energy

MAX_LENGTH = 10_000
MAX_DEPTH = 64

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

    def build(self, energies: Mapping[str, Energy]) -> Energy:
        """Returns the energy of the expression.

        Args:
            energies: The energies by name.

        Raises:
            ParseError: A name is unknown.
            ExpressionError: The energies cannot be combined; the message shows the location.
        """
        for name in self.names:
            if name.name not in energies:
                raise unknown_name(name, energies)
        return _Parser(self.text, lambda name: energies[name.name], _combine).expression()


def parse(text: str) -> Expression:
    """Returns the expression that a text says, without looking up names.

    Raises:
        ParseError: The text is not an expression, has more than `MAX_LENGTH` characters or is nested more than `MAX_DEPTH` deep.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"An expression has at most {MAX_LENGTH} characters, got {len(text)}.", SourceSpan(text, MAX_LENGTH, len(text)))
    if not text.strip():
        raise ParseError("Expected an expression, found nothing; write one such as `male & ~smiling`.", SourceSpan(text, 0, 0))
    parser = _Parser(text, lambda name: name, lambda symbol, values: symbol)
    parser.expression()
    cuts = [] if {"|", "^"} & {*parser.outermost.values()} else [at for at, symbol in parser.outermost.items() if symbol == "&"]
    terms = tuple(text[start + 1 : end].strip() for start, end in zip([-1, *cuts], [*cuts, len(text)], strict=True))
    return Expression(text, tuple(parser.names), terms)


def unknown_name(leaf: Name, names: Iterable[str], reason: str = "") -> ParseError:
    """Returns the error for an unknown name, with the nearest of the known names, or else with the reason or all of them."""
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


class _Part(NamedTuple):
    """An energy or the number of a weight, its range in the text and how deep it is nested."""

    value: Any
    place: SourceSpan
    depth: int = 1


class _Parser:
    """Reads a text by the strength of its operators; `leaf` gives the value of a name, `combine` that of an operator."""

    def __init__(self, text: str, leaf: Callable[[Name], Any], combine: Callable[[str, Sequence[Any]], Any]) -> None:
        self.names: list[Name] = []
        self.outermost: dict[int, str] = {}  # the operators outside of parentheses, by position
        self._text, self._leaf, self._combine, self._at = text, leaf, combine, 0
        self._opened: list[int] = []  # the positions of `(` and `~`

    def expression(self) -> Any:
        part = self._operators(1)
        if self._at < len(self._text):
            raise self._unexpected("an operator")
        _check_energy(part, "An expression stands for an energy")
        return part.value

    def _operators(self, weakest: int) -> _Part:
        part = self._term()
        while (symbol := self._symbol()) and _STRENGTH[symbol] >= weakest:
            parts = [part]
            while self._symbol() == symbol and (len(parts) == 1 or symbol in "&|"):  # a chain is one node
                if not self._opened:
                    self.outermost[self._at] = symbol
                self._at += len(symbol)
                parts.append(self._operators(_STRENGTH[symbol] + 1))
            part = self._combined(symbol, parts, part.place.start)
        return part

    def _symbol(self) -> str:
        match = _OPERATOR.match(self._text, self._at)
        return match[0] if match else ""

    def _term(self) -> _Part:
        self._skip()
        match = _TERM.match(self._text, self._at)
        if match is None or match[0] in _ADVICE:
            raise self._unexpected("a name, a number, `~` or `(`", expects_term=True)
        place, self._at = SourceSpan(self._text, *match.span()), match.end()
        if match["open"]:
            self._opened.append(place.start)
            if len(self._opened) > MAX_DEPTH:
                raise _too_deep(place)
            part = self._combined("~", [self._term()], place.start) if match[0] == "~" else self._closed(self._operators(1), place.start)
            self._opened.pop()
        elif match["number"]:
            part = _Part(_finite(float("".join(match[0].split())), place), place)
        else:
            self.names.append(Name(match[match.lastgroup or 0], place))
            if not self.names[-1].name.strip():
                raise ParseError("The name between the quotes is empty.", place)
            part = _Part(self._leaf(self.names[-1]), place)
        self._skip()
        return part

    def _closed(self, part: _Part, start: int) -> _Part:
        if not self._text.startswith(")", self._at):
            raise self._unexpected("an operator or `)`")
        self._at += 1
        return part._replace(place=SourceSpan(self._text, start, self._at))

    def _combined(self, symbol: str, parts: Sequence[_Part], start: int) -> _Part:
        place, depth = SourceSpan(self._text, start, parts[-1].place.end), 1 + max(part.depth for part in parts)
        if depth > MAX_DEPTH:
            raise _too_deep(place)
        if symbol in "*/":
            values = _weighed(symbol, parts[0], parts[1], place)
            if not isinstance(values, list):
                return _Part(values, place, depth)
        else:
            values = [part.value for part in parts]
            for part in parts:
                _check_energy(part, f"`{symbol}` {'takes an energy' if symbol == '~' else 'joins energies'}")
        try:
            return _Part(self._combine(symbol, values), place, depth)
        except ComposableEnergyError as error:
            error.args = (f"{error}\n{place}", *error.args[1:])
            raise

    def _skip(self) -> None:
        self._at = len(self._text) - len(self._text[self._at :].lstrip())

    def _unexpected(self, expected: str, expects_term: bool = False) -> ParseError:
        match = _WORD.match(self._text, self._at)
        if match is None:
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


def _weighed(symbol: str, left: _Part, right: _Part, place: SourceSpan) -> float | list[Any]:
    """Returns the number of two numbers, or the energy and the weight of a product or quotient."""
    a, b = left.value, right.value
    numbers = isinstance(a, float) + isinstance(b, float)
    if symbol == "/":
        if not isinstance(b, float):
            raise ParseError("`/` divides by a number, but this is an energy.", right.place)
        if b == 0:
            raise ParseError("A temperature must not be zero.", right.place)
        return _finite(a / b, place) if numbers == 2 else [a, _finite(1 / b, right.place)]
    if not numbers:
        raise ParseError("`*` takes a number and an energy, but both of these are energies; join them by `&`.", place)
    return _finite(a * b, place) if numbers == 2 else [b, a] if isinstance(a, float) else [a, b]


def _finite(value: float, place: SourceSpan) -> float:
    if not math.isfinite(value):
        raise ParseError("A weight must be finite.", place)
    return value


def _check_energy(part: _Part, otherwise: str) -> None:
    if isinstance(part.value, float):
        raise ParseError(f"{otherwise}, and this is a number; a number is a weight, as in `2 * smiling`.", part.place)


def _too_deep(place: SourceSpan) -> ParseError:
    return ParseError(f"An expression is nested at most {MAX_DEPTH} deep.", place)


def _combine(symbol: str, values: Sequence[Any]) -> Energy:
    """Applies an operator to energies. A chain is built at once: term by term takes quadratic time."""
    from composable_energy.algebra import all_of, any_of

    return {"~": invert, "&": all_of, "|": any_of, "^": xor, ">>": rshift, "*": mul, "/": mul}[symbol](*values)
