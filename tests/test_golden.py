"""Draws are the recorded ones, to the bit on a machine like the one that recorded them; and those of random expressions, by quadrature."""

import pytest
import safetensors.torch
import torch

from tests.golden.__main__ import CASES, FILE, SAMPLERS, draw, evaluate, first_numbers, machine
from tests.truth.__main__ import SAMPLERS as ALL
from tests.truth.__main__ import judge, run_case, run_plant
from tests.truth.plants import PLANTS


@pytest.fixture(scope="module")
def recorded():
    with safetensors.safe_open(FILE, "pt") as file:
        same = file.metadata()["machine"] == machine()
    return safetensors.torch.load_file(FILE), same


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_draws_are_the_recorded_ones(case, recorded):
    values, same = recorded
    for sampler in SAMPLERS[case] if same else SAMPLERS[case][:1]:  # tuned samplers may take another way after a rounding
        found, wanted = first_numbers(draw(case, sampler)), values[f"{case}/{sampler}"]
        assert found.dtype == wanted.dtype
        if same:
            assert torch.equal(found, wanted), sampler
        else:
            assert torch.isclose(found, wanted, rtol=1e-3, atol=1e-3).all(1).float().mean() >= 0.75, sampler


@pytest.mark.parametrize("case", [name for name in CASES if name != "scores"])
def test_energies_and_gradients_are_the_recorded_ones(case, recorded):
    values, _ = recorded
    for name, found in evaluate(case, values[f"{case}/points"]).items():
        wanted = values[f"{case}/points/{name}"]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.full
@pytest.mark.parametrize(("number", "samplers"), [(0, ALL), (3, ("chees", "mala", "hmc", "tempering")), (6, ("chees", "mala", "hmc"))])
def test_draws_of_a_random_expression_agree_with_quadrature_or_warn(number: int, samplers: tuple[str, ...]) -> None:
    found = judge(run_case(2027, number, samplers))
    assert not found["silent"] and not found["crashed"], found


@pytest.mark.full
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_is_found(name: str) -> None:
    found = judge(run_plant(name, 2027, 1))
    assert found["silent"] or found["wrong and warned"]
