"""Parser of expressions: precedence as in Python, errors with their position, and no failure but a typed error."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, ExpressionError
from composable_energy_cli.parsing import MAX_DEPTH, MAX_LENGTH, ParseError, parse
from tests.processes import run_code
from tests.refusals import refusals, refused

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
BASE = ce.as_energy(torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0), name="base")


def head(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, 0], x[:, 1], x.sum(1) / 2], 1)


TOYS = {
    "base": BASE,
    "hair=red": ce.ClassifierEnergy(head, 0, BASE, name="hair=red"),
    "hair=black": ce.ClassifierEnergy(head, 1, BASE, name="hair=black"),
    "toys/smiling": ce.ClassifierEnergy(lambda x: 3 * x[:, :1], 1, BASE, name="toys/smiling"),
    "bowl": ce.as_energy(lambda x: x.square().sum(1), name="bowl"),
    "ring_2": ce.as_energy(lambda x: (x.norm(dim=1) - 1).square(), name="ring_2"),
}
BOWLS = {name: TOYS[key] for name, key in (("a", "bowl"), ("b", "ring_2"), ("c", "base"))}


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
        ("(male & (old", "Expected an operator or `)`, found the end; the `(` at character 9 is not closed.", 12),
        ("not male", "Expected a name, a number, `~` or `(`, found `not`; write `~`.", 0),
        ("a - b", "Expected an operator, found `-`; write `& ~` to exclude a concept; a difference of energies is made in Python.", 2),
        ("hair = red", "Expected an operator, found `=`; write `hair=red` without spaces.", 5),
        ("a.at(2)", "Expected an operator, found `.`; methods are called in Python, a name with a point is written in quotes.", 1),
        ("a \x00 b", r"Expected an operator, found '\x00'.", 2),
        ("~2 * a", "`~` takes an energy, and this is a number; a number is a weight, as in `2 * smiling`.", 1),
        ("a * b", "`*` takes a number and an energy, but both of these are energies; join them by `&`.", 0),
        ("2 / a", "`/` divides by a number, but this is an energy.", 4),
        ("a / 0", "A temperature must not be zero.", 4),
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
    assert str(caught.value).split("\n")[0] == message and caught.value.place.start == at and isinstance(caught.value, ExpressionError)


def test_caret_stands_below_the_mistake_also_in_a_long_line():
    with pytest.raises(ParseError) as caught:
        parse("male smiling")
    assert str(caught.value).split("\n")[1:] == ["  male smiling", "       ^^^^^^^"]
    with pytest.raises(ParseError) as caught:
        parse(" &\n".join(["one"] * 100) + " oops & " + " & ".join(["two"] * 100))
    _, line, carets = str(caught.value).split("\n")
    assert line.startswith("  ...") and line.endswith("...") and len(line) < 170
    assert line[carets.index("^") : carets.rindex("^") + 1] == "oops"


test_unknown_name_has_the_nearest_and_its_place = refusals(
    ("~hair=rad", TOYS, r"(?m)^Unknown name `hair=rad`; did you mean `hair=red` or `hair=black`\?\n  ~hair=rad\n   \^{8}$"),
    ("bowl/2", TOYS, r"^Unknown name `bowl/2`; a division has spaces around it: `bowl / 2`\."),
    ("zzz", dict.fromkeys(("ring", "bowl"), TOYS["bowl"]), r"^Unknown name `zzz`; there are bowl, ring\.\n"),
    ("zzz", {}, r"^Unknown name `zzz`\.\n"),
    call=lambda text, names: parse(text).build(names),
    error=ParseError,
)


def test_errors_of_the_operators_get_a_place():
    point = ce.GaussianHead(lambda x: torch.cat([x, x], 1), dims=2)((0.0, 0.0))
    refused(ExpressionError, r"(?m)no complement.*\n  bowl \| ~point\n {9}\^{6}$", parse("bowl | ~point").build, {**TOYS, "point": point})


def test_a_contradiction_is_read_like_any_expression():
    energy = parse("bowl | (hair=red & ~hair=red)").build(TOYS)
    assert str(energy) == "bowl | hair=red & ~hair=red" and torch.equal(energy(X), TOYS["bowl"](X))


def test_thousand_terms_are_built_at_once_and_reading_imports_no_torch():
    assert len(parse(" & ".join(["bowl", "ring_2"] * 500)).build(TOYS).terms) == 1000
    code = "import sys; from composable_energy_cli.parsing import parse; parse('a & ~b'); sys.exit('torch' in sys.modules)"
    assert run_code(code).returncode == 0


WORDS = ["a", "b", "c", "2", "0.5", "3", "(", ")", "~", "&", "|", ">>", "*", "/"]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_reads_what_python_reads(words: list[str]):
    """Both refuse a text, or both make one energy of it."""
    text = " ".join(words)
    try:
        expected = eval(text, {"__builtins__": {}}, BOWLS)
        assert isinstance(expected, ce.Energy)
    except Exception:
        refused(ComposableEnergyError, None, lambda: parse(text).build(BOWLS))
    else:
        assert repr(parse(text).build(BOWLS)) == repr(expected)


NAMES = st.sampled_from(sorted(TOYS))
NUMBERS = st.floats(0.1, 3.0).map(repr) | st.sampled_from(["2", "1e-1", ".5"])


def _spaced(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    space = st.sampled_from(["", " ", "  "])
    joined = st.builds(lambda a, left, op, right, b: a + left + op + right + b, children, space, st.sampled_from("&|"), space, children)
    implied = st.builds(lambda a, b: f"({a}) >> ({b})", children, children)
    weighed = st.builds(lambda w, a: f"{w} * ({a})", NUMBERS, children) | st.builds(lambda w, a: f"({a}) / {w}", NUMBERS, children)
    return joined | implied | weighed | children.map("({})".format) | children.map("~({})".format)


EXPRESSIONS = st.recursive(NAMES, _spaced, max_leaves=8)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(EXPRESSIONS)
def test_energies_read_back_as_they_are_written(text: str):
    energy = parse(text).build(TOYS)
    if energy.unsatisfiable:
        assert parse(str(energy)).build(TOYS).unsatisfiable
        return
    again = parse(str(energy)).build(TOYS)
    assert str(parse(str(again)).build(TOYS)) == str(again)
    if not any(isinstance(part, ce.Negation) and part.mode == "level" for part in energy.modules()):  # draws, for a level
        torch.testing.assert_close(again(X), energy(X), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_random_strings_and_mutants_are_trees_or_typed_errors():
    draw, texts, read = random.Random(0), [], 0
    alphabet = "ab/=-~~&&||>>**()()\"'.:_ 012e\t\n\x00é中\ud800"
    for size in [80] * 2000 + [5000] * 10:
        texts.append("".join(draw.choice(alphabet) for _ in range(draw.randrange(size))))
    for _ in range(500):
        text = list("(male & ~smiling) | 2 * (hair=red >> faces/hat / .5e1) & './my model' | ~~(a & (b | c & ./d.e))")
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            text[at : at + draw.randrange(2)] = draw.choice(alphabet)
        texts.append("".join(text))
    for text in texts:
        try:
            parse(text)
            read += 1
        except ParseError as error:
            assert 0 <= error.place.start <= len(text)
    assert 50 < read < len(texts) - 500  # both ends are met


@pytest.mark.full
def test_deepest_expression_builds_evaluates_and_writes():
    """What the limit allows, no later step may fail on."""
    x = torch.zeros(2, 2, dtype=torch.float64)
    text = "bowl"
    for operator in [" & ring_2", " | ring_2"] * 31:
        text = f"({text}{operator})"
    for deepest in (text, "~" * 63 + "hair=red", "2 * (" * 63 + "bowl" + ")" * 63, " >> ".join(["bowl"] * 64)):
        energy = parse(deepest).build(TOYS)
        assert str(energy) and repr(energy)
        assert ">>" in deepest or energy(x).shape == (2,)  # the level of an implication is not known yet
