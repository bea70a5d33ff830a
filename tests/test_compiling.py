"""Compiled energies have the values, gradients and errors of the energies that they were made of."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy.sampling import compiled, energy_and_gradient, twin
from composable_energy.sampling.compile import CompiledEnergy
from tests.factories import DTYPE, LEAVES, Affine, Noisy, needs_compiler, points


def assert_same(energy, fast, x, **conditions):
    for new, old in zip(energy_and_gradient(fast, x, **conditions), energy_and_gradient(energy, x, **conditions), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


@pytest.mark.full
@needs_compiler
def test_an_expression_of_every_kind_runs_as_one_function_for_each_shape():
    event = (LEAVES["event"] | ~LEAVES["red"]) & LEAVES["warm"]
    energy = event & LEAVES["density"] & 2.0 * LEAVES["tilt"] & (LEAVES["ring"] | ce.negate(LEAVES["relative"])) & Noisy()
    fast = compiled(energy)
    for sigma in (0.1, 0.5, torch.tensor(2.0, dtype=DTYPE)):
        assert_same(energy, fast, points(7), sigma=sigma)
    assert len(fast.graphs) == 1
    assert (str(fast), fast.conditions, fast.grounded) == (str(energy), energy.conditions, energy.grounded)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_compiled_energy_has_the_properties_of_the_energy(name):
    """All but those of the object itself: its terms, its origin, and how it is saved."""
    own = {"terms", "origin", "comes_trained", "has_config", "has_own_gradient", "training", "T_destination", "dump_patches"}
    energy = LEAVES[name]
    fast = compiled(energy)
    for each in sorted(set(dir(ce.Energy)) - own):
        if not each.startswith("_") and not callable(getattr(energy, each)):
            assert getattr(fast, each) == getattr(energy, each), each
    assert fast.known_level(0.9) == energy.known_level(0.9)


def test_compiled_energies_have_supports_and_normalizers_in_expressions():
    one, two = (ce.as_energy(torch.distributions.LogNormal(torch.full((2,), mean, dtype=DTYPE), 1.0)) for mean in (0.0, 1.0))
    fast, x = compiled(one) | compiled(two), points(5).exp()
    assert str(fast.support) == str(one.support)
    torch.testing.assert_close(fast.log_prob(x), (one | two).log_prob(x))


@pytest.mark.full
@needs_compiler
def test_each_chunk_of_chains_gets_its_own_rows_from_the_same_function():
    head = ce.GaussianHead(Affine(4, 3), LEAVES["distribution"], dims=2)
    energy = LEAVES["red"] & head(points(6)) & Noisy().given(sigma=torch.linspace(0.1, 2, 6, dtype=DTYPE))
    options = {"seed": 3, "sampler": "langevin", "step_size": 0.05, "steps": 20, "dtype": DTYPE, "warn": False, "noise": "philox"}
    torch.testing.assert_close(energy.sample((6, 2), compile=True, batch_size=2, **options), energy.sample((6, 2), **options))
    fast = compiled(energy)
    fast.sample((6, 2), batch_size=2, **options)
    assert len(fast.graphs) == 1
    fast.sample((6, 2), batch_size=4, **options)  # two more shapes: 4 chains, and the 2 that are left, whose function is there
    assert len(fast.graphs) == 2


@pytest.mark.full
@needs_compiler
def test_a_sampler_that_tunes_itself_draws_the_same():
    energy = ce.as_energy(torch.distributions.Normal(torch.zeros(2, dtype=DTYPE), 1.0))
    draws = [energy.sample((5, 2), sampler="hmc", steps=5, seed=1, noise="philox", compile=fast) for fast in (False, True)]
    torch.testing.assert_close(*draws)


class Stray(ce.Energy):
    """An energy that cannot be compiled, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        match self.way:
            case "decides":
                return x.square().sum(1) * (2 if x.sum() > 0 else 1)
            case "leaves torch":
                return x.square().sum(1) + torch.from_numpy(x.detach().numpy()).sum()
            case "draws":
                return x.square().sum(1) + 0 * torch.rand(len(x))
            case _:
                self.way += "."  # remembers calls
                return x.square().sum(1) * len(self.way)


@pytest.mark.full
@needs_compiler
@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("decides", "cannot be traced"),
        ("leaves torch", "cannot be traced"),
        ("draws", "draws random numbers"),
        ("counts", "something else"),
    ],
)
def test_what_cannot_be_compiled_runs_as_it_is_and_says_why_once(way, reason):
    energy = Stray(way)
    fast = compiled(energy)
    with pytest.warns(RuntimeWarning, match=reason) as raised:
        values, _ = energy_and_gradient(fast, torch.ones(3, 2))
        energy_and_gradient(fast, torch.ones(4, 2))
    assert len(raised) == 1
    assert fast.graphs == ()
    if way != "counts":
        torch.testing.assert_close(values, energy(torch.ones(3, 2)))


