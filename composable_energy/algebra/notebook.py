"""Expressions as HTML for notebooks: the tree of terms with their sources, shapes, supports and sizes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from composable_energy.algebra.disjunction import Disjunction
from composable_energy.algebra.shares import describe_shares
from composable_energy.energy import Energy
from composable_energy.errors import ComposableEnergyError
from composable_energy.supports import format_support
from composable_energy.tables import Html, escape, html_block, html_table

__all__ = ["html_tree"]

_ROWS, _LETTERS = 100, 80  # terms, and characters of a cell
_HEADER = ("term", "kind", "from", "points", "support", "parameters")


def html_tree(energy: Energy) -> str:
    """Returns an expression as HTML: what it is as a whole, then one row for each term and each base.

    Repeated terms are shown once, and so are bases. The parameters of a term are those that its bases do not have.
    """
    rows: list[tuple[str, ...]] = []
    seen: set[nn.Parameter] = set()
    hidden = 0
    for head, term, again in _walk(energy):
        if len(rows) == _ROWS:
            hidden += 1
            if hidden > _ROWS:  # an expression may have very many terms
                break
            continue
        numbers = "" if again or term.terms else _count(_own_parameters(term, seen))
        cells = (type(term).__name__, _source(term), _points(term), _support(term), numbers)
        rows.append((_term(head, term, " (as above)" if again else ""), *cells))
    for base in _bases(energy):
        cells = (type(base).__name__, _source(base), _points(base), _support(base), _count(_own_parameters(base, seen)))
        rows.append((_term("base ", base, ""), *cells))
    more = f"and {'more than ' if hidden > _ROWS else ''}{min(hidden, _ROWS)} more terms" if hidden else ""
    facts = Html(f'<span class="ce-muted">{escape("; ".join(_facts(energy)))}</span>')
    return html_block(Html(f"<code>{escape(_shorten(str(energy), 4 * _LETTERS))}</code>"), facts, _table(rows), more)


def _table(rows: list[tuple[str, ...]]) -> Html:
    """Returns the table without columns that are empty."""
    columns = [i for i in range(len(_HEADER)) if i == 0 or any(row[i] for row in rows)]
    right = [place for place, i in enumerate(columns) if i == len(_HEADER) - 1]
    return html_table([_HEADER[i] for i in columns], [[row[i] for i in columns] for row in rows], right)


def _walk(root: Energy) -> Iterator[tuple[str, Energy, bool]]:
    """Yields the lines of the tree, each term, and whether its terms were shown before."""
    shown: set[Energy] = set()
    todo: list[tuple[str, str, Energy]] = [("", "", root)]
    while todo:
        head, below, term = todo.pop()
        again = term in shown
        yield head, term, again
        if term.terms and not again:
            shown.add(term)
            count = len(term.terms)
            for i, inner in reversed(list(enumerate(term.terms))):
                line, rest = ("└─ ", "   ") if i == count - 1 else ("├─ ", "│  ")
                todo.append((below + line, below + rest, inner))


def _term(head: str, term: Energy, note: str) -> Html:
    return Html(f'<code><span class="ce-muted">{escape(head)}</span>{escape(_shorten(str(term)))}{escape(note)}</code>')


def _facts(energy: Energy) -> list[str]:
    facts = []
    if energy.unsatisfiable:
        facts.append("no point fulfils it")
    elif not energy.grounded:
        facts.append("no lower bound, so it cannot be sampled alone")
    if isinstance(energy, Disjunction):
        facts.append(f"shares {describe_shares(energy.shares)}")
    if not energy.has_value:
        facts.append("a gradient without values")
    if energy.required_conditions:
        facts.append(f"needs {', '.join(sorted(energy.required_conditions))}")
    if energy.recommended is not None:
        facts.append(f"recommends {energy.recommended.sampler}")
    tensor = next((tensor for tensor in (*energy.parameters(), *energy.buffers()) if tensor.is_floating_point()), None)
    if tensor is not None:
        facts.append(f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}")
    return facts


def _source(term: Energy) -> str:
    origin = term.origin
    if origin is None:
        return ""
    return f"{origin}, {origin.distribution or 'this session'}" + (f" {origin.version}" if origin.version else "")


def _points(term: Energy) -> str:
    if term.event_shape is None:
        return "any"
    shape = str(tuple(term.event_shape))
    if term.decoder is None:
        return shape
    return f"latent {shape}, decoded" + (f" {tuple(term.decoded_shape)}" if term.decoded_shape is not None else "")


def _support(term: Energy) -> str:
    try:
        return "" if term.support is None else _shorten(format_support(term.support))
    except ComposableEnergyError:  # the terms have no common support, which sampling reports
        return "not known"


def _bases(energy: Energy) -> list[Energy]:
    return list(dict.fromkeys(base.energy for base in energy.bases))


def _own_parameters(term: Energy, seen: set[nn.Parameter]) -> list[nn.Parameter]:
    """Returns the parameters that neither a base of the term has nor a term before it."""
    shared = {parameter for base in term.bases if base.energy is not term for parameter in base.energy.parameters()}
    own = [parameter for parameter in term.parameters() if parameter not in shared and parameter not in seen]
    seen.update(own)
    return own


def _count(parameters: list[nn.Parameter]) -> str:
    total = sum(parameter.numel() for parameter in parameters)
    return f"{total:,}" if total else ""


def _shorten(text: str, length: int = _LETTERS) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"
