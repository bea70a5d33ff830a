"""Operators: shared bases count once, negation, groundedness, weights, printing."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError
from tests.factories import LEAVES, Affine, Tilt, normal, points, quadratic


def test_a_conjunction_counts_a_shared_base_once(base):
    a, b, x = Tilt(base, 0.5), Tilt(base, -0.3), points()
    torch.testing.assert_close((a & b)(x), base(x) + a.evidence(x) + b.evidence(x))
    torch.testing.assert_close((a & b & base)(x), (a & b)(x))
    torch.testing.assert_close((base & a)(x), a(x))


def test_a_weighted_term_beside_another_sharpens_its_evidence_alone(base):
    a, b, x = Tilt(base, 0.5), Tilt(base, -0.3), points()
    torch.testing.assert_close((a & 2 * b)(x), base(x) + a.evidence(x) + 2 * b.evidence(x))
    torch.testing.assert_close((2 * a & 2 * b)(x), 2 * (a & b)(x))
    torch.testing.assert_close(a.sharpened(2)(x), base(x) + 2 * a.evidence(x))


def test_a_mixture_factors_out_what_all_branches_share_and_no_more(base):
    other = ce.as_energy(normal(1.0, 1.0))
    a, b, x = Tilt(base, 0.5), Tilt(other, -0.3), points()
    expected = -torch.logsumexp(torch.stack([-a(x), -b(x)]), 0)
    torch.testing.assert_close((a | b)(x), expected)
    torch.testing.assert_close((a | other)(x), -torch.logsumexp(torch.stack([-a(x), -other(x)]), 0))
    assert [b.energy for b in (a | Tilt(base, 1.0)).bases] == [base]


def test_a_base_is_the_same_one_under_equal_conditions():
    level = ce.as_energy(lambda x, sigma: x.square().sum(1) / (1 + sigma), name="level")
    a, b, x = Tilt(level, 0.5), Tilt(level, -0.3), points()
    torch.testing.assert_close((a.at(0.5) & b.at(0.5))(x), (a & b).at(0.5)(x))
    different = a.at(0.5) & b.at(0.7)
    torch.testing.assert_close(different(x), a.at(0.5)(x) + b.at(0.7)(x))


def test_relative_to_gives_the_corrected_product(base):
    a, b, x = ce.as_energy(normal(1.0, 1.0)), ce.as_energy(normal(-1.0, 0.5)), points()
    product = a.relative_to(base) & b.relative_to(base)
    torch.testing.assert_close(product(x), a(x) + b(x) - base(x))
    with pytest.raises(ExpressionError, match="already relative to base"):
        Tilt(base, 1.0).relative_to(base)


def test_each_kind_of_energy_has_its_own_complement(base):
    x = points()
    event, relative, absolute = LEAVES["red"], Tilt(base, 2.0), LEAVES["ring"]
    p = (-event.evidence(x)).exp()
    torch.testing.assert_close((~event).evidence(x), -torch.log(1 - p))
    torch.testing.assert_close((~relative).evidence(x), nn.functional.softplus(-relative.evidence(x)))
    torch.testing.assert_close(ce.negate(absolute, "power")(x), -0.01 * absolute(x))
    torch.testing.assert_close(ce.negate(absolute, level=1.5)(x), nn.functional.softplus((1.5 - absolute(x)) / 0.1))
    assert (~absolute).config()["mode"] == "level"


def test_negate_takes_mode_weight_and_offset(base):
    x, relative = points(), Tilt(base, 2.0)
    power = ce.negate(relative, "power", weight=0.5)
    torch.testing.assert_close(power(x), base(x) - 0.5 * relative.evidence(x))
    contrast = ce.negate(relative, "contrast", offset=1.0, weight=2.0)
    torch.testing.assert_close(contrast.evidence(x), 2 * nn.functional.softplus(1.0 - relative.evidence(x)))
    assert ~contrast is relative


def test_negate_refuses_what_has_no_meaning(base):
    with pytest.raises(OptionError, match=r"mode must be one of .* got 'maybe'"):
        ce.negate(base, "maybe")
    with pytest.raises(ExpressionError, match="not an event"):
        ce.negate(Tilt(base, 1.0), "complement")
    with pytest.raises(OptionError, match="positive, got -1"):
        ce.negate(base, weight=-1.0)
    with pytest.raises(ExpressionError, match="near"):
        ~LEAVES["density"]


def test_groundedness_follows_the_structure(base):
    event, absolute = ce.ClassifierEnergy(Affine(2, 1), 1), LEAVES["ring"]
    assert base.grounded and (~LEAVES["red"]).grounded and (~Tilt(base, 1.0)).grounded
    assert not event.grounded and not (~absolute).grounded and not (absolute - base).grounded
    assert (base & ~absolute).grounded and (base & event).grounded
    assert not (base | ~absolute).grounded and (base | absolute).grounded
    assert not (-1 * base).grounded and (2 * base).grounded
    assert not Tilt(base, 1.0).sharpened(-1).grounded and Tilt(base, 1.0).sharpened(0).grounded


def test_numbers_of_numpy_and_torch_are_weights(base):
    x = points()
    for weight in (2, 2.0, np.float64(2), np.float32(2), torch.tensor(2.0)):
        torch.testing.assert_close((weight * base)(x), 2 * base(x))
    with pytest.raises(TypeError):
        base * torch.ones(2)
    with pytest.raises(TypeError):
        base * True
    with pytest.raises(OptionError, match="not be zero"):
        base / 0


def test_what_is_learnt_counts_at_every_call_wherever_it_stands(base):
    weight, temperature = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (2.0, 4.0))
    a, b, x = Tilt(base, 0.5), Tilt(base, -0.3), points()
    tree = weight * (3 * (a / temperature)) & weight * (3 * (b / temperature))
    for value in (2.0, 5.0):
        with torch.no_grad():
            weight.fill_(value)
        torch.testing.assert_close(tree(x), 3 * value / 4 * (a & b)(x))
        torch.testing.assert_close(copy.deepcopy(tree)(x), tree(x))
        tree(x).sum().backward()  # a graph that is kept since the tree was made would be gone at the second time
    assert str(a / temperature) == "Tilt / 4" and {id(p) for p in tree.parameters()} >= {id(weight), id(temperature)}


def test_a_difference_keeps_the_gradients_of_weights_that_happen_to_be_equal(base):
    first, second = (nn.Parameter(torch.tensor(2.0, dtype=torch.float64)) for _ in range(2))
    a, x = Tilt(base, 0.5), points()
    (first * a - second * a)(x).sum().backward()
    torch.testing.assert_close(first.grad, a(x).sum())


@pytest.mark.parametrize("weight", [math.nan, math.inf, "two", torch.tensor(math.nan), torch.tensor(1j), torch.ones(2)])
def test_a_weight_is_a_finite_number(base, weight):
    with pytest.raises(OptionError, match="A weight must be"):
        base.sharpened(weight)
    with pytest.raises(OptionError, match="positive and finite"):
        ce.any_of(base, quadratic, weights=[1, math.inf])


def test_all_of_and_any_of_take_many(base):
    x = points()
    torch.testing.assert_close(ce.all_of(base, quadratic, LEAVES["ring"])(x), base(x) + quadratic(x) + LEAVES["ring"](x))
    mixture = ce.any_of(base, quadratic, weights=[1.0, 3.0])
    torch.testing.assert_close(mixture(x), -torch.log((-base(x)).exp() + 3 * (-quadratic(x)).exp()))
    assert ce.all_of(base) is base and ce.any_of(base) is base
    with pytest.raises(OptionError, match="2 terms takes 2 weights"):
        ce.any_of(base, quadratic, weights=[1.0])
    with pytest.raises(OptionError, match="positive"):
        ce.any_of(base, quadratic, weights=[1.0, -1.0])
    with pytest.raises(OptionError, match=r"for a learnable weight write `w \* A`"):
        ce.any_of(base, quadratic, weights=[1.0, nn.Parameter(torch.tensor(2.0))])
    calibrated = ce.Disjunction(base, ce.as_energy(quadratic), log_z=[0.0, math.log(2 * math.pi)])
    torch.testing.assert_close(calibrated(x), -torch.log((-base(x)).exp() + (-quadratic(x)).exp() / (2 * math.pi)))
    assert str(calibrated) == "any_of(base, quadratic, weights=[1, 1])"


def test_with_weights_events_are_densities_of_a_mixture():
    a, b, x = LEAVES["red"], LEAVES["event"], points()
    mixture = ce.any_of(a, b, weights=[1.0, 1.0])
    expected = -torch.log((-a.evidence(x)).exp() + (-b.evidence(x)).exp())
    torch.testing.assert_close(mixture.evidence(x), expected)


@pytest.mark.full
def test_a_complement_is_remembered_so_that_a_parity_of_many_events_stays_small():
    events = [ce.ClassifierEnergy(Affine(1, seed), 1, LEAVES["distribution"]) for seed in range(24)]
    parity = events[0]
    for event in events[1:]:
        parity = (parity & ~event) | (~parity & event)
    x = points()
    signs = [1 - 2 * (-event.evidence(x)).exp() for event in events]
    torch.testing.assert_close((-parity.evidence(x)).exp(), (1 - torch.stack(signs).prod(0)) / 2)
    assert ~~parity is parity


def test_a_copy_does_not_share_the_remembered_complement():
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    tree = LEAVES["red"].sharpened(weight) & LEAVES["event"]
    complement = ~tree
    copied = copy.deepcopy(tree)
    with torch.no_grad():
        next(p for p in copied.parameters() if p.ndim == 0).fill_(5.0)
    x = points()
    assert not torch.allclose((~copied)(x), complement(x))
    assert ~complement is tree
