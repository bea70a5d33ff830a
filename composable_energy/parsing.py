r"""Parsing of expressions: `parse("male & ~smiling").build(energies)`. Text is never executed.

    expression  = term, { operator, term }
    term        = { "~" }, ( name | number | "(", expression, ")" )
    operator    = "*" | "/" | ">>" | "&" | "^" | "|"
    number      = [ "+" | "-" ], digits with an optional point and exponent: 2, .5, 1e-3
    name        = words of letters, digits and "_", joined by "-", "=", "/" or ":"; the first begins with no digit
                | a path that begins with "/", "./" or "../", of the same characters and "."
                | anything between single or double quotes

Precedence is Python's: names and numbers become underscores of the same length, and `ast` reads the rest. Numbers are weights:
`2 * smiling`, `smiling / 2`, `(1 / 3) * smiling`. A `/` without spaces belongs to the name (`faces/male`), so a division needs spaces,
parentheses or numbers around it. `parse` finds all syntax errors without an energy or torch, and shows their location:

    Expected an operator, found `smiling`; join two terms by `&` or `|`.
      male smiling
           ^^^^^^^
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
_OPERATOR = re.compile(r"&(?!&)|\|(?!\|)|\*(?!\*)|\^|>>|/|\)")
_WORD = re.compile(r"\w+|&&|\|\||->|=>|<<|\*\*|==|!=|.", re.DOTALL)
_SYMBOLS = {ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.RShift: ">>", ast.Mult: "*", ast.Div: "/"}
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
    _operands: Mapping[int, Name | float] = field(repr=False)
    _tree: ast.expr = field(repr=False)

    def build(self, energies: Mapping[str, Energy]) -> Energy:
        """Returns the energy.

        Args:
            energies: The energies by name.

        Raises:
            ParseError: A name is unknown.
            ExpressionError: The energies cannot be combined; the message shows the location.
        """
        found = {}
        for name in self.names:
            if name.name not in energies:
                raise unknown_name(name, energies)
            found[name.name] = energies[name.name]
        return self._fold(self._tree, lambda name: found[name.name], _combine)

    def renamed(self, rename: Callable[[Name], str]) -> str:
        """Returns the text in one line with other names; with identifiers for names it is Python."""
        parts, at = [], 0
        for name in self.names:
            parts += [self.text[at : name.place.start], rename(name)]
            at = name.place.end
        return " ".join("".join([*parts, self.text[at:]]).split())

    def _fold(self, node: ast.expr, leaf: Callable[[Name], Any], combine: Callable[[str, Sequence[Any]], Any], depth: int = 1) -> Any:
        """Returns the value of a part, an energy or the number of a weight, from those of names and operators."""
        place = self._place(node)
        if depth > MAX_DEPTH:
            raise _too_deep(place)
        if isinstance(node, ast.Name):
            operand = self._operands[place.start]
            return leaf(operand) if isinstance(operand, Name) else operand
        if isinstance(node, ast.BinOp):
            operator, parts = _SYMBOLS[type(node.op)], [node.right]
            while operator in "&|" and isinstance(node.left, ast.BinOp) and type(node.left.op) is type(node.op):
                node = node.left
                parts.append(node.right)
            parts = [node.left, *reversed(parts)]
        else:
            assert isinstance(node, ast.UnaryOp)
            operator, parts = "~", [node.operand]
        values = [self._fold(part, leaf, combine, depth + 1) for part in parts]
        if operator in "*/":
            number, value = _weigh(operator, values, place, self._place(parts[1]))
            if value is None:
                return number
            operator, values = "*", [value, number]
        else:
            for part, value in zip(parts, values, strict=True):
                _check_energy(value, f"`{operator}` {'takes an energy' if operator == '~' else 'joins energies'}", self._place(part))
        try:
            return combine(operator, values)
        except ComposableEnergyError as error:
            error.args = (f"{error}\n{place}", *error.args[1:])
            raise

    def _place(self, node: ast.expr) -> SourceSpan:
        return SourceSpan(self.text, node.col_offset - 1, (node.end_col_offset or node.col_offset) - 1)  # in parentheses


def parse(text: str) -> Expression:
    """Returns the expression that a text says, without looking up names.

    Raises:
        ParseError: The text is not an expression, has more than `MAX_LENGTH` characters or is nested more than `MAX_DEPTH` deep.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"An expression has at most {MAX_LENGTH} characters, got {len(text)}.", SourceSpan(text, MAX_LENGTH, len(text)))
    if not text.strip():
        raise ParseError("Expected an expression, found nothing; write one such as `male & ~smiling`.", SourceSpan(text, 0, 0))
    operands, cuts, source = _scan(text)
    try:
        tree = ast.parse(f"({source})", mode="eval").body
    except (RecursionError, MemoryError) as error:
        raise ParseError("An expression has at most about a thousand operators.", SourceSpan(text, 0, len(text))) from error
    names = tuple(operand for operand in operands.values() if isinstance(operand, Name))
    terms = tuple(text[start + 1 : end].strip() for start, end in zip([-1, *cuts], [*cuts, len(text)], strict=True))
    expression = Expression(text, names, terms, operands, tree)
    value = expression._fold(tree, lambda name: name, lambda operator, values: operator)
    _check_energy(value, "An expression stands for an energy", expression._place(tree))
    return expression


