"""Draws of random expressions against quadrature; the whole comparison is `python -m tests.truth`."""

import pytest

from tests.truth.__main__ import SAMPLERS, judge, run_case, run_plant
from tests.truth.plants import PLANTS


@pytest.mark.full
@pytest.mark.parametrize(("number", "samplers"), [(0, SAMPLERS), (3, ("chees", "mala", "hmc", "tempering")), (6, ("chees", "mala", "hmc"))])
def test_draws_of_a_random_expression_agree_with_quadrature_or_warn(number: int, samplers: tuple[str, ...]) -> None:
    found = judge(run_case(2027, number, samplers))
    assert not found["silent"] and not found["crashed"], found


@pytest.mark.full
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_is_found(name: str) -> None:
    found = judge(run_plant(name, 2027, 1))
    assert found["silent"] or found["wrong and warned"]
