"""Compiled energies see changed weights and numbers, and are compiled once for all calls."""

import copy
import pickle

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.sampling import compiled, energy_and_gradient
from tests.factories import LEAVES, needs_compiler

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


class Scaled(ce.Energy):
    """A number that is no tensor, which a graph holds as it was."""

    scale = 1.0
    power = 2

    def forward(self, x):
        return self.scale * x.abs().pow(self.power).sum(1)


class Compilations:
    """Counts calls of `torch.compile`."""

    def __init__(self, monkeypatch):
        self.count, original = 0, torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda *args, **options: (setattr(self, "count", self.count + 1), original(*args, **options))[1]
        )

    def of(self, call):
        before = self.count
        call()
        return self.count - before


OPTIONS = {"seed": 0, "sampler": "langevin", "step_size": 0.05, "steps": 3, "noise": "philox"}


def assert_draws_same(energy):
    torch.testing.assert_close(energy.sample((4, 2), compile=True, **OPTIONS), energy.sample((4, 2), **OPTIONS))


@pytest.mark.slow
@needs_compiler
def test_calls_keep_what_was_compiled_and_see_what_was_changed(tmp_path, monkeypatch):
    # Each time the energy with its gradient, and eight steps.
    compilations, energy = Compilations(monkeypatch), Scaled()
    assert compilations.of(lambda: assert_draws_same(energy)) == 2
    assert compilations.of(lambda: assert_draws_same(energy)) == 0
    assert compilations.of(lambda: assert_draws_same(energy & Scaled())) == 2  # the twin of another expression
    energy.scale = 3.0
    assert compilations.of(lambda: assert_draws_same(energy)) == 2
    monkeypatch.setattr(Scaled, "power", 4)  # which nothing that the energy holds tells
    assert compilations.of(lambda: assert_draws_same(energy)) == 2
    for copied in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy)), copy.copy(energy)):
        copied.scale = 2.0
        assert_draws_same(copied)
    call = {"compile": True, "observers": [ce.sampling.Checkpoint(tmp_path / "c")], **OPTIONS}
    assert torch.equal(energy.sample((4, 2), **call), energy.sample((4, 2), **call))  # the same energy, compiled or not yet


class Caching(Scaled):
    """Keeps what its first evaluation computed from its number."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        if not self.kept:
            self.kept.append(torch.full((), self.scale).square())
        return self.kept[0] * super().forward(x)


@pytest.mark.slow
@needs_compiler
def test_an_energy_that_fills_a_cache_is_compiled_once_for_all_calls(monkeypatch):
    compilations, event = Compilations(monkeypatch), LEAVES["event"]
    for energy in (Caching(), (event & ~copy.deepcopy(event)) | LEAVES["ring"]):  # an expression remembers that its copies are equal
        options = OPTIONS | {"dtype": torch.float64}
        first, again = ([energy.sample((4, 2), compile=True, **options), compilations.count] for _ in range(2))
        assert first[1] == again[1] and torch.equal(first[0], again[0])
    assert compilations.count == 4  # each energy with its gradient, and eight steps


class Widening(ce.Energy):
    """A Gaussian that may be given a noise level."""

    def forward(self, x, sigma=None):
        variance = 1.0 if sigma is None else 1.0 + sigma.square()
        return x.square().sum(1) / (2 * variance)


@pytest.mark.slow
@needs_compiler
def test_nothing_is_compiled_for_conditions_that_the_sampler_does_not_ask_for(monkeypatch):
    compilations, energy = Compilations(monkeypatch), Widening()
    options = {"sampler": "annealed", "levels": 5, "sigma_max": 2.0, "sigma_min": 0.1, "corrector_steps": 1, "seed": 0}
    x = energy.sample((4, 2), compile=True, **options)
    assert compilations.count == 2  # with the level, for the pilots that fit the start and for the chains
    torch.testing.assert_close(x, energy.sample((4, 2), **options))


@pytest.mark.slow
@needs_compiler
def test_a_compiled_part_is_compiled_once_for_all_calls(monkeypatch):
    compilations, part = Compilations(monkeypatch), compiled(Scaled())
    energy = 2 * part & LEAVES["ring"]
    options = {**OPTIONS, "dtype": torch.float32}
    for _ in range(2):
        torch.testing.assert_close(energy.sample((4, 2), **options), (2 * part.energy & LEAVES["ring"]).sample((4, 2), **options))
    assert compilations.count == 1
    part.energy.scale = 3.0
    torch.testing.assert_close(energy.sample((4, 2), **options), (2 * part.energy & LEAVES["ring"]).sample((4, 2), **options))


class Squared(ce.Energy):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.w * x.square().sum(1)


@pytest.mark.slow
@needs_compiler
def test_replaced_and_changed_weights_and_numbers_count():
    energy = Squared()
    fast, x = compiled(energy), torch.full((2, 3), 1.0)

    def value():
        return energy_and_gradient(fast, x)[0].tolist()

    assert value() == [3, 3]
    energy.w = nn.Parameter(torch.tensor(9.0))
    assert value() == [27, 27]
    energy.load_state_dict({"w": torch.tensor(25.0)}, assign=True)
    assert value() == [75, 75]
    energy.w.data.fill_(2.0)  # which torch does not count as a new version
    assert value() == [6, 6]
    scaled = Scaled()
    fast = compiled(scaled)
    assert energy_and_gradient(fast, x)[0].tolist() == [3, 3]
    scaled.scale = 2.0
    assert energy_and_gradient(fast, x)[0].tolist() == [6, 6]


@needs_compiler
def test_parameters_get_gradients_through_a_compiled_energy():
    energy = Squared()
    x = torch.ones(2, 3, requires_grad=True)
    compiled(energy)(x).sum().backward()
    assert energy.w.grad.item() == 6 and x.grad.unique().tolist() == [2]
    weight = torch.tensor(2.0, requires_grad=True)
    compiled(ce.as_energy(lambda x: weight * x.square().sum(1)))(x).sum().backward()
    assert weight.grad.item() == 6
    z = torch.ones(1, 3, requires_grad=True)
    compiled(ce.as_energy(lambda x, z: (x * z).sum(1)))(x, z=z).sum().backward()
    assert z.grad.tolist() == [[2, 2, 2]]
