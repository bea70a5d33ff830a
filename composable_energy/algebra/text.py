"""Text of expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from composable_energy.energy import Energy

Operand = Callable[[Energy, int], str]  # returns the text of an operand, in parentheses if its precedence is lower than a number
_LONGEST = 20_000  # characters


def text_of(self: Any) -> str:
    """Returns the text of a node, the `__str__` of the class `Node`; that of a part that occurs several times is formatted once."""
    texts: dict[Energy, str] = {}

    def operand(energy: Any, precedence: int) -> str:
        if energy not in texts:
            texts[energy] = _shorten(energy.text(operand) if type(energy).__str__ is text_of else str(energy))
        own: int = getattr(energy, "precedence", 100)
        return f"({texts[energy]})" if own < precedence else texts[energy]

    return operand(self, 0)


def join_operands(operand: Operand, terms: Sequence[Energy], sign: str, precedence: int) -> str:
    """Returns the texts of operands joined by an operator; the middle of a long text is left out."""
    texts = {term: operand(term, precedence) for term in dict.fromkeys(terms)}
    return _shorten(sign.join(texts[term] for term in terms))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def tree(energy: Energy) -> str:
    """Returns an expression as a tree with one line for each term; the terms of a repeated part are drawn once."""
    return "\n".join(_branches(energy, set()))


def _branches(energy: Energy, shown: set[Energy]) -> list[str]:
    detail = energy.extra_repr() if energy.terms else f"{energy}" if energy.name else energy.extra_repr()
    head = f"{type(energy).__name__}({detail})" if detail else type(energy).__name__
    if energy in shown:
        return [f"{head} (as above)"]
    if energy.terms:
        shown.add(energy)
    lines = [head]
    for i, term in enumerate(energy.terms):
        last = i == len(energy.terms) - 1
        head, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
        first, *others = _branches(term, shown)
        lines += [head + first, *(rest + line for line in others)]
    return lines
