"""The benchmark of discrete points: wrong shares are noticed, evaluations are counted, and times of known chains are found."""

from typing import Any

import pytest
import torch

from benchmarks import discrete
from composable_energy_discrete import Ising


def test_wrong_shares_are_noticed_and_right_ones_pass():
    states, expected = torch.eye(4), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    drawn = states[torch.multinomial(expected, 20_000, replacement=True, generator=torch.Generator().manual_seed(0))]
    assert discrete.deviations(drawn, states, expected).abs().max() < 4
    assert discrete.deviations(drawn, states, expected.flip(0)).abs().max() > 50


@pytest.mark.parametrize(("sampler", "each"), [("gibbs", 128 + 1), ("gibbs-with-gradients", 2), ("discrete-langevin", 2)])
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # of chains this short
def test_each_evaluation_counts_and_a_gradient_twice(sampler, each):
    energy, spent = discrete.counted(Ising((8, 8), 0.3).eval())
    options: dict[str, Any] = {"step_size": 0.2} if sampler == "discrete-langevin" else {}
    counts = []
    for steps in (2, 5):
        before = int(spent)
        energy.sample(3, sampler=sampler, steps=steps, seed=0, **options)
        counts.append(int(spent) - before)
    assert counts[1] - counts[0] == 3 * 3 * each


def test_times_of_chains_with_a_known_one():
    """Spins that are drawn anew with probability 1/4 have the autocorrelations .75^t, whose sum over all t is 7."""
    generator, x = torch.Generator().manual_seed(0), torch.zeros(64)
    draws = []
    for _ in range(1000):
        fresh = torch.rand(64, generator=generator) < 0.25
        x = torch.where(fresh, torch.randn(64, generator=generator), x)
        draws.append(x)
    row = discrete.figures(torch.stack(draws)[..., None].expand(-1, -1, 2).double(), 2.0, 1000)
    time, error = row["energy_sweeps"]
    assert abs(time - 7) < 4 * error and error < 1
    assert row["energy_per_second"] == pytest.approx(64_000 / time / 2, rel=1e-2)
