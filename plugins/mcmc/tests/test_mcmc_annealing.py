"""Annealing: estimates from weights, the Gaussian at the start, schedules, and paths in both directions."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient
from composable_energy_mcmc.annealing.ais import Path, tune_path
from composable_energy_mcmc.annealing.bar import bennett_acceptance_ratio, bootstrap_error, log_mean
from composable_energy_mcmc.annealing.gaussian import Gaussian, fit_gaussian, normal_energy
from composable_energy_mcmc.annealing.path import geometric_energy
from composable_energy_mcmc.annealing.resampling import effective_sample_size, systematic_resample
from composable_energy_mcmc.annealing.schedule import Schedule, next_level

F64 = torch.float64


class TestEstimators:
    def draws(self, n: int, m: int):
        """Log weights of one step between two Gaussians of widths 1 and 2, shifted: log Z1/Z0 is log 2 + 5."""
        energies = lambda x: x.square() / 2, lambda x: (x - 0.5).square() / 8 - 5
        x, y = torch.randn(n, dtype=F64), 0.5 + 2 * torch.randn(m, dtype=F64)
        return energies[0](x) - energies[1](x), energies[1](y) - energies[0](y)

    @pytest.mark.parametrize(("n", "m"), [(4000, 4000), (4000, 1000), (500, 4000)])
    def test_bar_has_the_sign_and_the_value(self, n, m):
        forward, reverse = self.draws(n, m)
        truth, error = 5 + math.log(2), bootstrap_error(forward, reverse, 0)
        found = bennett_acceptance_ratio(forward, reverse).item()
        assert abs(found - truth) < 4 * error < 0.25
        assert bennett_acceptance_ratio(reverse, forward).item() == pytest.approx(-found, abs=1e-9)
        assert log_mean(forward).item() == pytest.approx(truth, abs=0.5)

    def test_the_bootstrap_gives_the_error(self):
        pairs = [self.draws(400, 400) for _ in range(60)]
        estimated = sum(bootstrap_error(f, r, 0) for f, r in pairs) / 60
        assert estimated == pytest.approx(torch.stack([bennett_acceptance_ratio(f, r) for f, r in pairs]).std().item(), rel=0.3)

    def test_order_means_nothing_and_paths_of_weight_0_count(self):
        forward, reverse = self.draws(300, 200)
        found = bennett_acceptance_ratio(forward, reverse).item()
        assert bennett_acceptance_ratio(forward.flip(0), reverse.flip(0)).item() == pytest.approx(found, abs=1e-9)
        half = torch.cat([forward, torch.full((300,), -torch.inf, dtype=F64)])
        assert log_mean(half).item() == pytest.approx(log_mean(forward).item() - math.log(2))
        assert bennett_acceptance_ratio(half, reverse).isfinite()
        assert effective_sample_size(half) == pytest.approx(effective_sample_size(forward))
        assert effective_sample_size(torch.full((5,), -torch.inf)) == 0


def test_systematic_resampling_gives_each_its_share_to_one():
    weights = torch.rand(1000, dtype=F64, generator=torch.Generator().manual_seed(0)).square()
    noise = Noise(0, range(1000))
    counts = torch.bincount(systematic_resample(weights.log(), noise.uniform(weights)[0]), minlength=1000)
    assert ((counts - weights / weights.sum() * 1000).abs() < 1).all() and counts.sum() == 1000


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
@pytest.mark.parametrize("count", [20, 400])
def test_a_fitted_gaussian_is_invertible_and_a_density(shape, count):
    found = fit_gaussian(3 + 2 * torch.randn(count, *shape, dtype=F64), 1.2, covariance=True)
    z = torch.randn(7, *shape, dtype=F64)
    x = found.from_standard(z)
    torch.testing.assert_close(found.standardize(x), z)
    if found.scale.ndim == 2 and found.scale.shape != found.mean.shape:
        expected = MultivariateNormal(found.mean.flatten(), scale_tril=found.scale).log_prob(x.flatten(1))
    else:
        expected = Normal(found.mean, found.scale).log_prob(x).reshape(7, -1).sum(1)
    torch.testing.assert_close(-found.energy(x), expected)
    torch.testing.assert_close(-normal_energy(z) - found.log_volume, expected)
    assert found == found.to(x) and found != Gaussian(found.mean + 1, found.scale)


def test_gaussians_of_distributions_are_those_of_their_densities():
    tril = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=F64)
    x = torch.randn(5, 2, dtype=F64)
    for law in (Normal(torch.ones(2, dtype=F64), 2.0), MultivariateNormal(torch.ones(2, dtype=F64), scale_tril=tril)):
        torch.testing.assert_close(-Gaussian.from_distribution(law).energy(x), law.log_prob(x).reshape(5, -1).sum(1))
    with pytest.raises(OptionError, match="one MultivariateNormal"):
        Gaussian.from_distribution(MultivariateNormal(torch.ones(3, 2, dtype=F64), scale_tril=tril))


def test_at_the_ends_of_a_path_the_other_energy_has_no_influence():
    at_base, energies = torch.tensor([1.0, torch.inf, 3.0]), torch.tensor([torch.inf, 2.0, 5.0])
    for ends in ((0.0, 1.0), (torch.zeros(3), torch.ones(3))):
        torch.testing.assert_close(geometric_energy(ends[0], at_base, energies), at_base)
        torch.testing.assert_close(geometric_energy(ends[1], at_base, energies), energies)
    assert geometric_energy(0.25, at_base, energies)[2] == geometric_energy(torch.full((3,), 0.25), at_base, energies)[2] == 3.5


class TestSchedule:
    schedule = Schedule(Gaussian(torch.zeros(2), torch.ones(2)), (0.0, 0.2, 0.5, 1.0), (1.0, 0.5, 0.25, 0.125))

    def test_respacing_keeps_the_ends_and_interpolates(self):
        finer = self.schedule.respace(7)
        assert finer.levels == pytest.approx((0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)) and finer.levels[::6] == (0.0, 1.0)
        assert finer.step_sizes == pytest.approx([2 ** (-i / 2) for i in range(7)])
        assert self.schedule.respace(4).levels == self.schedule.levels

    def test_levels_are_evenly_spaced_in_a_quantity(self):
        assert self.schedule.respace(3, [0.0, 1.0, 2.0, 8.0]).levels == pytest.approx((0.0, 0.5 + 0.5 * 2 / 6, 1.0))

    @pytest.mark.parametrize("dead", [0, 500])
    def test_the_next_level_keeps_the_share_of_the_effective_sample_size(self, dead):
        log_ratio = torch.cat([-10 * torch.randn(1000, dtype=F64).square(), torch.full((dead,), -torch.inf, dtype=F64)])
        support = 1000 / (1000 + dead)  # of all points fewer than that have a density, at any level
        level = next_level(0.1, log_ratio, 0.9 * support, 1e-6)
        assert 0.1 < level < 1
        assert effective_sample_size((level - 0.1) * log_ratio) == pytest.approx(900, rel=1e-6)
        assert next_level(0.1, 0 * log_ratio[:1000], 0.9, 1e-6) == 1
        if dead:
            assert next_level(0.1, log_ratio, 0.9, 1e-4) == pytest.approx(0.1 + 1e-4)


def test_both_directions_take_the_same_steps_in_the_opposite_order():
    steps = []

    @dataclass(frozen=True)
    class Recorded(Sampler):
        step_size: float | None = None

        def init(self, energy, x, noise):
            return State(x, *energy_and_gradient(energy, x))

        def step(self, energy, state, noise):
            steps.append((energy.level, self.step_size, noise.step))
            return state, Info(torch.full_like(state.energy, 0.8))

    energy = ce.as_energy(lambda x: (x / 0.5).square().sum(1) / 2)
    path = Path(energy, Gaussian(torch.zeros(2), torch.ones(2)), Recorded(), batch_size=64, moves=2)
    schedule = tune_path(path, torch.zeros(2), Noise(0, range(8)), None)
    assert schedule.levels[0] == 0 and schedule.levels[-1] == 1
    steps.clear()
    path.log_weights(torch.randn(8, 2), schedule, Noise(1, range(8)))
    forward = steps.copy()
    steps.clear()
    path.log_weights(torch.randn(8, 2), schedule, Noise(2, range(8)), reverse=True)
    assert len(forward) == 2 * (len(schedule.levels) - 2) and steps == forward[::-1]