def _scan(text: str) -> tuple[dict[int, Name | float], list[int], str]:
    """Returns names and numbers by position, the positions of the outermost `&`, and the text with underscores for names and numbers."""
    operands: dict[int, Name | float] = {}
    opened: list[int] = []
    cuts, weaker, tildes, expects_term, source, at = [], False, 0, True, "", 0
    while expects_term or text[at:].strip():
        source += " " * (blanks := len(text) - at - len(text[at:].lstrip()))
        at += blanks
        match = (_TERM if expects_term else _OPERATOR).match(text, at)
        if match is None or match[0] in _ADVICE or (match[0] == ")" and not opened):
            raise _unexpected(text, at, expects_term, opened)
        place, found = SourceSpan(text, at, match.end()), match[0]
        tildes = tildes + 1 if found == "~" else 0
        if len(opened) + (found == "(") > MAX_DEPTH or tildes > MAX_DEPTH:
            raise _too_deep(place)
        if not expects_term or match["open"]:
            if found == "(":
                opened.append(at)
            elif found == ")":
                opened.pop()
            elif not opened and found == "&":
                cuts.append(at)
            weaker |= not opened and found in "|^"
            expects_term = found != ")"
            source += found
        else:
            operands[at] = _finite(float("".join(found.split())), place) if match["number"] else _name(match, place)
            expects_term = False
            source += "_" * len(found)
        at = match.end()
    if opened:
        raise _unexpected(text, len(text), False, opened)
    return operands, [] if weaker else cuts, source


def _name(match: re.Match[str], place: SourceSpan) -> Name:
    name = match[match.lastgroup or 0]
    if not name.strip():
        raise ParseError("The name between the quotes is empty.", place)
    return Name(name, place)


def _unexpected(text: str, at: int, expects_term: bool, opened: Sequence[int]) -> ParseError:
    expected = "a name, a number, `~` or `(`" if expects_term else "an operator or `)`" if opened else "an operator"
    match = _WORD.match(text, at)
    if match is None:
        advice = f"; the `(` at character {opened[-1] + 1} is not closed." if opened else "."
        return ParseError(f"Expected {expected}, found the end{advice}", SourceSpan(text, len(text), len(text)))
    found = match[0]
    advice = _ADVICE.get(found, "")
    if not advice and not expects_term:
        if found == ")":
            advice = "no `(` is open"
        elif found[0] in "~('\"_" or found[0].isalnum():
            advice = "join two terms by `&` or `|`, a weight and a term by `*`"
    shown = f"`{found}`" if found.isprintable() else ascii(found)
    return ParseError(f"Expected {expected}, found {shown}{f'; {advice}' if advice else ''}.", SourceSpan(text, *match.span()))


def _weigh(operator: str, values: Sequence[Any], place: SourceSpan, right: SourceSpan) -> tuple[float, Any]:
    """Returns the weight and the energy of a product or a quotient; None in place of the energy for numbers alone."""
    first, second = values
    if operator == "/":
        if not isinstance(second, float):
            raise ParseError("`/` divides by a number, but this is an energy.", right)
        if second == 0:
            raise ParseError("A temperature must not be zero.", right)
        if isinstance(first, float):
            return _finite(first / second, place), None
        return _finite(1 / second, right), first
    if isinstance(first, float) and isinstance(second, float):
        return _finite(first * second, place), None
    if not (isinstance(first, float) or isinstance(second, float)):
        raise ParseError("`*` takes a number and an energy, but both of these are energies; join them by `&`.", place)
    return (first, second) if isinstance(first, float) else (second, first)


def _finite(value: float, place: SourceSpan) -> float:
    if not math.isfinite(value):
        raise ParseError("A weight must be finite.", place)
    return value


def _check_energy(value: Any, otherwise: str, place: SourceSpan) -> None:
    if isinstance(value, float):
        raise ParseError(f"{otherwise}, and this is a number; a number is a weight, as in `2 * smiling`.", place)


def _too_deep(place: SourceSpan) -> ParseError:
    return ParseError(f"An expression is nested at most {MAX_DEPTH} deep.", place)


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


def _combine(operator: str, values: Sequence[Any]) -> Energy:
    """Applies an operator to energies. A chain is built at once: term by term takes quadratic time."""
    from composable_energy.algebra import all_of, any_of

    match operator:
        case "~":
            return ~values[0]
        case "&" | "|":
            return (all_of if operator == "&" else any_of)(*values)
        case "*":
            return values[0] * values[1]
        case "^":
            return values[0] ^ values[1]
    return values[0] >> values[1]
