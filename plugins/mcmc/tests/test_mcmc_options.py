"""Options and shapes: every sampler takes images, refuses wrong options by name, and sets those that are left out."""

import math
import re

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, SamplingDiverged
from composable_energy.sampling import Noise, energy_and_gradient
from composable_energy_mcmc import HMC, MALA, SMC, Annealed, ChEES, Descent, Langevin, Tempering, Underdamped
from tests.refusals import refusals, refused
from tests.sampling_runs import Bowl

pytestmark = pytest.mark.slow

REPLICAS = [Tempering(levels=4, leapfrogs=3, mean=0.0, scale=3.0), SMC(levels=3, moves=1, leapfrogs=2, mean=0.0, scale=2.0)]
SAMPLERS = [Langevin(0.1), MALA(0.1), HMC(0.2, leapfrogs=4), Annealed(levels=5), Underdamped(0.1), ChEES(0.2, 0.8), *REPLICAS]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_images_are_drawn_and_bfloat16_where_nothing_is_rejected(sampler):
    steps = sampler.total_steps or 5
    x, trace = Bowl().sample((3, 2, 4, 4), sampler=sampler, steps=steps, seed=0, trace=True)
    assert x.shape == (3, 2, 4, 4) and x.isfinite().all() and trace.energies.shape == (steps, 3)
    if not isinstance(sampler, MALA | HMC | ChEES | Tempering | SMC):
        x = Bowl().sample((3, 1), sampler=sampler, steps=steps, seed=0, dtype=torch.bfloat16)
        assert x.dtype == torch.bfloat16 and x.isfinite().all()


@pytest.mark.parametrize("metric", ["diagonal", "dense"])
@pytest.mark.parametrize(("shape", "dtype"), [((3, 1), torch.float32), ((3, 2, 4, 4), torch.float64)])
def test_metrics_of_points_of_any_shape_and_dtype(metric, shape, dtype):
    x, trace = Bowl().sample(shape, sampler=ChEES(metric=metric, tuning_steps=20), steps=4, seed=0, dtype=dtype, trace=True)
    assert x.shape == shape and x.dtype == dtype and x.isfinite().all()
    assert trace.sampler.metric.event in (None, shape[1:]) and trace.energies.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize(("sampler", "target"), [(MALA(), 0.574), (HMC(acceptance=0.6), 0.6)])
@pytest.mark.parametrize("scale", [1.0, *(pytest.param(scale, marks=pytest.mark.full) for scale in (1e-3, 1e3))])
def test_tuning_reaches_the_acceptance_at_any_scale(sampler, target, scale):
    energy, shape = ce.as_energy(lambda x: (x / scale).square().flatten(1).sum(1) / 2), (64, 10)
    _, trace = energy.sample(shape, sampler=sampler, steps=20, seed=3, init=torch.randn(shape) * scale, trace=True)
    assert trace.acceptance is not None and abs(trace.acceptance.mean() - target) < 0.15
    assert 0.1 < trace.sampler.step_size / (scale**2 if isinstance(sampler, MALA) else scale) < 4


@pytest.mark.full
@pytest.mark.parametrize("sampler", [MALA(), HMC(), ChEES(tuning_steps=60)])
def test_tuning_depends_on_neither_the_number_of_chains_nor_their_chunks(sampler):
    calls = [((n, 3), {"batch_size": size}) for n, size in ((1, None), (5, 2), (100, None))]
    one, *others = (Bowl().sample(shape, sampler=sampler, steps=2, seed=0, trace=True, **size)[1].sampler for shape, size in calls)
    assert one.step_size is not None and all(other == one for other in others)


def test_step_and_noise_of_papers():
    assert Langevin.from_step_and_noise(10.0, 0.005) == Langevin(10.0, 0.005**2 / 10)
    energy, init = Bowl(), torch.ones(4, 3)
    x = energy.sample((4, 3), sampler=Langevin.from_step_and_noise(0.5, 0.1), steps=1, seed=0, init=init)
    torch.testing.assert_close(x, init - 0.25 * init + 0.1 * Noise(0, range(4), step=1).normal(init))


