"""The conformance kit on the inner descent, which draws no noise, so the checks of noise are expected to fail."""

import torch

from composable_energy.sampling import Noise
from composable_energy.testing import Check, parametrize_with_checks, sampler_checks
from composable_energy_comet import InnerDescent

CHECKS = sampler_checks(InnerDescent(30, step_size=0.1, clamp=(-4.0, 4.0)), steps=30)
EXPECTED = {"seed": "it draws nothing", "noise": "it draws nothing", "moments": "it ends near the mode"}


@parametrize_with_checks(CHECKS, expected_failures=EXPECTED)
def test_the_inner_descent_keeps_what_samplers_keep(check: Check) -> None:
    check()


def test_a_start_that_is_given_is_taken() -> None:
    sampler = InnerDescent(start_image=torch.full((3, 4, 4), 0.7))
    like = torch.zeros(50, 3, 4, 4)
    start = sampler.start(like, Noise(0, range(50)))
    assert abs(float(start.mean()) - 0.7) < 4 * 0.1 / (50 * 48) ** 0.5
    assert abs(float(start.std()) - 0.1) < 4 * 0.1 / (2 * 50 * 48) ** 0.5
