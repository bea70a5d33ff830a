"""Parser of expressions: precedence as in Python, and errors with their position."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy.parsing import MAX_DEPTH, MAX_LENGTH, Name, ParseError, SourceSpan, parse, unknown_name
from tests.parsing_names import TOYS


@pytest.mark.parametrize(
    ("text", "names", "terms"),
    [
        ("male & ~ smiling", ["male", "smiling"], ["male", "~ smiling"]),
        ("faces/hair=dark-red|a:b/c", ["faces/hair=dark-red", "a:b/c"], ["faces/hair=dark-red|a:b/c"]),
        ("(a | b) & 2 * c / 3", ["a", "b", "c"], ["(a | b)", "2 * c / 3"]),
        ("(a)/4", ["a"], ["(a)/4"]),
        ("./saved/x.y & /tmp/z-1 & ../w", ["./saved/x.y", "/tmp/z-1", "../w"], ["./saved/x.y", "/tmp/z-1", "../w"]),
        ("'my model' & \"it's\"", ["my model", "it's"], ["'my model'", '"it\'s"']),
        ("'and' & a", ["and", "a"], ["'and'", "a"]),
        ("größe ^ _x1", ["größe", "_x1"], ["größe ^ _x1"]),
        ("\n a\t&\r\n b ", ["a", "b"], ["a", "b"]),
    ],
)
def test_names_and_terms(text: str, names: list[str], terms: list[str]):
    expression = parse(text)
    assert [name.name for name in expression.names] == names and list(expression.terms) == terms
    assert all(name.name in text[name.place.start : name.place.end] for name in expression.names)


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        ("", "Expected an expression, found nothing; write one such as `male & ~smiling`.", 0),
        ("male &", "Expected a name, a number, `~` or `(`, found the end.", 6),
        ("male smiling", "Expected an operator, found `smiling`; join two terms by `&` or `|`, a weight and a term by `*`.", 5),
        ("(male & (old", "Expected an operator or `)`, found the end; the `(` at character 9 is not closed.", 12),
        ("male) & old", "Expected an operator, found `)`; no `(` is open.", 4),
        ("male and old", "Expected an operator, found `and`; write `&`.", 5),
        ("male || old", "Expected an operator, found `||`; write `|`.", 5),
        ("not male", "Expected a name, a number, `~` or `(`, found `not`; write `~`.", 0),
        ("a - b", "Expected an operator, found `-`; write `& ~` to exclude a concept; a difference of energies is made in Python.", 2),
        ("a ** 2", "Expected an operator, found `**`; write `2 * A` for a power of the density.", 2),
        ("hair = red", "Expected an operator, found `=`; write `hair=red` without spaces.", 5),
        ("a.at(2)", "Expected an operator, found `.`; methods are called in Python, a name with a point is written in quotes.", 1),
        ("a \x00 b", r"Expected an operator, found '\x00'.", 2),
        ("2", "An expression stands for an energy, and this is a number; a number is a weight, as in `2 * smiling`.", 0),
        ("a & 2", "`&` joins energies, and this is a number; a number is a weight, as in `2 * smiling`.", 4),
        ("~2 * a", "`~` takes an energy, and this is a number; a number is a weight, as in `2 * smiling`.", 1),
        ("a * b", "`*` takes a number and an energy, but both of these are energies; join them by `&`.", 0),
        ("2 / a", "`/` divides by a number, but this is an energy.", 4),
        ("a / 0", "A temperature must not be zero.", 4),
        ("1e999 * a", "A weight must be finite.", 0),
        ("1e300 * 1e300 * a", "A weight must be finite.", 0),
        ("a / 1e-320", "A weight must be finite.", 4),
        ("'' & a", "The name between the quotes is empty.", 0),
        ("'a & b", "Expected a name, a number, `~` or `(`, found `'`.", 0),
        ("(" * 65 + "a", f"An expression is nested at most {MAX_DEPTH} deep.", 64),
        ("~" * 65 + "a", f"An expression is nested at most {MAX_DEPTH} deep.", 64),
        (" >> ".join("a" * 65), f"An expression is nested at most {MAX_DEPTH} deep.", 0),
        ("a" * (MAX_LENGTH + 1), f"An expression has at most {MAX_LENGTH} characters, got {MAX_LENGTH + 1}.", MAX_LENGTH),
    ],
)
def test_mistakes_say_what_and_where(text: str, message: str, at: int):
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert str(caught.value).split("\n")[0] == message
    assert caught.value.place.start == at
    assert isinstance(caught.value, ExpressionError)


def test_caret_stands_below_the_mistake_also_in_a_long_line():
    with pytest.raises(ParseError) as caught:
        parse("male smiling")
    assert str(caught.value).split("\n")[1:] == ["  male smiling", "       ^^^^^^^"]
    with pytest.raises(ParseError) as caught:
        parse(" &\n".join(["one"] * 100) + " oops & " + " & ".join(["two"] * 100))
    _, line, carets = str(caught.value).split("\n")
    assert line.startswith("  ...") and line.endswith("...") and len(line) < 170
    assert line[carets.index("^") : carets.rindex("^") + 1] == "oops"


@pytest.mark.slow
def test_builds_what_the_operators_build():
    red, smiling, bowl = TOYS["hair=red"], TOYS["toys/smiling"], TOYS["bowl"]
    assert repr(parse("bowl / 2 >> hair=red").build(TOYS)) == repr(bowl / 2 >> red)
    energy = parse("hair=red & ~toys/smiling | bowl / 2").build(TOYS)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert repr(energy) == repr(red & ~smiling | bowl / 2)
    assert torch.equal(energy(x), (red & ~smiling | bowl / 2)(x))


def test_thousand_terms_are_built_at_once():
    start = time.perf_counter()
    energy = parse(" & ".join(["bowl", "ring_2"] * 500)).build(TOYS)
    assert len(energy.terms) == 1000
    assert time.perf_counter() - start < 2


def test_unknown_name_has_the_nearest_and_its_place():
    with pytest.raises(
        ParseError, match=r"(?m)^Unknown name `hair=rad`; did you mean `hair=red` or `hair=black`\?\n  ~hair=rad\n   \^{8}$"
    ):
        parse("~hair=rad").build(TOYS)
    with pytest.raises(ParseError, match=r"^Unknown name `bowl/2`; a division has spaces around it: `bowl / 2`\."):
        parse("bowl/2").build(TOYS)
    with pytest.raises(ParseError, match=r"^Unknown name `zzz`; there are bowl, ring\.\n"):
        raise unknown_name(Name("zzz", SourceSpan("zzz", 0, 3)), ["ring", "bowl"])
    with pytest.raises(ParseError, match=r"^Unknown name `zzz`\.\n"):
        parse("zzz").build({})


def test_errors_of_the_operators_get_a_place():
    point = ce.GaussianHead(lambda x: torch.cat([x, x], 1), dims=2)((0.0, 0.0))
    with pytest.raises(ExpressionError, match=r"(?m)no complement.*\n  bowl \| ~point\n {9}\^{6}$"):
        parse("bowl | ~point").build({**TOYS, "point": point})


def test_a_contradiction_is_read_like_any_expression():
    energy = parse("bowl | (hair=red & ~hair=red)").build(TOYS)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert str(energy) == "bowl | hair=red & ~hair=red"
    assert torch.equal(energy(x), TOYS["bowl"](x))


def test_reading_a_text_imports_no_torch():
    code = "import sys; from composable_energy.parsing import parse; parse('a & ~b'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
