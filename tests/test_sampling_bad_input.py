"""Bad input to `sample`: typed errors with the value, and no draw is lost."""

import math
import sys

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import (
    ComposableEnergyError,
    DtypeError,
    OptionError,
    PluginNotFound,
    SamplingDiverged,
    ShapeError,
)
from composable_energy_mcmc import HMC, MALA, Langevin, Underdamped

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

BOWL = ce.as_energy(lambda x: x.square().sum(1) / 2, name="bowl")
SAMPLERS = [Langevin(0.1), Underdamped(0.1), MALA(0.3), HMC(0.3, leapfrogs=3)]


def draw(energy=BOWL, shape=(3, 2), **options):
    return energy.sample(shape, **{"sampler": Langevin(0.1), "steps": 3, "seed": 0, **options})


@pytest.mark.parametrize("seed", [1.0, 2.5, "1", b"1", True, False, [1], math.nan, 1j, torch.tensor(1.0), torch.tensor([1, 2])])
def test_a_seed_that_is_no_whole_number_is_reported(seed):
    with pytest.raises(OptionError, match="seed must be a whole number of at least -9223372036854775808, got "):
        draw(seed=seed)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (2**64, r"seed must be below 2\^64, got 18446744073709551616: another seed would draw the same"),
        (2**200, r"seed must be below 2\^64"),
        (-(2**63) - 1, "seed must be a whole number of at least -9223372036854775808, got -9223372036854775809"),
    ],
)
def test_a_seed_that_another_one_equals_is_reported(seed, message):
    with pytest.raises(OptionError, match=message):
        draw(seed=seed)


def test_whole_numbers_of_any_type_are_seeds_and_all_differ():
    seeds = [0, 1, 2**32, 2**63, 2**64 - 2, -(2**63) + 1]
    draws = [draw(seed=seed) for seed in seeds]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(draw(seed=np.int64(3)), draw(seed=3)) and torch.equal(draw(seed=torch.tensor(3)), draw(seed=3))
    assert torch.equal(draw(seed=-1), draw(seed=2**64 - 1))  # as in torch


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": "3"}, OptionError, "steps must be a whole number of at least 1, got '3'"),
        ({"trace": None}, OptionError, "trace must be a whole number of at least 1, got None"),
        ({"observers": 3}, OptionError, r"observers is a list of observers, .*got 3 in it"),
        ({"allow_improper": "no"}, OptionError, "allow_improper must be True or False, got 'no'"),
        ({"compile": "yes"}, OptionError, "compile must be True or False, got 'yes'"),
        ({"on_divergence": ["keep"]}, OptionError, r"on_divergence is 'raise' or 'keep', got \['keep'\]"),
        ({"on_divergence": "restart"}, OptionError, "on_divergence is 'raise' or 'keep', got 'restart'"),
        ({"resume": {}}, OptionError, r"resume takes the Trace that .* returned, got dict"),
        ({"dtype": "float32"}, DtypeError, "dtype must be a dtype of torch, such as torch.float32, got 'float32'"),
        ({"dtype": np.float32}, DtypeError, "dtype must be a dtype of torch"),
        ({"dtype": torch.complex64}, DtypeError, "floating dtype, got torch.complex64"),
        ({"init": np.zeros((3, 2))}, DtypeError, "init must be a floating tensor, got ndarray"),
        ({"init": torch.zeros(3, 2).to_sparse()}, DtypeError, r"init must be a dense tensor, got torch.sparse_coo; use `.to_dense\(\)`"),
        ({"init": torch.zeros(3, 2, 1)}, ShapeError, r"init has points of shape \(2, 1\): ask for \(3, 2, 1\) or 3, got \(3, 2\)"),
        ({"init": torch.zeros(())}, ShapeError, r"init has points of shape \(\)"),
        ({"shape": (3, "2")}, ShapeError, r"shape is a number of points or .* got \(3, '2'\)"),
        ({"shape": torch.tensor([3, 2])}, ShapeError, "shape is a number of points or"),
        ({"shape": None}, ShapeError, "shape is a number of points or .* got None"),
        ({"sampler": "nothing"}, ComposableEnergyError, "No plug-in offers the sampler 'nothing'. Known: annealed"),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_reported_with_what_was_got(options, error, message):
    with pytest.raises(error, match=message):
        draw(**options)


