r"""Expressions as text: `parse("male & ~smiling", resolve)`, a grammar of its own that runs nothing.

    expression  = term, { operator, term }
    term        = { "~" }, ( name | number | "(", expression, ")" )
    operator    = "*" | "/" | ">>" | "&" | "|"
    number      = [ "+" | "-" ], digits with an optional point and exponent: 2, .5, 1e-3
    name        = words of letters, digits and "_", joined by "-", "=", "/" or ":"; the first begins with no digit
                | a path that begins with "/", "./" or "../", of the same characters and "."
                | anything between single or double quotes

Precedence is Python's, from tight to loose: `~`, then `*` and `/`, then `>>`, then `&`, then `|`; all of them group from the left. Numbers
are weights: `2 * smiling`, `smiling / 2`, and products of numbers such as `(1 / 3) * smiling`. A `/` without spaces belongs to the name
(`faces/male`), so a division has spaces, parentheses or numbers around it.

Syntax stands apart from building: `parse_tree` finds every mistake of form without an energy, `build` then asks for the names. A mistake is
a `ParseError` that shows its place:

    Expected an operator, found `smiling`; join two terms by `&` or `|`.
      male smiling
           ^^^^^^^

This file imports no torch, so that a command line can speak of a typo at once.
"""

from composable_energy.parsing.builder import build, parse, unknown_name
from composable_energy.parsing.grammar import MAX_DEPTH, MAX_LENGTH, parse_tree
from composable_energy.parsing.tree import Chain, Complement, Name, ParseError, Scaled, SourceSpan, Tree, leaves

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "Chain",
    "Complement",
    "Name",
    "ParseError",
    "Scaled",
    "SourceSpan",
    "Tree",
    "build",
    "leaves",
    "parse",
    "parse_tree",
    "unknown_name",
]
