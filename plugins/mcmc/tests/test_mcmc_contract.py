"""The conformance kit on every sampler of the package."""

import pytest

from composable_energy.testing import Check, parametrize_with_checks, sampler_checks
from composable_energy_mcmc import HMC, MALA, SMC, Annealed, ChEES, Descent, FeynmanKac, Langevin, Tempering, Underdamped

CHECKS = {
    "langevin": sampler_checks(Langevin(0.5), steps=60, variance=1 / (1 - 0.5 / 4)),
    "mala": sampler_checks(MALA(1.0), steps=60, exact=True),
    "hmc": sampler_checks(HMC(0.6, leapfrogs=4), steps=30, exact=True),
    "underdamped": sampler_checks(Underdamped(1.0), steps=60),  # unbiased on a Gaussian
    "descent": sampler_checks(Descent(), steps=30),
    "chees": sampler_checks(ChEES(0.3, 1.5), steps=30, exact=True),
    "annealed, corrected": sampler_checks(Annealed(levels=5, sigma_min=0.5, corrector=HMC(0.6, leapfrogs=4)), variance=1 / (1 + 0.25)),
    "smc": sampler_checks(SMC(leapfrogs=3, mean=0.0, scale=2.0)),
}
SLOWER = {
    "feynman-kac": sampler_checks(FeynmanKac(levels=20)),
    "annealed": sampler_checks(Annealed(), bias=0.12),  # 40 levels are too few for the last hundredths
    "mala, tuned": sampler_checks(MALA(), steps=60, exact=True),
    "hmc, tuned": sampler_checks(HMC(tuning_steps=50), steps=30, exact=True),
    "chees, tuned": sampler_checks(ChEES(tuning_steps=60, max_leapfrogs=16), steps=30, exact=True),
    "tempering": sampler_checks(Tempering(levels=4, leapfrogs=3, mean=0.0, scale=3.0), steps=40, exact=False),  # only all levels are exact
}
EXPECTED = {"descent: seed": "it draws nothing", "descent: noise": "it draws nothing", "descent: moments": "it ends in the mode"}


def named(samplers: dict[str, list[Check]]) -> list[Check]:
    return [Check(f"{name}: {check.name}", check.function) for name, checks in samplers.items() for check in checks]


@pytest.mark.slow
@parametrize_with_checks(named(CHECKS), expected_failures=EXPECTED)
def test_samplers_keep_what_samplers_keep(check: Check) -> None:
    check()


@pytest.mark.full
@parametrize_with_checks(named(SLOWER), expected_failures={"feynman-kac: values": "it draws no energy whose noise level is bound"})
def test_tuned_samplers_and_long_schedules_keep_it_too(check: Check) -> None:
    check()