def test_a_largest_gradient_bounds_each_coordinate_of_a_step():
    x = torch.tensor([[5.0, 0.1, -3.0]])
    drawn = Bowl().sample((1, 3), sampler=Langevin(0.5, temperature=0, max_gradient=1.0), steps=1, init=x, seed=0)
    assert torch.equal(drawn, x - 0.25 * energy_and_gradient(Bowl(), x)[1].clamp(-1, 1))
    refused(OptionError, "max_gradient", Langevin, 0.5, max_gradient=0)


def test_temperature_zero_is_gradient_descent_and_clamps_hold():
    x = Bowl().sample((4, 3), sampler=Langevin(0.5, temperature=0), steps=200, seed=0)
    assert x.abs().max() < 1e-6
    x = Bowl().sample((100, 3), sampler=Langevin(0.5, clamp=(0, 0.25)), steps=20, seed=0)
    assert x.min() == 0 and x.max() == 0.25


def test_annealed_counts_its_gradients_and_knows_its_end():
    calls = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.extend([float(sigma[0])] if len(x) == 1000 else [])  # the pilots are 64
        return x.square().sum(1) / (2 * (1 + sigma**2))

    energy, sampler = ce.as_energy(counted), Annealed(levels=10, corrector_steps=3, sigma_max=2.0, sigma_min=0.1)
    x = energy.sample((1000, 2), sampler=sampler, seed=0)
    assert len(calls) == 10 * 4 + 1 and calls[0] == 2.0 and calls[-1] == pytest.approx(0.1) and calls == sorted(calls, reverse=True)
    with pytest.warns(ce.SamplingWarning, match="drift: 3 of the 10 steps of Annealed are taken, so the points are no draws yet"):
        energy.sample((5, 2), sampler=sampler, steps=3, seed=0)
    assert abs(x.std() - 1) < 0.15  # ten levels leave a bias of -.09, with a standard error of .016


test_options_out_of_range_are_reported = refusals(
    (lambda: Langevin(0.1, temperature=-1), "temperature must be a number of at least 0, got -1"),
    (lambda: Langevin(0.1, clamp=(1, 0)), r"clamp must be \(lowest, highest\), got \(1, 0\)"),
    (lambda: Langevin(0.1, clamp=("a", "b")), r"clamp must be \(lowest, highest\), got \('a', 'b'\)"),
    (lambda: MALA(acceptance=1.0), "acceptance must be a number between 0 and 1, got 1.0"),
    (lambda: ChEES(metric="full"), "metric must be 'auto', 'identity', 'diagonal', 'dense' or one that was tuned, got 'full'"),
    (lambda: ChEES(0.1, 1.0, metric="dense"), "metric='dense' is estimated while step_size is tuned"),
    (lambda: Annealed(sigma_min=4.0, sigma_max=4.0), "sigma_min must be below sigma_max, got 4.0 and 4.0"),
    (lambda: Bowl().sample((2, 2), sampler=MALA, clamp=(0, 1)), "refuses clamp: a clamped proposal has no density"),
    (lambda: Bowl().sample((2, 2), sampler=Underdamped, clamp=(0, 1)), "refuses clamp: a point that is clamped keeps"),
    error=OptionError,
)


COUNTED = [Langevin(0.1), MALA(0.3), Underdamped(0.2), HMC(0.3, 7), HMC(0.3, 7, jitter=False), ChEES(0.2, 1.5)]


@pytest.mark.parametrize("sampler", COUNTED, ids=repr)
def test_a_step_takes_one_gradient_and_a_trajectory_one_for_each_leapfrog(sampler):
    """And one at the start, with a trace, a callback and chunks too; two, and one of few points, compare a point with its copies, and three
    at the end compare gradients with energies where they alone count."""
    sizes, last = [], 3 * (not sampler.traits.values)
    energy = ce.as_energy(lambda x: sizes.append(len(x)) or x.square().sum(1) / 2)
    _, trace = energy.sample((6, 2), sampler=sampler, steps=32, seed=0, trace=1, observers=[ce.sampling.Stop(lambda *_: None)])
    leapfrogs = trace.scalars.get("leapfrogs", [1] * 32)
    assert sizes == [6] * (2 + 1) + [2] + [6] * (sum(leapfrogs) + last)
    if isinstance(sampler, HMC):
        assert max(leapfrogs) == 7 and sum(leapfrogs) <= 32 * 7
    sizes.clear()
    energy.sample((6, 2), sampler=sampler, steps=32, seed=0, batch_size=2)
    assert sizes == [2] * (2 + 3) + [1] + [2] * (3 * sum(leapfrogs) + last)


