"""Building of energies from syntax trees; errors show their location."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from composable_energy.errors import ComposableEnergyError, PluginNotFound
from composable_energy.parsing.grammar import parse_tree
from composable_energy.parsing.tree import Chain, Complement, Name, ParseError, Scaled, SourceSpan, Tree, leaves
from composable_energy.suggestions import nearest_names

if TYPE_CHECKING:
    from composable_energy.energy import Energy

__all__ = ["build", "parse", "unknown_name"]


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
    match tree:
        case Name():
            return found[tree.name]
        case Complement():
            operands = [_build(tree.operand, found)]
        case Scaled():
            operands = [_build(tree.operand, found)]
        case Chain():
            operands = [_build(term, found) for term in tree.terms]
    try:
        return _join(tree, operands)
    except ComposableEnergyError as error:
        _add_location(error, tree.place)
        raise


def _join(tree: Complement | Scaled | Chain, operands: list[Energy]) -> Energy:
    """Applies an operator to its operands. A chain is built at once: term by term takes quadratic time."""
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
        case Chain(operator="^"):
            return operands[0] ^ operands[1]
        case _:
            return operands[0] >> operands[1]


def _add_location(error: ComposableEnergyError, place: SourceSpan) -> None:
    """Adds the location to the message of an error."""
    error.args = (f"{error}\n{place}", *error.args[1:])
