"""Options of `sample`: the sampler, what the energy recommends, and a typed error with the value for each that does not fit."""

import functools
import math
import sys

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, DtypeError, ExpressionError, OptionError, ShapeError, UngroundedError
from composable_energy.sampling import Info, Sampler, State, Traits, energy_and_gradient, sample
from composable_energy_mcmc import HMC, Annealed, ChEES, Langevin
from tests.refusals import refusals
from tests.sampling_runs import F64, Bowl, Decoder

BOWL, WHOLE = Bowl(), "must be a whole number of at least"
NEEDS = ce.as_energy(lambda x, sigma, y: x.square().sum(1))
UNBOUND = r"depends on sigma, y, which is not bound: bind .*\.at\(sigma\).* or the annealed .*given\(y="
FLAT = ce.as_energy(lambda x, c: c.square().sum(1), name="flat").given(c=torch.zeros(4, 2))
LATENT = ce.as_energy(lambda image: image.flatten(1).sum(1)).pull_back(Decoder())


class Still(Sampler):
    """Not a dataclass; stays where it is."""

    traits = Traits(steps=2)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def init(self, energy, x, noise):
        return State(x * self.scale, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        return state, Info()


def draw(energy=BOWL, shape=(3, 2), **options):
    return energy.sample(shape, **{"sampler": Langevin(0.1), "steps": 3, "seed": 0, **options})


def test_a_sampler_is_a_name_a_class_or_an_instance():
    wanted = draw(sampler=Langevin(0.3))
    for sampler in ("langevin", Langevin, Langevin(0.1)):
        assert torch.equal(draw(sampler=sampler, step_size=0.3), wanted)
    x = torch.ones(3, 2)
    assert torch.equal(Bowl().sample((3, 2), sampler=Still, scale=2.0, init=x), 2 * x)
    assert torch.equal(Bowl().sample((3, 2), sampler=Still(3.0), init=x), 3 * x)


@pytest.mark.slow
def test_a_sampler_of_noise_levels_is_not_recommended_at_a_level():
    energy = Bowl()
    energy.recommended = ce.Recommendation("annealed", {"levels": 5})
    with pytest.raises(OptionError, match=r"recommends annealed\(levels=5\), which sets sigma itself, and here that is bound"):
        (energy & energy).at(0.1).sample((2, 2))
    assert (energy & energy).at(0.1).sample((2, 2), sampler="hmc", steps=2).shape == (2, 2)
    assert (energy.at(0.1) & energy).sample((2, 2)).shape == (2, 2)


@pytest.mark.slow
def test_without_a_sampler_it_is_what_the_energy_recommends():
    trace = Bowl().sample((3, 2), steps=1, trace=True)[1]
    assert isinstance(trace.sampler, ChEES) and trace.sampler.step_size is not None
    needs = ce.as_energy(lambda x, sigma: x.square().sum(1) / (1 + 2 * sigma**2))
    assert isinstance(needs.sample((3, 2), trace=True)[1].sampler, Annealed)
    a, b, c = Bowl(), Bowl(), Bowl()
    a.recommended = ce.Recommendation("langevin", {"step_size": 0.2}, threads=3)
    threads = []
    watch = [ce.sampling.Stop(lambda *_: threads.append(torch.get_num_threads()))]
    x, trace = (a & b).sample((3, 2), steps=2, seed=0, trace=True, observers=watch)
    assert trace.sampler == Langevin(0.2) and threads == [3, 3] and torch.get_num_threads() == 1
    draw(a & b, steps=1, observers=watch)
    assert threads[-1] == 3  # they are a matter of the networks, whatever the sampler
    assert torch.equal(x, draw(a & b, sampler=Langevin(0.2), steps=2))
    assert (a & b).sample((3, 2), steps=1, step_size=0.1, trace=True)[1].sampler == Langevin(0.1)
    c.name, c.recommended = "c", ce.Recommendation("hmc", {"leapfrogs": 2})
    settings = r"different settings: .*Bowl recommends langevin\(step_size=0.2\); c recommends .*hmc\(leapfrogs=2\)"
    with pytest.raises(OptionError, match=settings):
        (a & b & c).sample((3, 2))
    assert draw(a & b & c, steps=1).shape == (3, 2)


test_what_does_not_fit_is_reported_with_what_was_got = refusals(
    (
        {"sampler": Langevin, "stepsize": 0.1, "step_size": 0.1},
        OptionError,
        "no option stepsize; it takes step_size, temperature, clamp, metric, max_gradient, max_bias. Did you mean step_size",
    ),
    ({"zzz": 2}, OptionError, r"no option zzz; it takes step_size, .*, max_bias\."),
    ({"sampler": Langevin(temperature=0.0)}, OptionError, "At temperature 0 there is no bias to tune a step size for"),
    ({"sampler": Still, "speed": 2}, OptionError, "Still has no option speed; it takes scale"),
    ({"sampler": Still(), "scale": 2}, OptionError, "Still is an instance with its options; give scale to its constructor"),
    ({"sampler": 3}, OptionError, "A sampler is a name, a subclass of Sampler or an instance of one, got 3"),
    ({"sampler": dict}, OptionError, "A sampler is a name"),
    ({"sampler": "nothing"}, ComposableEnergyError, "No plug-in offers the sampler 'nothing'. Known: annealed"),
    ({"steps": "3"}, OptionError, f"steps {WHOLE} 1, got '3'"),
    ({"steps": True}, OptionError, f"steps {WHOLE} 1, got True"),
    ({"batch_size": 0}, OptionError, f"batch_size {WHOLE} 1"),
    ({"burn_in": -1}, OptionError, f"burn_in {WHOLE} 0"),
    ({"trace": None}, OptionError, f"trace {WHOLE} 1, got None"),
    ({"first_chain": -1}, OptionError, f"first_chain {WHOLE} 0"),
    ({"first_chain": 2**32 - 1}, OptionError, r"ids of chains stay below 2\^32"),
    ({"observers": 3}, OptionError, r"observers is a list of observers, .*got 3 in it"),
    ({"allow_improper": "no"}, OptionError, "allow_improper must be True or False, got 'no'"),
    ({"compile": "yes"}, OptionError, "compile must be True or False, got 'yes'"),
    ({"on_divergence": ["keep"]}, OptionError, r"on_divergence is 'raise' or 'keep', got \['keep'\]"),
    ({"resume": {}}, OptionError, r"resume takes the Trace that .* returned, got dict"),
    ({"dtype": "float32"}, DtypeError, "dtype must be a dtype of torch, such as torch.float32, got 'float32'"),
    ({"dtype": torch.complex64}, DtypeError, "floating dtype, got torch.complex64"),
    ({"init": np.zeros((3, 2))}, DtypeError, "init must be a floating tensor, got ndarray"),
    ({"init": torch.zeros(3, 2, dtype=torch.int64)}, DtypeError, "init must be a floating tensor, got torch.int64"),
    ({"init": torch.zeros(3, 2), "dtype": F64}, DtypeError, "init is torch.float32, requested is torch.float64"),
    ({"init": torch.zeros(3, 2).to_sparse()}, DtypeError, r"init must be a dense tensor, got torch.sparse_coo; use `.to_dense\(\)`"),
    ({"init": torch.zeros(3, 2, 1)}, ShapeError, r"init has points of shape \(2, 1\): ask for \(3, 2, 1\) or 3, got \(3, 2\)"),
    ({"init": torch.zeros(4, 2)}, ShapeError, r"init must have the shape \(3, 2\) of the points, got \(4, 2\)"),
    ({"init": torch.zeros(())}, ShapeError, r"init has points of shape \(\)"),
    ({"shape": (3, "2")}, ShapeError, r"shape is a number of points or .* got \(3, '2'\)"),
    ({"shape": torch.tensor([3, 2])}, ShapeError, "shape is a number of points or"),
    ({"shape": (0, 2)}, ShapeError, r"all positive, got \(0, 2\)"),
    ({"shape": ()}, ShapeError, "positive number of points"),
    ({"shape": 3}, ShapeError, r"Bowl does not say the shape of its points: ask for \(n, \*shape\), got 3"),
    *[({"seed": seed}, OptionError, f"seed {WHOLE} -9223372036854775808, got ") for seed in (1.0, "1", True, math.nan, -(2**63) - 1)],
    ({"seed": torch.tensor([1, 2])}, OptionError, f"seed {WHOLE}"),
    ({"energy": 2 * ~BOWL}, UngroundedError, r"nothing grounds ~Bowl.* `&`.*relative_to.*allow_improper=True"),
    ({"energy": BOWL - ce.as_energy(lambda x: x.square().sum(1))}, UngroundedError, "has no lower bound"),
    ({"energy": NEEDS}, ExpressionError, UNBOUND),
    ({"energy": NEEDS, "sampler": Annealed()}, ExpressionError, "depends on y"),
    ({"energy": LATENT, "shape": 3}, ShapeError, "latent points; set its `event_shape`"),
    ({"energy": FLAT, "shape": (4, 2), "batch_size": 3}, ExpressionError, r"^flat.given\(c=.*has no gradient"),  # inside a chunk
    ({"seed": 2**64}, OptionError, r"seed must be below 2\^64, got 18446744073709551616: another seed would draw the same"),
    call=lambda options: draw(**options),
)


def test_whole_numbers_of_any_type_are_seeds_and_all_differ():
    draws = [draw(seed=seed) for seed in (0, 1, 2**32, 2**63, 2**64 - 2, -(2**63) + 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(draw(seed=np.int64(3)), draw(seed=3)) and torch.equal(draw(seed=torch.tensor(3)), draw(seed=3))
    assert torch.equal(draw(seed=-1), draw(seed=2**64 - 1))  # as in torch


def test_other_objects_are_lifted_or_refused():
    drawn = sample(lambda x: x.square().sum(1) / 2, (3, 2), sampler=Langevin(0.1), steps=3, seed=0)
    assert torch.equal(drawn, draw())
    with pytest.raises(TypeError, match="An energy is a callable"):
        sample(3, (3, 2))


class Changing(ce.Energy):
    """A bowl that returns something else from some call on."""

    def __init__(self, calls: int, change) -> None:
        super().__init__()
        self.left, self.change = calls, change

    def forward(self, x):
        self.left -= 1
        energies = x.square().sum(1) / 2
        return self.change(energies) if self.left < 0 else energies


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda e: e[:, None], ShapeError, r"returned energies of shape \(4, 1\) for points of shape \(4, 2\); expected \(4,\).*squeeze"),
        (lambda e: e.sum(), ShapeError, r"returned energies of shape \(\) .*not over the batch"),
        (lambda e: e[:2], ShapeError, r"returned energies of shape \(2,\)"),
        (lambda e: e.long(), DtypeError, "must return a floating tensor of energies, got torch.int64"),
        (lambda e: e.detach(), ComposableEnergyError, "has no gradient at its points"),
    ],
    ids=["column", "sum", "fewer", "integers", "detached"],
)
def test_an_energy_that_changes_its_output_is_reported_and_leaves_what_was_drawn(change, error, message, tmp_path):
    """The checkpoint has the last whole step, from which the mended energy goes on to the bits of an unbroken run."""
    run = functools.partial(draw, shape=(4, 2), sampler=HMC(0.3, leapfrogs=3), steps=9)
    keep, seen = ce.sampling.Checkpoint(tmp_path / "run", 1e9), []
    with pytest.raises(error, match=message):
        run(Changing(16, change), observers=[keep])
    watch = ce.sampling.Stop(lambda step, state, info: seen.append(step))
    assert torch.equal(run(Changing(10**6, change), observers=[watch, keep]), run(Changing(10**6, change)))
    assert seen[0] > 4 and seen[-1] == 9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.parametrize("sampler", [Langevin(0.1), HMC(0.3, leapfrogs=3)], ids=repr)
