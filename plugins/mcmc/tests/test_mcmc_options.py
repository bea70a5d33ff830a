"""Options and shapes: every sampler takes images, refuses wrong options by name, and sets those that are left out."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import DtypeError, OptionError
from composable_energy.sampling import Noise, energy_and_gradient
from composable_energy_mcmc import HMC, MALA, SMC, Annealed, ChEES, Descent, Langevin, Tempering, Underdamped

pytestmark = pytest.mark.slow

REPLICAS = [Tempering(levels=4, leapfrogs=3, mean=0.0, scale=3.0), SMC(levels=3, moves=1, leapfrogs=2, mean=0.0, scale=2.0)]
SAMPLERS = [Langevin(0.1), MALA(0.1), HMC(0.2, leapfrogs=4), Annealed(levels=5), Underdamped(0.1), ChEES(0.2, 0.8), *REPLICAS]


class Bowl(ce.Energy):
    """A unit Gaussian; at a noise level, with the noise added."""

    def forward(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        return x.square().reshape(len(x), -1).sum(1) / (2 * (1 + sigma**2))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_points_of_any_shape_and_dtype(sampler, shape, dtype):
    if dtype == torch.bfloat16 and isinstance(sampler, MALA | HMC | ChEES | Tempering | SMC):
        with pytest.raises(DtypeError, match=r"which torch.bfloat16 rounds away: draw with dtype=torch.float32"):
            Bowl().sample(shape, sampler=sampler, seed=0, dtype=dtype)
        return
    steps = sampler.total_steps or 5
    x, trace = Bowl().sample(shape, sampler=sampler, steps=steps, seed=0, dtype=dtype, trace=True)
    assert x.shape == shape and x.dtype == dtype and x.isfinite().all() and not x.requires_grad
    assert trace.energies.shape == (steps, 3)
    again = Bowl().sample(shape, sampler=sampler, steps=steps, seed=0, dtype=dtype)
    other = Bowl().sample(shape, sampler=sampler, steps=steps, seed=1, dtype=dtype)
    assert torch.equal(x, again) and not torch.equal(x, other)


@pytest.mark.parametrize("metric", ["identity", "diagonal", "dense"])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1), (3, 2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metrics_of_points_of_any_shape_and_dtype(metric, shape, dtype):
    sampler = ChEES(metric=metric, tuning_steps=20)
    x, trace = Bowl().sample(shape, sampler=sampler, steps=4, seed=0, dtype=dtype, trace=True)
    assert x.shape == shape and x.dtype == dtype and x.isfinite().all()
    assert trace.sampler.metric.event in (None, shape[1:]) and trace.energies.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("sampler", [MALA, HMC, ChEES(tuning_steps=60, max_leapfrogs=16)], ids=["mala", "hmc", "chees"])
def test_momenta_and_proposals_run_over_all_axes_of_an_image(sampler):
    x = Bowl().sample((500, 3, 4, 4), sampler=sampler, steps=60, seed=0)
    norms = x.flatten(1).square().sum(1)
    assert abs(norms.mean() - 48) < 4 * math.sqrt(2 * 48 / 500)
    assert abs(norms.var() - 96) < 4 * 96 * math.sqrt(2 / 500 + 12 / 48 / 500)


@pytest.mark.parametrize(("sampler", "target"), [(MALA(), 0.574), (HMC(), 0.8), (MALA(acceptance=0.9), 0.9), (HMC(acceptance=0.6), 0.6)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_tuning_reaches_the_acceptance_at_any_scale(sampler, target, scale):
    energy, shape = ce.as_energy(lambda x: (x / scale).square().flatten(1).sum(1) / 2), (64, 10)
    _, trace = energy.sample(shape, sampler=sampler, steps=20, seed=3, init=torch.randn(shape) * scale, trace=True)
    assert trace.acceptance is not None
    assert abs(trace.acceptance.mean() - target) < 0.15
    assert 0.1 < trace.sampler.step_size / (scale**2 if isinstance(sampler, MALA) else scale) < 4


@pytest.mark.parametrize("sampler", [MALA(), HMC(), ChEES(tuning_steps=60)])
def test_tuning_depends_on_neither_the_number_of_chains_nor_their_chunks(sampler):
    one, *others = (
        Bowl().sample((n, 3), sampler=sampler, steps=2, seed=0, batch_size=size, trace=True)[1].sampler
        for n, size in ((1, None), (5, 2), (100, None))
    )
    assert one.step_size is not None and all(other == one for other in others)


def test_a_huge_step_is_rejected_and_a_tiny_one_accepted():
    for sampler, small in ((MALA(1e8), 1e-4), (HMC(1e4, leapfrogs=3), 1e-3)):
        with pytest.warns(SamplingWarning, match="All 200 chains did not move"):
            _, trace = Bowl().sample((200, 4), sampler=sampler, steps=5, seed=0, trace=True)
        assert trace.acceptance.mean() < 0.01
        _, trace = Bowl().sample((200, 4), sampler=replace(sampler, step_size=small), steps=5, seed=0, trace=True)
        assert trace.acceptance.mean() > 0.99


def test_step_and_noise_of_papers():
    assert Langevin.from_step_and_noise(10.0, 0.005) == Langevin(10.0, 0.005**2 / 10)
    energy, init = Bowl(), torch.ones(4, 3)
    x = energy.sample((4, 3), sampler=Langevin.from_step_and_noise(0.5, 0.1), steps=1, seed=0, init=init)
    noise = Noise(0, range(4), step=1).normal(init)
    torch.testing.assert_close(x, init - 0.25 * init + 0.1 * noise)


def test_a_largest_gradient_bounds_each_coordinate_of_a_step():
    x = torch.tensor([[5.0, 0.1, -3.0]])
    drawn = Bowl().sample((1, 3), sampler=Langevin(0.5, temperature=0, max_gradient=1.0), steps=1, init=x, seed=0)
    expected = x - 0.25 * energy_and_gradient(Bowl(), x)[1].clamp(-1, 1)
    assert torch.equal(drawn, expected)
    with pytest.raises(OptionError, match="max_gradient"):
        Langevin(0.5, max_gradient=0)


def test_temperature_zero_is_gradient_descent_and_clamps_hold():
    x = Bowl().sample((4, 3), sampler=Langevin(0.5, temperature=0), steps=200, seed=0)
    assert x.abs().max() < 1e-6
    x = Bowl().sample((100, 3), sampler=Langevin(0.5, clamp=(0, 0.25)), steps=20, seed=0)
    assert x.min() == 0 and x.max() == 0.25


def test_annealed_counts_its_gradients_and_knows_its_end():
    calls = []

    class Counted(ce.Energy):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            calls.extend([float(sigma[0])] if len(x) == 1000 else [])  # the pilots are 64
            return x.square().sum(1) / (2 * (1 + sigma**2))

    sampler = Annealed(levels=10, corrector_steps=3, sigma_max=2.0, sigma_min=0.1)
    x = Counted().sample((1000, 2), sampler=sampler, seed=0)
    assert len(calls) == 10 * 4 + 1
    assert calls[0] == 2.0 and calls[-1] == pytest.approx(0.1) and calls == sorted(calls, reverse=True)
    assert abs(x.std() - 1) < 0.15  # ten levels leave a bias of -.09, with a standard error of .016
    with pytest.raises(OptionError, match="takes 10 steps: 11 were asked for"):
        Counted().sample((2, 2), sampler=sampler, steps=11)


def test_annealed_keeps_a_level_that_is_bound():
    seen = []

    class Level(ce.Energy):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(float(sigma[0]))
            return x.square().sum(1) / 2

    Level().at(0.3).sample((2, 2), sampler=Annealed(levels=3), seed=0)
    assert seen and seen == pytest.approx([0.3] * len(seen))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Langevin(0.1, temperature=-1), "temperature must be a number of at least 0, got -1"),
        (lambda: Langevin(0.1, clamp=(1, 0)), r"clamp must be \(lowest, highest\), got \(1, 0\)"),
        (lambda: Langevin(0.1, clamp=3), r"clamp must be \(lowest, highest\), got 3"),
        (lambda: Langevin.from_step_and_noise(0.1, -1), "noise must be a number of at least 0"),
        (lambda: MALA(acceptance=1.0), "acceptance must be a number between 0 and 1, got 1.0"),
        (lambda: MALA(tuning_steps=0), "tuning_steps must be a whole number of at least 1, got 0"),
        (lambda: HMC(leapfrogs=0), "leapfrogs must be a whole number of at least 1, got 0"),
        (lambda: HMC(leapfrogs=2.5), "leapfrogs must be a whole number of at least 1, got 2.5"),
        (lambda: HMC(jitter=1), "jitter must be True or False, got 1"),
        (lambda: ChEES(0.1, -1), "trajectory must be a positive number, got -1"),
        (lambda: ChEES(metric="full"), "metric must be 'auto', 'identity', 'diagonal', 'dense' or one that was tuned, got 'full'"),
        (lambda: ChEES(0.1, 1.0, metric="dense"), "metric='dense' is estimated while step_size is tuned"),
        (lambda: ChEES(acceptance=0), "acceptance must be a number between 0 and 1, got 0"),
        (lambda: ChEES(max_leapfrogs=0), "max_leapfrogs must be a whole number of at least 1, got 0"),
        (lambda: ChEES(tuning_steps=1), "tuning_steps must be a whole number of at least 2, got 1"),
        (lambda: Underdamped(0.1, friction=0), "friction must be a positive number, got 0"),
        (lambda: Underdamped(0.1, temperature=-1), "temperature must be a number of at least 0, got -1"),
        (lambda: Descent(tolerance=-1), "tolerance must be a number of at least 0, got -1"),
        (lambda: Annealed(levels=1), "levels must be a whole number of at least 2, got 1"),
        (lambda: Annealed(sigma_min=4.0, sigma_max=4.0), "sigma_min must be below sigma_max, got 4.0 and 4.0"),
        (lambda: Annealed(corrector_steps=-1), "corrector_steps must be a whole number of at least 0, got -1"),
        (lambda: Annealed(delta=0), "delta must be a positive number, got 0"),
    ],
)
def test_options_out_of_range_are_reported(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize("sampler", [MALA, HMC, ChEES])
def test_clamping_is_refused_with_the_reason(sampler):
    with pytest.raises(OptionError, match="refuses clamp: a clamped proposal has no density"):
        Bowl().sample((2, 2), sampler=sampler, clamp=(0, 1))


def test_clamping_a_point_that_moves_is_refused_with_the_reason():
    with pytest.raises(OptionError, match="refuses clamp: a point that is clamped keeps a momentum"):
        Bowl().sample((2, 2), sampler=Underdamped, step_size=0.1, clamp=(0, 1))


def test_underdamped_without_temperature_rolls_to_the_mode():
    assert Bowl().sample((4, 3), sampler=Underdamped(0.5, temperature=0), steps=200, seed=0).abs().max() < 1e-6


@pytest.mark.parametrize("sampler", [MALA(), HMC(), ChEES()])
def test_a_step_that_was_never_settled_is_reported(sampler):
    state = sampler.init(Bowl(), torch.zeros(2, 2), Noise(0, range(2)))
    with pytest.raises(OptionError, match="no step_size yet"):
        sampler.step(Bowl(), state, Noise(0, range(2), step=1))
