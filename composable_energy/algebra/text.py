"""Text of expressions."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

from composable_energy.energy import Energy

_TEXTS: ContextVar[dict[Energy, str] | None] = ContextVar("texts", default=None)  # the texts of parts, formatted once
_LONGEST = 20_000  # characters


def format_operand(energy: Energy, precedence: int) -> str:
    """Returns the text of an operand, in parentheses if its precedence is lower."""
    texts = _TEXTS.get()
    if texts is None:
        token = _TEXTS.set({})
        try:
            return format_operand(energy, precedence)
        finally:
            _TEXTS.reset(token)
    if energy not in texts:
        texts[energy] = _shorten(str(energy))
    own: int = getattr(energy, "precedence", 100)
    return f"({texts[energy]})" if own < precedence else texts[energy]


def join_operands(terms: Sequence[Energy], sign: str, precedence: int) -> str:
    """Returns the texts of operands joined by an operator; the middle of a long text is left out."""
    texts = {term: format_operand(term, precedence) for term in dict.fromkeys(terms)}
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