class Changing(ce.Energy):
    """A bowl that returns something else from some call on."""

    def __init__(self, calls: int, change) -> None:
        super().__init__()
        self.left, self.change = calls, change

    def forward(self, x):
        self.left -= 1
        energies = x.square().sum(1) / 2
        return self.change(energies) if self.left < 0 else energies


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e: e[:, None], ShapeError, r"returned energies of shape \(4, 1\) for points of shape \(4, 2\); expected \(4,\).*squeeze"),
        (lambda e: e.sum(), ShapeError, r"returned energies of shape \(\) .*not over the batch"),
        (lambda e: e[:2], ShapeError, r"returned energies of shape \(2,\)"),
        (lambda e: e.long(), DtypeError, "must return a floating tensor of energies, got torch.int64"),
        (lambda e: e.tolist(), DtypeError, "must return a floating tensor of energies, got list"),
        (lambda e: e.detach(), ComposableEnergyError, "has no gradient at its points"),
    ],
    ids=["column", "sum", "fewer", "integers", "list", "detached"],
)
def test_an_energy_that_changes_its_output_is_reported_and_leaves_what_was_drawn(sampler, change, error, message, tmp_path):
    """The checkpoint has the last whole step, from which the mended energy goes on to the bits of an unbroken run."""
    options = {"shape": (4, 2), "sampler": sampler, "steps": 9, "observers": [ce.sampling.Checkpoint(tmp_path / "run", 1e9)]}
    broken = Changing(1 + 5 * getattr(sampler, "leapfrogs", 1), change)
    with pytest.raises(error, match=message):
        draw(broken, **options)
    mended, seen = Changing(10**6, change), []
    watch = ce.sampling.Stop(lambda step, state, info: seen.append(step))
    x = draw(mended, **{**options, "observers": [watch, *options["observers"]]})
    assert torch.equal(x, draw(Changing(10**6, change), **{**options, "observers": []}))
    assert seen[0] > 4 and seen[-1] == 9


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["raise", "keep"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_gradients_that_are_not_finite_are_treated_as_the_policy_says(sampler, policy):
    """The energy is finite everywhere and its slope is not, beyond a radius."""

    def kinked(x):
        square = x.square().sum(1)
        return square / 2 + 1e-3 * torch.where(square > 8, square - square.detach(), 1.0).abs().sqrt()

    energy, init = ce.as_energy(kinked), torch.zeros(40, 2)
    options = {"shape": (40, 2), "sampler": sampler, "steps": 60, "init": init, "on_divergence": policy}
    if policy == "raise":
        with pytest.raises(SamplingDiverged) as raised:
            draw(energy, **options)
        assert raised.value.samples.shape == (40, 2) and raised.value.samples.isfinite().all() and raised.value.diverged.any()
        return
    x, trace = draw(energy, trace=True, **options)
    assert trace.diverged.any() and x.isfinite().all() and x.square().sum(1).max() <= 8


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_trace_of_another_energy_is_reported(sampler):
    _, trace = draw(sampler=sampler, trace=True)
    other = ce.as_energy(lambda x: (x - 3).square().sum(1) / 2, name="other")
    with pytest.raises(OptionError, match=r"another energy than other: where chain 0 was, the energy was .* now. .* give them as `init`"):
        other.sample((3, 2), resume=trace, steps=1)
    wide = ce.as_energy(lambda x: x.square().sum(1) / 2)
    wide.event_shape = torch.Size([5])
    with pytest.raises(ShapeError, match=r"\(5,\)"):
        wide.sample(3, resume=trace, steps=1)
    assert torch.equal(BOWL.sample((3, 2), resume=trace, steps=2), draw(sampler=sampler, steps=5))


def test_without_any_sampler_the_error_says_what_to_install(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("composable_energy.registry.registry.scan", lambda group: [])
        patch.setattr(sys, "path", [*sys.path, "another"])
        for sampler in (None, "langevin"):
            with pytest.raises(PluginNotFound, match=r"No sampler is installed.*composable-energy-mcmc, or pass an instance"):
                ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).sample((3, 2), sampler=sampler)


@pytest.mark.parametrize(
    ("observer", "argument", "message"),
    [
        ("Progress", "no", "Progress takes a function of what runs, what is done and the total, or nothing for bars, got 'no'"),
        ("Stop", 3, "Stop takes a function of a step, a state and an info, got 3"),
        ("Checkpoint", True, "Checkpoint takes the path of a file, got True"),
    ],
)
def test_wrong_arguments_of_observers_are_refused(observer, argument, message):
    with pytest.raises(OptionError, match=message):
        getattr(ce.sampling, observer)(argument)


@pytest.mark.parametrize("every", ["1", -1, math.nan, True])
def test_wrong_times_of_a_checkpoint_are_refused(every):
    with pytest.raises(OptionError, match="Checkpoint takes a number of seconds, at least 0, as `every`, got"):
        ce.sampling.Checkpoint("run", every)
