"""Syntax trees of expressions with locations in the text, and the error that shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from composable_energy.errors import ExpressionError

__all__ = [
    "FOREIGN_SYNTAX",
    "NAME",
    "PATH",
    "PRECEDENCE",
    "Chain",
    "Complement",
    "Name",
    "Number",
    "ParseError",
    "Part",
    "Scaled",
    "SourceSpan",
    "Tree",
    "leaves",
]

PRECEDENCE = {"|": 1, "^": 2, "&": 3, ">>": 4, "*": 5, "/": 5}
COMPLEMENT = 6
NAME = re.compile(r"[^\W\d]\w*(?:[-=/:]\w+)*")
PATH = re.compile(r"\.{0,2}/[\w\-=/:.]+")
FOREIGN_SYNTAX = {
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
"""Operators of other languages, with the advice for each; they are not names."""


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
    """The text of an expression is malformed.

    Attributes:
        place: The location.
    """

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
        if (NAME.fullmatch(self.name) and self.name not in FOREIGN_SYNTAX) or PATH.fullmatch(self.name):
            return self.name
        return f"'{self.name}'" if "'" not in self.name else f'"{self.name}"'


@dataclass(frozen=True)
class Complement:
    """The complement `~A`."""

    operand: Tree
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        return "~" + _format_operand(self.operand, COMPLEMENT)


@dataclass(frozen=True)
class Scaled:
    """The weighted `w * A`; also `A / T`, with w = 1 / T."""

    weight: float
    operand: Tree
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        short = f"{self.weight:g}"
        return f"{short if float(short) == self.weight else repr(self.weight)} * {_format_operand(self.operand, PRECEDENCE['*'] + 1)}"


@dataclass(frozen=True)
class Chain:
    """The chain `A & B & ...` or `A | B | ...`, or the implication `A >> B`."""

    operator: str
    terms: tuple[Tree, ...]
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)

    def __str__(self) -> str:
        first, *others = self.terms
        own = PRECEDENCE[self.operator]
        return f" {self.operator} ".join([_format_operand(first, own), *(_format_operand(term, own + 1) for term in others)])


@dataclass(frozen=True)
class Number:
    """A number, which becomes a weight; a complete tree has none."""

    value: float
    place: SourceSpan = field(compare=False, repr=False)
    depth: int = field(default=1, compare=False, repr=False)


Tree = Name | Complement | Scaled | Chain
Part = Name | Complement | Scaled | Chain | Number


def leaves(tree: Tree) -> Iterator[Name]:
    """Yields the names of a tree with their locations, in reading order."""
    match tree:
        case Name():
            yield tree
        case Chain():
            for term in tree.terms:
                yield from leaves(term)
        case Complement() | Scaled():
            yield from leaves(tree.operand)


def _format_operand(tree: Tree, precedence: int) -> str:
    """Returns the text of an operand, in parentheses if its precedence is lower."""
    match tree:
        case Chain():
            own = PRECEDENCE[tree.operator]
        case Scaled():
            own = PRECEDENCE["*"]
        case _:
            own = COMPLEMENT
    return f"({tree})" if own < precedence else str(tree)