# Bad input


ADJUSTED = {"mala": MALA(tuning_steps=80), "hmc": HMC(tuning_steps=60, leapfrogs=8), "chees": ChEES(tuning_steps=80, max_leapfrogs=16)}
BOWL = ce.as_energy(lambda x: x.square().sum(1) / 2)
HALF = ce.as_energy(lambda x: torch.where(x[:, 0] > 0, x[:, 0], torch.inf), event_shape=(1,))  # without a support: points may be outside


@pytest.mark.full
@pytest.mark.parametrize("sampler", ADJUSTED.values(), ids=ADJUSTED)
def test_pilots_outside_the_support_do_not_spoil_the_step(sampler):
    """Half of all starts are; were they counted as rejected, no step would be short enough."""
    draws = [
        HALF.sample((200, 1), sampler=sampler, steps=40, seed=0, on_divergence="keep", init=init, dtype=torch.float64, trace=True)
        for init in (None, torch.ones(200, 1, dtype=torch.float64))
    ]
    steps = [trace.sampler.step_size for _, trace in draws]
    assert 1 / 3 < steps[0] / steps[1] < 3
    for x, trace in draws:
        x = x[~trace.diverged]
        assert len(x) > 60 and x.min() > 0 and abs(x.mean() - 1) < 5 / math.sqrt(len(x))


@pytest.mark.parametrize("sampler", [*ADJUSTED.values(), ChEES(tuning_steps=4, metric="dense")], ids=[*ADJUSTED, "chees, dense"])
def test_a_start_outside_the_support_is_reported(sampler):
    with pytest.raises(SamplingDiverged, match=r"5 of 5 .* is infinite at 5 of 5.*give other points in `init`"):
        HALF.sample((5, 1), sampler=sampler, seed=0, init=torch.full((5, 1), -1.0, dtype=torch.float64))


@pytest.mark.parametrize("sampler", ["mala", "hmc", "chees"])
def test_a_temperature_is_refused_with_the_way_to_it(sampler):
    with pytest.raises(OptionError, match=r"refuses temperature: .* that of `energy / T`: sample that. At 0 there is none; `descent`"):
        BOWL.sample((4, 2), sampler=sampler, temperature=0.5)
    assert abs((BOWL / 0.5).sample((2000, 2), sampler=HMC(0.6), steps=30, seed=0).var() / 0.5 - 1) < 5 * math.sqrt(1 / 2000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sampler", [*ADJUSTED.values(), MALA(0.1), HMC(0.1), ChEES(0.1, 0.5), *REPLICAS], ids=repr)
def test_energies_too_coarse_to_accept_by_are_refused(sampler, dtype):
    """Points of that dtype, and an energy alone that returns it."""
    with pytest.raises(DtypeError, match=rf"which {dtype} rounds away: draw with dtype=torch.float32 .*`energy.float\(\)`.* langevin"):
        BOWL.sample((4, 2), sampler=sampler, seed=0, dtype=dtype)
    coarse = ce.as_energy(lambda x: (x.square().sum(1) / 2).to(dtype))
    refused(DtypeError, f"which {dtype} rounds away", coarse.sample, (4, 2), sampler=sampler, seed=0)
    assert coarse.sample((4, 2), sampler=Langevin(0.1), steps=3, seed=0).dtype == torch.float32


@pytest.mark.parametrize("value", [math.nan, 0, "0.1", True])
@pytest.mark.parametrize("make", [Langevin, MALA, HMC, Underdamped, Descent, lambda value: ChEES(value, 1.0)])
def test_step_sizes_that_are_none_are_reported_with_their_value(make, value):
    refused(OptionError, re.escape(f"got {value!r}"), make, value)
