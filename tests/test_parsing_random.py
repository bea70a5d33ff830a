"""Parser on random texts: equal to Python's parser, and no failure but a typed error."""

from __future__ import annotations

import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
from composable_energy.parsing import ParseError, parse
from tests.parsing_names import TOYS

WORDS = ["a", "b", "c", "2", "0.5", "3", "(", ")", "~", "&", "|", ">>", "*", "/"]


BOWLS = {name: TOYS[key] for name, key in (("a", "bowl"), ("b", "ring_2"), ("c", "base"))}


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_reads_what_python_reads(words: list[str]):
    """Both refuse a text, or both make one energy of it."""
    text = " ".join(words)
    try:
        expected = eval(text, {"__builtins__": {}}, BOWLS)
        assert isinstance(expected, ce.Energy)
    except Exception:
        with pytest.raises(ComposableEnergyError):
            parse(text).build(BOWLS)
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
@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS)
def test_energies_read_back_as_they_are_written(text: str):
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = parse(text).build(TOYS)
    if energy.unsatisfiable:
        assert parse(str(energy)).build(TOYS).unsatisfiable
        return
    again = parse(str(energy)).build(TOYS)
    assert str(parse(str(again)).build(TOYS)) == str(again)
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
        parse(text)
    except ParseError as error:
        assert 0 <= error.place.start <= len(text)
        return False
    return True


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
