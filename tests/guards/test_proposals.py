"""Proposals at which an energy is not a number are rejected and counted; broken gradients and borders of supports are named."""

import math

import pytest
import torch
from torch.distributions import Chi2, Dirichlet, Gamma, LogNormal, Weibull

import composable_energy as ce
from composable_energy import SamplingWarning
from composable_energy.errors import SamplingDiverged, SupportWarning

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

F64 = torch.float64


def undefined(x):
    """Beta(2, 3) by logarithms that are NaN outside of the unit interval."""
    return (-x.log() - 2 * (1 - x).log())[:, 0]


MIDDLE = torch.full((1000, 1), 0.4)
OPTIONS = {
    "mala": {"step_size": 0.05, "steps": 150},
    "hmc": {"step_size": 0.15, "leapfrogs": 3, "steps": 60},
    "chees": {"step_size": 0.15, "trajectory": 0.4, "steps": 60},
    "tempering": {"levels": 3, "mean": 0.4, "scale": 0.3, "leapfrogs": 4, "steps": 40},
    "smc": {"mean": 0.4, "scale": 0.3, "leapfrogs": 4},
    "annealed": {"corrector": "mala", "corrector_steps": 30, "sigma_max": 0.5, "levels": 3},
}


def check_beta(x):
    """Beta(2, 3) has mean 2/5 and variance 1/25; annealing and resampling leave some dependence."""
    assert ((x > 0) & (x < 1)).all()
    error = math.sqrt(0.04 / len(x))
    assert abs(x.mean().item() - 0.4) < 5 * error and abs(x.var().item() - 0.04) < 5 * 0.052 / math.sqrt(len(x))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", OPTIONS)
def test_energies_of_nan_are_rejected_and_counted(sampler):
    with pytest.warns(SamplingWarning, match=r"errors: .* or was NaN at \d+ points"):
        x, trace = ce.as_energy(undefined).sample((1000, 1), sampler=sampler, init=MIDDLE, seed=3, trace=True, **OPTIONS[sampler])
    check_beta(x)
    assert trace.errors > 0 and trace.first_error == "an energy of NaN" and trace.acceptance.isfinite().all()


@pytest.mark.full
def test_compiled_steps_reject_them_too():
    with pytest.warns(SamplingWarning, match=r"or was NaN at"):
        (x, trace), (y, other) = (
            ce.as_energy(undefined).sample((1000, 1), sampler="mala", init=MIDDLE, seed=3, trace=True, compile=fast, **OPTIONS["mala"])
            for fast in (True, False)
        )
    check_beta(x)
    assert abs(trace.errors - other.errors) <= 0.01 * other.errors and (x - y).abs().median() < 1e-3


def test_counts_do_not_depend_on_batches_or_on_a_callback():
    call = {"sampler": "mala", "init": MIDDLE[:200], "seed": 1, "trace": True, "step_size": 0.1, "steps": 30}

    def errors(**options):
        return ce.as_energy(undefined).sample((200, 1), **call, **options)[1].errors

    assert errors() == errors(batch_size=64) == errors(observers=[ce.sampling.Stop(lambda *_: None)]) > 0


def test_samplers_that_cannot_reject_and_energies_of_minus_infinity_still_stop():
    with pytest.raises(SamplingDiverged, match=r"return `torch.where\(inside, energy, torch.inf\)`"):
        ce.as_energy(undefined).sample((100, 1), sampler="langevin", step_size=0.1, init=MIDDLE[:100], seed=0)

    with pytest.raises(SamplingDiverged):
        ce.as_energy(lambda x: torch.where(x[:, 0] > 1, -torch.inf, x[:, 0].square() / 2)).sample((100, 1), sampler="mala", seed=0)


def clipped(x):
    """A root whose branch that is not taken has no gradient."""
    return torch.where(x[:, 0] > 0, x[:, 0].sqrt(), 0.0) + x[:, 0].square() / 2


def test_gradients_of_nan_from_torch_where_and_norms_at_0_are_named():
    where = r"the energy is finite and its gradient is not. The gradient of `torch.where\(c, f\(x\)"
    for sampler in ("langevin", "chees"):
        with pytest.raises(SamplingDiverged, match=where):
            ce.as_energy(clipped).sample((20, 1), sampler=sampler, seed=0)
    norm = ce.as_energy(lambda x: x.square().sum(1).sqrt())
    with pytest.raises(SamplingDiverged, match=r"Roots and norms have no gradient at 0"):
        norm.sample((4, 2), sampler="mala", step_size=0.1, init=torch.zeros(4, 2), seed=0)


@pytest.mark.slow
def test_trajectories_that_leave_the_numbers_of_a_support_are_rejected():
    """Gamma(2, 1) has mean 2 and variance 2; long trajectories reach points whose gradient would overflow."""
    x = ce.as_energy(Gamma(2.0, 1.0)).sample(1000, sampler="hmc", step_size=1.2, leapfrogs=4, steps=60, seed=5)
    assert abs(x.mean() - 2) < 4 * math.sqrt(2 / 1000)


@pytest.mark.full
def test_small_shapes_are_right_in_float32_where_it_reaches_and_else_warn():
    tail = torch.tensor([1e-20, 1e-5])
    x = ce.as_energy(Gamma(0.1, 1.0)).sample(2000, seed=4)
    for q in tail:  # P(x < q) = q^.1 / Gamma(1.1) for small q
        p = q.item() ** 0.1 / math.gamma(1.1)
        assert abs((x < q).double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / 2000)
    x = ce.as_energy(LogNormal(0.0, 20.0)).sample(2000, seed=4).double()
    assert abs(x.log().mean()) < 4 * 20 / math.sqrt(2000)


@pytest.mark.full
@pytest.mark.parametrize("density", [Chi2(0.1), Dirichlet(torch.full((3,), 0.01))], ids=lambda one: type(one).__name__)
def test_mass_beyond_the_numbers_of_float32_warns_and_names_float64(density):
    with pytest.warns(SupportWarning, match=r"sample in dtype=torch.float64, with parameters in it"):
        ce.as_energy(density).sample(1000, steps=40, seed=4)


@pytest.mark.full
def test_in_float64_they_are_right():
    one = torch.tensor(1.0, dtype=F64)
    x = ce.as_energy(Weibull(one, one / 20)).sample(1000, seed=4)
    p = 1 - math.exp(-(1e-38**0.05))
    assert abs((x < 1e-38).double().mean().item() - p) < 4 * math.sqrt(p / 1000)
    x, a, b = ce.as_energy(Dirichlet(one.expand(3) / 100)).sample(2000, seed=4), 0.01, 0.02
    p = math.exp(a * math.log(1e-3) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a  # Beta(a, b), to 1e-5
    assert ((x < 1e-3).double().mean(0) - p).abs().max() < 4 * math.sqrt(p * (1 - p) / 2000)


@pytest.mark.slow
def test_parameters_in_float32_under_points_in_float64_are_named():
    with pytest.raises(SamplingDiverged, match=r"close to the border of the support .* sample in float64, with parameters in it"):
        ce.as_energy(Chi2(0.1)).sample(1000, steps=40, seed=0, dtype=F64)