def test_gradients_that_are_not_finite_are_treated_as_the_policy_says(sampler):
    """The energy is finite everywhere and its slope is not, beyond a radius."""

    def kinked(x):
        square = x.square().sum(1)
        return square / 2 + 1e-3 * torch.where(square > 8, square - square.detach(), 1.0).abs().sqrt()

    run = functools.partial(draw, ce.as_energy(kinked), (40, 2), sampler=sampler, steps=60, init=torch.zeros(40, 2))
    with pytest.raises(ce.errors.SamplingDiverged) as raised:
        run()
    assert raised.value.samples.shape == (40, 2) and raised.value.samples.isfinite().all() and raised.value.diverged.any()
    x, trace = run(trace=True, on_divergence="keep")
    assert trace.diverged.any() and x.isfinite().all() and x.square().sum(1).max() <= 8


def test_without_any_sampler_the_error_says_what_to_install(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("composable_energy.registry.registry.scan", lambda group: [])
        patch.setattr(sys, "path", [*sys.path, "another"])
        for sampler in (None, "langevin"):
            with pytest.raises(ce.errors.PluginNotFound, match=r"No sampler is installed.*composable-energy-mcmc, or pass an instance"):
                ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).sample((3, 2), sampler=sampler)


test_wrong_arguments_of_observers_are_refused = refusals(
    ("Progress", ["no"], "Progress takes a function of what runs, what is done and the total, or nothing for bars, got 'no'"),
    ("Stop", [3], "Stop takes a function of a step, a state and an info, got 3"),
    ("Checkpoint", [True], "Checkpoint takes the path of a file, got True"),
    *[("Checkpoint", ["c", every], "Checkpoint takes a number of seconds, at least 0, as `every`") for every in ("1", -1, math.nan)],
    call=lambda observer, given: getattr(ce.sampling, observer)(*given),
    error=OptionError,
)
