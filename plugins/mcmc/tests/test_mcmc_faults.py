"""Samplers with planted faults: a check of the test kit catches each, and the correct sampler passes."""

import pytest
import torch

from composable_energy.sampling import Sampler
from composable_energy.testing import SkipCheck, sampler_checks
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin
from composable_energy_mcmc.metric import Metric
from plugins.mcmc.tests.faulty_samplers import (
    KeepsTheEnergyOfTheRejected,
    KeepsTheMomentum,
    LongLastKick,
    MomentumOfPoints,
    NeverRejects,
    NoiseOfTheChunk,
    SameNoise,
    TwiceTheVariance,
)

SLANTED = Metric(torch.tensor([[1.0, 0.0], [0.7, 1.2]], dtype=torch.float64), torch.Size([2]))
LANGEVIN = {"variance": 1 / (1 - 0.5 / 4)}


# Each fault, the sampler without it, and the checks that find it.
FAULTS = {
    "proposal variance off by two": (TwiceTheVariance(0.3), MALA(0.3), ("exact",)),
    "no Metropolis": (NeverRejects(0.3), MALA(0.3), ("exact",)),
    "reused noise": (SameNoise(0.3, 8), HMC(0.3, 8), ("noise",)),
    "forgotten rejection of the energy": (KeepsTheEnergyOfTheRejected(0.3, 8), HMC(0.3, 8), ("values",)),
    "momentum kept": (KeepsTheMomentum(0.3, 8), HMC(0.3, 8), ("exact",)),
    "a full last kick": (LongLastKick(0.3, 8), HMC(0.3, 8), ("exact",)),
    "noise of the chunk": (NoiseOfTheChunk(0.5), Langevin(0.5), ("noise",)),
    "momentum in other units": (MomentumOfPoints(0.3, 1.5, SLANTED), ChEES(0.3, 1.5, SLANTED), ("exact",)),
}


def failing(sampler: Sampler) -> set[str]:
    """The names of the checks that fail, of those that look at what is drawn."""
    exact = True if isinstance(sampler, MALA | HMC | ChEES) else None
    law = LANGEVIN if isinstance(sampler, Langevin) else {}
    found = set()
    for check in sampler_checks(sampler, steps=60, exact=exact, **law):
        if check.name in ("moments", "exact", "noise", "chunks", "values"):
            try:
                check()
            except SkipCheck:
                continue
            except AssertionError:
                found.add(check.name)
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name):
    fault, _, checks = FAULTS[name]
    assert failing(fault) >= set(checks)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", {repr(right): right for _, right, _ in FAULTS.values()}.values(), ids=repr)
def test_the_right_sampler_passes(sampler):
    assert failing(sampler) == set()
