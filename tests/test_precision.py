"""`precision="bfloat16"` evaluates the networks of an energy in bfloat16, and nothing else."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import compiled
from tests.factories import needs_compiler


class Watched(nn.Module):
    """A small network that remembers the dtypes of its hidden numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(2, 16), nn.Linear(16, 1)

    def forward(self, x):
        hidden = self.hidden(x)
        DTYPES.add(hidden.dtype)
        return self.out(hidden.tanh()).squeeze(1) + x.square().sum(1) / 2


DTYPES: set[torch.dtype] = set()
LANGEVIN = {"sampler": "langevin", "step_size": 0.1, "steps": 20, "seed": 0, "warn": False}


@pytest.fixture
def energy():
    DTYPES.clear()
    return ce.as_energy(Watched(), event_shape=(2,))


def test_networks_compute_in_bfloat16_and_chains_in_float32(energy):
    wanted = energy.sample(64, **LANGEVIN)
    assert torch.bfloat16 not in DTYPES
    DTYPES.clear()
    x = energy.sample(64, precision="bfloat16", **LANGEVIN)
    assert torch.bfloat16 in DTYPES
    assert x.dtype == torch.float32
    assert 0 < (x - wanted).abs().max() < 0.05  # 20 steps with errors of the gradient of 1/256
    assert torch.equal(x, energy.sample(64, precision="bfloat16", **LANGEVIN))


def test_the_density_is_the_same_up_to_rounding():
    """A Gaussian by a product with its precision matrix; the tolerances are four standard errors and the rounding."""
    root = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    energy = ce.as_energy(lambda x: (x @ root).square().sum(1) / 2, event_shape=(2,))
    x = energy.sample(20_000, sampler="langevin", step_size=0.02, steps=400, seed=1, precision="bfloat16", warn=False)
    covariance = torch.linalg.inv(root @ root.T)
    assert x.mean(0).abs().max() < 4 * (covariance.diagonal().max() / 20_000).sqrt() + 0.01
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=4 * 2**0.5 * float(covariance.max()) / 20_000**0.5 + 0.05)


def test_the_terms_of_a_conjunction_and_conditions_take_part(energy):
    both = energy & ~ce.ClassifierEnergy(nn.Linear(2, 3), 0, ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)))
    both.sample(8, precision="bfloat16", **LANGEVIN)
    assert torch.bfloat16 in DTYPES


def test_points_stay_in_the_support(energy):
    positive = energy & ce.as_energy(torch.distributions.Exponential(torch.ones(2)))
    x, _ = positive.sample(200, precision="bfloat16", trace=True, **LANGEVIN)
    assert torch.bfloat16 in DTYPES and x.min() > 0
    wanted = positive.sample(200, **LANGEVIN)
    torch.testing.assert_close(x, wanted, rtol=0, atol=0.1)


def test_a_call_continues_from_its_trace_and_its_checkpoint(energy, tmp_path):
    call = {"precision": "bfloat16", **LANGEVIN}
    whole = energy.sample(8, **call | {"steps": 40})
    _, trace = energy.sample(8, trace=True, **call)
    assert torch.equal(energy.sample(8, resume=trace, steps=20, precision="bfloat16"), whole)
    energy.sample(8, checkpoint=tmp_path / "chains", **call)
    assert torch.equal(energy.sample(8, checkpoint=tmp_path / "chains", **call | {"steps": 40}), whole)
    with pytest.raises(OptionError, match="another energy"):  # the energies of the trace are rounded
        energy.sample(8, resume=trace, steps=20)


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (lambda energy: energy, {"sampler": "mala", "step_size": 0.1}, "mala compares energies"),
        (lambda energy: energy, {"sampler": "feynman-kac"}, "feynmankac compares energies"),
        (lambda energy: energy, {**LANGEVIN, "best_of": 2}, "best_of compares energies"),
        (lambda energy: ce.any_of(energy, ce.as_energy(Watched()), weights=[1, 1]), LANGEVIN, r"`\|` compares energies"),
        (compiled, LANGEVIN, "compiled"),
        (lambda energy: energy, {**LANGEVIN, "dtype": torch.float64}, "float64"),
    ],
)
def test_what_compares_energies_is_refused(energy, change, options, match):
    with pytest.raises(OptionError, match=match):
        change(energy).sample(8, precision="bfloat16", **options)


@pytest.mark.parametrize("precision", ["float16", "auto", torch.bfloat16, None])
def test_another_name_is_refused(energy, precision):
    with pytest.raises(OptionError, match="precision is 'float32' or 'bfloat16'"):
        energy.sample(8, precision=precision, **LANGEVIN)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("other", [torch.distributions.Normal, torch.distributions.LogNormal], ids=["anywhere", "in a support"])
def test_it_is_compiled_once_for_all_calls(energy, other):
    energy, call = energy & ce.as_energy(other(torch.zeros(2), torch.ones(2))), {"precision": "bfloat16", "noise": "philox", **LANGEVIN}
    first = energy.sample(64, compile=True, **call)
    torch.testing.assert_close(first, energy.sample(64, **call), rtol=0, atol=0.05)
    DTYPES.clear()
    assert torch.equal(energy.sample(64, compile=True, **call), first)
