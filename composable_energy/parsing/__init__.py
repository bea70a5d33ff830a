r"""Parsing of expressions: `parse("male & ~smiling", resolve)`. Text is never executed.

    expression  = term, { operator, term }
    term        = { "~" }, ( name | number | "(", expression, ")" )
    operator    = "*" | "/" | ">>" | "&" | "^" | "|"
    number      = [ "+" | "-" ], digits with an optional point and exponent: 2, .5, 1e-3
    name        = words of letters, digits and "_", joined by "-", "=", "/" or ":"; the first begins with no digit
                | a path that begins with "/", "./" or "../", of the same characters and "."
                | anything between single or double quotes

Precedence is Python's, from high to low: `~`, then `*` and `/`, then `>>`, `&`, `^` and `|`; all are left-associative. Numbers are
weights: `2 * smiling`, `smiling / 2`, and products of numbers such as `(1 / 3) * smiling`. A `/` without spaces belongs to the name
(`faces/male`), so a division needs spaces, parentheses or numbers around it.

`parse_tree` finds all syntax errors without an energy; `build` then looks up the names. A `ParseError` shows its location:

    Expected an operator, found `smiling`; join two terms by `&` or `|`.
      male smiling
           ^^^^^^^

Parsing does not import torch, so that the command line reports syntax errors at once.
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