@pytest.mark.full
@needs_compiler
def test_attention_is_compiled_and_its_dropout_draws_random_numbers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    energy = ce.as_energy(nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 1), nn.Flatten(0)).requires_grad_(False))
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="draws random numbers"):
        energy_and_gradient(compiled(energy), x)
    fast = compiled(energy.eval())
    for found, wanted in zip(energy_and_gradient(fast, x), energy_and_gradient(energy, x), strict=True):
        torch.testing.assert_close(found, wanted)
    assert len(fast.graphs) == 1


@pytest.mark.full
@needs_compiler
def test_a_recursion_is_compiled_in_a_time_that_grows_with_its_length():
    def logistic_growth(x):  # of 20 steps: a compiler that repeats the operations before each use would never end
        rate, size = x.unbind(1)
        number = torch.full_like(rate, 0.1)
        for _ in range(20):
            number = number + 0.2 * (rate * number * (1 - number * size))
        return (number - 0.5).square() + x.square().sum(1) / 2

    energy = ce.as_energy(logistic_growth, event_shape=(2,))
    fast, x = compiled(energy), torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, wanted in zip(energy_and_gradient(fast, x), energy_and_gradient(energy, x), strict=True):
        torch.testing.assert_close(found, wanted)
    assert len(fast.graphs) == 1


@pytest.mark.full
@needs_compiler
def test_a_compiled_energy_keeps_the_checks_of_distributions():
    data = torch.tensor([0.3, 1.2, 2.0], dtype=torch.float64)
    energy = ce.as_energy(lambda x: -torch.distributions.Gamma(x[:, :1], x[:, 1:]).log_prob(data).sum(1), event_shape=(2,))
    fast, x = compiled(energy), torch.tensor([[1.0, 1.0], [2.0, 0.5], [0.5, 0.7]], dtype=torch.float64)
    for found, wanted in zip(energy_and_gradient(fast, x), energy_and_gradient(energy, x), strict=True):
        torch.testing.assert_close(found, wanted)
    assert len(fast.graphs) == 1
    negative = x * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    energies, gradient = fast.with_gradient(negative)
    assert energies.isnan().tolist() == [False, True, False]
    assert gradient.isnan().any(1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="concentration"):  # also after the compiler was used
        energy(negative)


@pytest.mark.full
@needs_compiler
def test_too_many_shapes_run_as_they_are():
    fast = compiled(LEAVES["ring"])
    for n in range(1, 9):
        assert_same(LEAVES["ring"], fast, points(n))
    with pytest.warns(RuntimeWarning, match="batch_size"):
        assert_same(LEAVES["ring"], fast, points(9))
    assert_same(LEAVES["ring"], fast, points(1))
    assert len(fast.graphs) == 8


def test_mistakes_are_reported_as_before():
    class Wide(ce.Energy):
        def forward(self, x):
            return x.square().sum(1, keepdim=True)

    with pytest.raises(ShapeError, match="returned energies of shape"):
        energy_and_gradient(compiled(Wide()), torch.ones(3, 2))
    with pytest.raises(ShapeError, match="takes points of shape"):
        energy_and_gradient(compiled(LEAVES["ring"]), torch.ones(3, 4))
    with pytest.raises(ExpressionError, match="no gradient"):
        energy_and_gradient(compiled(ce.as_energy(lambda x: x.detach().sum(1))), torch.ones(3, 2))
    with pytest.raises(ExpressionError, match="depends on sigma"):
        energy_and_gradient(compiled(Noisy()), points(3))


@pytest.mark.full
@needs_compiler
def test_nothing_is_left_behind():
    def state():
        return (
            torch._dynamo.config.get_config_copy(),
            torch._inductor.config.get_config_copy(),
            torch.is_grad_enabled(),
            warnings.filters[:],
        )

    before = state()
    energy = ce.as_energy(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)))
    energy_and_gradient(compiled(twin(energy)), torch.ones(3, 2))
    assert state() == before
    assert all(p.requires_grad and p.grad is None for p in energy.parameters())
    assert not torch.equal(energy_and_gradient(energy, torch.ones(3, 2))[1], torch.zeros(3, 2))
    assert isinstance(compiled(fast := compiled(energy)), CompiledEnergy) and compiled(fast) is fast


@pytest.mark.full
def test_a_machine_without_a_compiler_is_reported_what_to_install(tmp_path):
    code = """
        import torch, composable_energy as ce
        E = ce.as_energy(lambda x: x.square().sum(1).sin())
        try:
            E.sample((3, 2), sampler="langevin", step_size=0.1, steps=1, compile=True, allow_improper=True)
        except ce.errors.OptionError as error:
            print(error)
    """
    env = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    code = "\n".join(line[8:] for line in code.splitlines())
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "apt install g++" in done.stdout
