"""The parser of expressions: recursive descent, with limits on length and depth."""

from __future__ import annotations

import math
import re

from composable_energy.parsing.tree import (
    FOREIGN_SYNTAX,
    NAME,
    PATH,
    PRECEDENCE,
    Chain,
    Complement,
    Name,
    Number,
    ParseError,
    Part,
    Scaled,
    SourceSpan,
    Tree,
)

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "parse_tree"]

MAX_LENGTH = 10_000
MAX_DEPTH = 64

_NUMBER = re.compile(r"[+-]?\s*(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"\w+|&&|\|\||->|=>|<<|\*\*|==|!=|.", re.DOTALL)


def parse_tree(text: str) -> Tree:
    """Returns the syntax tree of an expression, without looking up names.

    Raises:
        ParseError: The text is not an expression, has more than `MAX_LENGTH` characters or is nested more than `MAX_DEPTH` deep.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"An expression has at most {MAX_LENGTH} characters, got {len(text)}.", SourceSpan(text, MAX_LENGTH, len(text)))
    return _Parser(text).whole()


class _Parser:
    """A recursive descent parser without tokens: the meaning of a character depends on whether a term or an operator is expected."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.open: list[int] = []
        self._skip()

    def whole(self) -> Tree:
        if self.position == len(self.text):
            raise ParseError("Expected an expression, found nothing; write one such as `male & ~smiling`.", SourceSpan(self.text, 0, 0))
        part = self._expression(1)
        if self.position < len(self.text):
            raise self._unexpected("an operator")
        return self._energy(part, "An expression stands for an energy, and this is a number")

    def _expression(self, lowest: int) -> Part:
        left = self._term()
        while (operator := self._operator()) and PRECEDENCE[operator] >= lowest:
            self._take(self.position + len(operator))
            right = self._expression(PRECEDENCE[operator] + 1)
            left = self._check_depth(self._join(left, operator, right))
        return left

    def _term(self) -> Part:
        at = self.position
        if self.text.startswith("~", at):
            return self._complement()
        if self.text.startswith("(", at):
            return self._group()
        if match := _QUOTED.match(self.text, at):
            place = self._take(match.end())
            if not match[0][1:-1].strip():
                raise ParseError("The name between the quotes is empty.", place)
            return Name(match[0][1:-1], place)
        if match := _NUMBER.match(self.text, at):
            place = self._take(match.end())
            return _as_number(float("".join(match[0].split())), place)
        match = NAME.match(self.text, at) or PATH.match(self.text, at)
        if match is None or match[0] in FOREIGN_SYNTAX:
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
            tree = Complement(tree, SourceSpan(self.text, sign.start, tree.place.end), tree.depth + 1)
            self._check_depth(tree)
        return tree

    def _group(self) -> Part:
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
        """Returns the operator at the position; empty if there is none."""
        two = self.text[self.position : self.position + 2]
        if two in ("&&", "||", "**"):
            return ""
        return next((operator for operator in PRECEDENCE if two.startswith(operator)), "")

    def _join(self, left: Part, operator: str, right: Part) -> Part:
        place = SourceSpan(self.text, left.place.start, right.place.end)
        if operator in ("*", "/"):
            return self._scale(left, operator, right, place)
        terms = [self._energy(part, f"`{operator}` joins energies, and this is a number") for part in (left, right)]
        if operator in ("&", "|"):
            terms = [inner for term in terms for inner in _flat(term, operator)]
        return Chain(operator, tuple(terms), place, max(term.depth for term in terms) + 1)

    def _scale(self, left: Part, operator: str, right: Part, place: SourceSpan) -> Part:
        if operator == "/":
            if not isinstance(right, Number):
                raise ParseError("`/` divides by a number, but this is an energy.", right.place)
            if right.value == 0:
                raise ParseError("A temperature must not be zero.", right.place)
            if isinstance(left, Number):
                return _as_number(left.value / right.value, place)
            right = _as_number(1 / right.value, right.place)
        weight, operand = (left, right) if isinstance(left, Number) else (right, left)
        if isinstance(weight, Number):
            if isinstance(operand, Number):
                return _as_number(weight.value * operand.value, place)
            return Scaled(weight.value, operand, place, operand.depth + 1)
        raise ParseError("`*` takes a number and an energy, but both of these are energies; join them by `&`.", place)

    def _energy(self, part: Part, otherwise: str) -> Tree:
        if isinstance(part, Number):
            raise ParseError(f"{otherwise}; a number is a weight, as in `2 * smiling`.", part.place)
        return part

    def _check_depth(self, part: Part) -> Part:
        if part.depth > MAX_DEPTH:
            raise self._too_deep(part.place)
        return part

    def _take(self, end: int) -> SourceSpan:
        place = SourceSpan(self.text, self.position, end)
        self.position = end
        self._skip()
        return place

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.position)
        self.position = match.end() if match else self.position

    def _too_deep(self, place: SourceSpan) -> ParseError:
        return ParseError(f"An expression is nested at most {MAX_DEPTH} deep.", place)

    def _unexpected(self, expected: str) -> ParseError:
        match = _WORD.match(self.text, self.position)
        if match is None:
            advice = f"; the `(` at character {self.open[-1] + 1} is not closed." if self.open else "."
            return ParseError(f"Expected {expected}, found the end{advice}", SourceSpan(self.text, len(self.text), len(self.text)))
        found = match[0]
        advice = FOREIGN_SYNTAX.get(found, "")
        if not advice and "operator" in expected:
            if found == ")":
                advice = "no `(` is open"
            elif found[0] in "~('\"" or found[0].isalnum() or found[0] == "_":
                advice = "join two terms by `&` or `|`, a weight and a term by `*`"
        place = SourceSpan(self.text, self.position, match.end())
        shown = f"`{found}`" if found.isprintable() else ascii(found)
        return ParseError(f"Expected {expected}, found {shown}{f'; {advice}' if advice else ''}.", place)


def _as_number(value: float, place: SourceSpan) -> Number:
    if not math.isfinite(value):
        raise ParseError("A weight must be finite.", place)
    return Number(value, place)


def _flat(term: Tree, operator: str) -> tuple[Tree, ...]:
    return term.terms if isinstance(term, Chain) and term.operator == operator else (term,)
