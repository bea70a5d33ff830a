"""The conformance kit: checks of energies and samplers for first-party and third-party plug-ins.

    def test_bowl():
        check_energy(Bowl(), torch.randn(8, 2))

    @parametrize_with_checks(sampler_checks(Walk(0.5), steps=200))
    def test_walk(check):
        check()

A failed check raises an `AssertionError`; no test runner is needed. A new release may add checks: pin the version in your continuous
integration. Other packages bring the checks of their kinds: `composable_energy_training.testing` those of recipes,
`composable_energy_image.testing` those of worlds and encoders, `composable_energy_triton.testing` those of kernels.
"""

from composable_energy.testing.checks import Check, SkipCheck, assert_close, build_subject, named_checks, run_checks
from composable_energy.testing.energies import check_energy, energy_checks
from composable_energy.testing.pytest_integration import parametrize_with_checks
from composable_energy.testing.samplers import check_sampler, sampler_checks
from composable_energy.testing.targets import Banana, Gaussian

__all__ = [
    "Banana",
    "Check",
    "Gaussian",
    "SkipCheck",
    "assert_close",
    "build_subject",
    "check_energy",
    "check_sampler",
    "energy_checks",
    "named_checks",
    "parametrize_with_checks",
    "run_checks",
    "sampler_checks",
]
