"""Operands of expressions: what can be lifted, and the shapes that they accept and return."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.errors import DeviceError, DtypeError, OptionError, ShapeError
from tests.factories import LEAVES, Affine, normal, points, quadratic


@pytest.mark.slow
def test_anything_that_computes_energies_is_lifted_by_an_operator(base):
    x, module = points(), LEAVES["network"].function
    for tree in (base & quadratic, quadratic & base):
        torch.testing.assert_close(tree(x), base(x) + quadratic(x))
    torch.testing.assert_close((module & base)(x), module(x) + base(x))
    torch.testing.assert_close((base & normal(1.0, 1.0))(x), base(x) - normal(1.0, 1.0).log_prob(x))
    torch.testing.assert_close((quadratic | base)(x), -torch.logsumexp(torch.stack([-quadratic(x), -base(x)]), 0))
    torch.testing.assert_close((quadratic - base)(x), quadratic(x) - base(x))
    assert str(quadratic >> base) == str(~ce.as_energy(quadratic) | base)


@pytest.mark.parametrize("operand", [3, "male", None, torch.nn.Linear])
def test_python_itself_refuses_what_cannot_be_lifted(base, operand):
    with pytest.raises(TypeError):
        base & operand
    with pytest.raises(TypeError):
        operand | base


def test_functions_that_take_an_energy_lift_or_say_why_not(base):
    x = points()
    torch.testing.assert_close(ce.negate(quadratic, "power")(x), -0.01 * quadratic(x))
    with pytest.raises(OptionError, match=r"base must be an energy, got function; lift it once"):
        base.relative_to(quadratic)


def test_as_energy_says_what_it_takes(base):
    assert ce.as_energy(base) is base
    with pytest.raises(OptionError, match="base is already an energy and takes no options, got name"):
        ce.as_energy(base, name="another")
    with pytest.raises(TypeError, match="the class Linear; make an instance"):
        ce.as_energy(nn.Linear)
    with pytest.raises(TypeError, match="got int"):
        ce.as_energy(3)


@pytest.mark.slow
@pytest.mark.parametrize("lift", [ce.as_energy, lambda function: ce.ClassifierEnergy(function, 0)])
def test_an_energy_that_is_gone_keeps_no_function_alive(lift):
    def function(x):
        return x

    energy, known = lift(function), weakref.ref(function)
    assert not energy.conditions
    del energy, function
    gc.collect()
    assert known() is None


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: x.sum(1, keepdim=True), r"shape \(5, 1\).*add `.squeeze\(-1\)`"),
        (lambda x: x.sum(), r"shape \(\).*not over the batch"),
        (lambda x: x, r"shape \(5, 2\).*expected \(5,\)"),
    ],
)
def test_a_term_of_a_wrong_shape_is_named_with_both_shapes(base, energy, message):
    for tree in (base & energy, base | energy, ~ce.as_energy(energy), base - energy):
        with pytest.raises(ShapeError, match=message):
            tree(points())


def test_points_must_fit(base):
    with pytest.raises(ShapeError, match=r"shape \(B, 2\), got \(5, 3\)"):
        base(torch.zeros(5, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="batch of points"):
        ce.as_energy(quadratic)(torch.tensor(1.0))
    with pytest.raises(DtypeError, match=r"torch.uint8; for images write `x.float\(\) / 255`"):
        base(torch.zeros(5, 2, dtype=torch.uint8))
    with pytest.raises(DtypeError, match=r"float64 weights, the points are torch\.float32"):
        LEAVES["network"](torch.zeros(5, 2))
    with pytest.raises(DeviceError, match="is on cpu, the points are on meta"):
        LEAVES["network"](torch.zeros(5, 2, dtype=torch.float64, device="meta"))
    with pytest.raises(DtypeError, match="got list"):
        base([[0.0, 1.0]])
    with pytest.raises(DtypeError, match="floating tensor of energies, got float"):
        ce.as_energy(lambda x: 1.0)(points())


def test_a_shape_is_any_sequence_of_numbers():
    ring = LEAVES["ring"].__class__(1.0)
    ring.event_shape = [2]
    assert ring.event_shape == torch.Size([2]) and ring(points()).shape == (5,)
    ring.event_shape = None
    assert ring(torch.zeros(1, 7)).shape == (1,)


def test_terms_of_different_shapes_are_refused_where_they_meet(base):
    with pytest.raises(ShapeError, match=r"\(2,\).*\(3,\)"):
        base & Normal(torch.zeros(3), torch.ones(3))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_modules_of_torchscript_are_energies(base):
    module, x = nn.Sequential(Affine(1, 0), nn.Flatten(0)), points()
    torch.testing.assert_close((base & torch.jit.trace(module, x))(x), base(x) + module(x))
