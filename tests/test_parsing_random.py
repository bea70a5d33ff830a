"""Parser on random texts: equal to Python's parser, and no failure but a typed error."""

from __future__ import annotations

import ast
import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import composable_energy as ce
from composable_energy.parsing import Chain, Complement, Name, ParseError, Scaled, SourceSpan, Tree, build, parse, parse_tree
from tests.parsing_names import TOYS

NOWHERE = SourceSpan("", 0, 0)


def name(text: str) -> Name:
    return Name(text, NOWHERE)


def python_tree(node: ast.AST) -> Tree | float:
    """What Python makes of the same text, as a tree; a law of precedence needs no table of its own."""
    match node:
        case ast.Expression():
            return python_tree(node.body)
        case ast.Name():
            return name(node.id)
        case ast.Constant():
            return float(node.value)  # pyright: ignore[reportArgumentType]
        case ast.UnaryOp(op=ast.Invert()):
            operand = python_tree(node.operand)
            assert not isinstance(operand, float)
            return Complement(operand, NOWHERE)
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            left, right = python_tree(node.left), python_tree(node.right)
            if isinstance(node.op, ast.Div):
                assert isinstance(right, float)
                if isinstance(left, float):
                    return left / right
                right = 1 / right
            if isinstance(left, float) and isinstance(right, float):
                return left * right
            weight, operand = (left, right) if isinstance(left, float) else (right, left)
            assert isinstance(weight, float) and not isinstance(operand, float)
            return Scaled(weight, operand, NOWHERE)
        case ast.BinOp():
            operator = {ast.BitAnd: "&", ast.BitOr: "|", ast.RShift: ">>"}[type(node.op)]
            terms: list[Tree] = []
            for part in (python_tree(node.left), python_tree(node.right)):
                assert not isinstance(part, float)
                flat = operator != ">>" and isinstance(part, Chain) and part.operator == operator
                terms += part.terms if flat else [part]
            return Chain(operator, tuple(terms), NOWHERE)
    raise AssertionError(ast.dump(node))


WORDS = ["a", "b", "c", "2", "0.5", "3", "(", ")", "~", "&", "|", ">>", "*", "/"]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_reads_what_python_reads(words: list[str]):
    """Both refuse a text, or both make one tree of it."""
    text = " ".join(words)
    try:
        expected = python_tree(ast.parse(text, mode="eval"))
        assert not isinstance(expected, float)
    except (SyntaxError, AssertionError):
        with pytest.raises(ParseError):
            parse_tree(text)
    else:
        assert parse_tree(text) == expected


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
@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS)
def test_tree_and_energy_read_back_as_they_are_written(text: str):
    tree = parse_tree(text)
    assert parse_tree(str(tree)) == tree
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = build(tree, TOYS.__getitem__)
    if energy.unsatisfiable:
        assert parse(str(energy), TOYS.__getitem__).unsatisfiable
        return
    again = parse(str(energy), TOYS.__getitem__)
    assert str(parse(str(again), TOYS.__getitem__)) == str(again)
    if not any(isinstance(part, ce.Negation) and part.mode == "level" for part in energy.modules()):  # draws, for a level
        torch.testing.assert_close(again(x), energy(x), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_ten_thousand_random_strings_and_a_thousand_mutants_take_seconds():
    draw = random.Random(0)
    alphabet = "ab/=-~~&&||>>**()()\"'.:_ 012e\t\n\x00é中\ud800"
    random_texts = ["".join(draw.choice(alphabet) for _ in range(draw.randrange(80))) for _ in range(9_900)]
    random_texts += ["".join(draw.choice(alphabet) for _ in range(5_000)) for _ in range(100)]
    mutants = []
    valid = "(male & ~smiling) | 2 * (hair=red >> faces/hat / .5e1) & './my model' | ~~(a & (b | c & ./d.e))"
    for _ in range(1_000):
        text = list(valid)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            match draw.randrange(3):
                case 0:
                    del text[at]
                case 1:
                    text.insert(at, draw.choice(alphabet))
                case _:
                    text[at], text[-1 - at] = text[-1 - at], text[at]
        mutants.append("".join(text))
    start = time.perf_counter()
    read = [assert_tree_or_typed_error(text) for text in random_texts + mutants]
    assert time.perf_counter() - start < 10
    assert 100 < sum(read) < len(read) - 1_000  # both ends are met


def assert_tree_or_typed_error(text: str) -> bool:
    try:
        tree = parse_tree(text)
    except ParseError as error:
        assert 0 <= error.place.start <= len(text)
        return False
    assert parse_tree(str(tree)) == tree
    return True


@pytest.mark.full
def test_deepest_expression_builds_evaluates_and_writes():
    """What the limit allows, no later step may fail on."""
    x = torch.zeros(2, 2, dtype=torch.float64)
    text = "bowl"
    for operator in [" & ring_2", " | ring_2"] * 31:
        text = f"({text}{operator})"
    for deepest in (text, "~" * 63 + "hair=red", "2 * (" * 63 + "bowl" + ")" * 63, " >> ".join(["bowl"] * 64)):
        energy = parse(deepest, TOYS.__getitem__)
        assert energy(x).shape == (2,)
        assert str(energy) and repr(energy)
