"""What expressions mean in particular: bases, negations, weights, latents, conditions, and what bad operands get."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, Uniform

import composable_energy as ce
from composable_energy.errors import DeviceError, DtypeError, ExpressionError, OptionError, ShapeError
from tests.factories import LEAVES, Affine, Tilt, normal, points


@pytest.fixture
def base():
    return ce.as_energy(normal(0.0, 2.0), name="base")


def quadratic(x):
    return x.square().sum(1) / 2


# Bases ----------------------------------------------------------------------------------------------------------------------------------


def test_a_conjunction_counts_a_shared_base_once(base):
    a, b, x = Tilt(base, 0.5), Tilt(base, -0.3), points()
    torch.testing.assert_close((a & b)(x), base(x) + a.evidence(x) + b.evidence(x))
    torch.testing.assert_close((a & b & base)(x), (a & b)(x))
    torch.testing.assert_close((base & a)(x), a(x))


def test_absolute_energies_add_up(base):
    x = points()
    torch.testing.assert_close((base & base)(x), 2 * base(x))
    torch.testing.assert_close((base & quadratic)(x), base(x) + quadratic(x))


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


# Negation -------------------------------------------------------------------------------------------------------------------------------


def test_each_kind_of_energy_has_its_own_complement(base):
    x = points()
    event, relative, absolute = LEAVES["red"], Tilt(base, 2.0), LEAVES["ring"]
    p = (-event.evidence(x)).exp()
    torch.testing.assert_close((~event).evidence(x), -torch.log(1 - p))
    torch.testing.assert_close((~relative).evidence(x), nn.functional.softplus(-relative.evidence(x)))
    torch.testing.assert_close((~absolute)(x), -0.01 * absolute(x))


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


def test_implication_is_not_a_or_b():
    a, b, x = LEAVES["event"], LEAVES["warm"], points()
    torch.testing.assert_close((a >> b)(x), (~a | b)(x))


# Operands -------------------------------------------------------------------------------------------------------------------------------


def test_anything_that_computes_energies_is_lifted_by_an_operator(base):
    x, module = points(), LEAVES["network"].function
    for tree in (base & quadratic, quadratic & base):
        torch.testing.assert_close(tree(x), base(x) + quadratic(x))
    torch.testing.assert_close((module & base)(x), module(x) + base(x))
    torch.testing.assert_close((base & normal(1.0, 1.0))(x), base(x) - normal(1.0, 1.0).log_prob(x))
    torch.testing.assert_close((quadratic | base)(x), -torch.logsumexp(torch.stack([-quadratic(x), -base(x)]), 0))
    torch.testing.assert_close((quadratic - base)(x), quadratic(x) - base(x))
    torch.testing.assert_close((quadratic >> base)(x), (~ce.as_energy(quadratic) | base)(x))


@pytest.mark.parametrize("operand", [3, "male", None, torch.nn.Linear])
def test_python_itself_refuses_what_cannot_be_lifted(base, operand):
    with pytest.raises(TypeError):
        base & operand
    with pytest.raises(TypeError):
        operand | base


def test_words_in_place_of_operators_are_refused(base):
    with pytest.raises(TypeError, match="write `A & B`"):
        _ = base and quadratic
    with pytest.raises(TypeError, match="no truth value"):
        bool(base)


def test_numbers_of_numpy_and_torch_are_weights(base):
    x = points()
    for weight in (2, 2.0, np.float64(2), np.float32(2), torch.tensor(2.0)):
        torch.testing.assert_close((weight * base)(x), 2 * base(x))
    with pytest.raises(TypeError):
        base * torch.ones(2)
    with pytest.raises(TypeError):
        base * True
    with pytest.raises(OptionError, match="not zero"):
        base / 0


def test_a_weight_can_be_learnt(base):
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    tree = weight * base & quadratic
    tree(points()).sum().backward()
    assert weight.grad is not None and any(p is weight for p in tree.parameters())


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


def test_functions_that_take_an_energy_lift_or_say_why_not(base):
    x = points()
    torch.testing.assert_close(ce.negate(quadratic)(x), -0.01 * quadratic(x))
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


@pytest.mark.parametrize("lift", [ce.as_energy, lambda function: ce.ClassifierEnergy(function, 0)])
def test_an_energy_that_is_gone_keeps_no_function_alive(lift):
    def function(x):
        return x

    energy, known = lift(function), weakref.ref(function)
    assert not energy.conditions
    del energy, function
    gc.collect()
    assert known() is None


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


# Points ---------------------------------------------------------------------------------------------------------------------------------


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


def test_points_outside_a_support_have_infinite_energy():
    box = ce.as_energy(Uniform(torch.zeros(2), torch.ones(2)))
    assert box(torch.tensor([[0.5, 0.5], [0.5, 1.5]])).tolist() == [0.0, float("inf")]


# Conditions -----------------------------------------------------------------------------------------------------------------------------


def test_conditions_come_as_rows(base):
    energy = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="energy")
    x = points()
    torch.testing.assert_close(energy.given(y=2)(x), (x - 2).square().sum(1))
    labels = torch.arange(5)
    torch.testing.assert_close(energy.given(y=labels)(x), (x - labels[:, None]).square().sum(1))
    part = energy.given(y=labels)(x[1:3], chains=slice(1, 3))
    torch.testing.assert_close(part, (x[1:3] - labels[1:3, None]).square().sum(1))
    with pytest.raises(ShapeError, match=r"y has 3 rows .* for 5 points"):
        energy.given(y=torch.arange(3))(x)
    with pytest.raises(ExpressionError, match=r"depends on y, which is not bound: bind it with `.given\(y=...\)`"):
        (energy & base)(x)
    with pytest.raises(OptionError, match="number or a tensor, got str"):
        energy.given(y="red")(x)
    assert energy.explain(x, y=2).energy.shape == (5,)


class Shifted(nn.Module):
    """Depends on a condition with a default."""

    def forward(self, x, y=0.0):
        return x.square().sum(1) + y


def test_compiled_modules_keep_their_conditions(base):
    module, x = Shifted(), points()
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(ce.as_energy(compiled).given(y=2.0)(x), module(x, 2.0))
    head = ce.ClassifierEnergy(torch.compile(Shifted(), backend="eager"), 1, base)
    assert "y" in head.conditions


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_modules_of_torchscript_are_energies(base):
    module, x = nn.Sequential(Affine(1, 0), nn.Flatten(0)), points()
    torch.testing.assert_close((base & torch.jit.trace(module, x))(x), base(x) + module(x))


def test_names_that_no_term_takes_are_errors(base):
    energy = ce.as_energy(lambda x, label, sigma=1.0: x.square().sum(1) + label, name="energy")
    x = points()
    with pytest.raises(ExpressionError, match=r"energy takes no lable\. Did you mean 'label'\?"):
        energy.given(lable=3)
    with pytest.raises(ExpressionError, match=r"takes no sgima\. Did you mean 'sigma'\?"):
        energy(x, label=1, sgima=1.0)
    with pytest.raises(ExpressionError, match="takes no y"):
        (energy & base).evidence(x, label=1, y=3)
    with pytest.raises(ExpressionError, match="takes no y"):
        energy.with_gradient(x, label=1, y=3)
    with pytest.raises(ExpressionError, match="takes no y"):
        base.given(y=3)
    torch.testing.assert_close((energy & base).given(label=2)(x), energy.given(label=2)(x) + base(x))  # one term takes it


def test_a_second_binding_is_an_error():
    energy = ce.as_energy(lambda x, sigma: sigma * x.square().sum(1))
    other = ce.as_energy(lambda x, sigma: sigma + x.sum(1))
    x = points()
    with pytest.raises(ExpressionError, match=r"takes no sigma\. It is already bound"):
        energy.at(2.0).at(3.0)
    with pytest.raises(ExpressionError, match=r"takes no sigma\. It is already bound"):
        energy.at(2.0)(x, sigma=3.0)
    torch.testing.assert_close((energy.at(2.0) & other).at(3.0)(x), energy.at(2.0)(x) + other.at(3.0)(x))


def test_infer_finds_the_condition_behind_points():
    energy = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1) / 2, name="energy")
    x = torch.tensor([[0.1, -0.1], [2.9, 3.2]])
    found = energy.infer(x, over={"y": [0.0, 1.0, 3.0]})
    assert [c["y"] for c in found.best] == [0.0, 3.0]
    expected = torch.softmax(torch.stack([-(x - c).square().sum(1) / 2 for c in (0.0, 1.0, 3.0)], 1), 1)
    torch.testing.assert_close(found.probabilities, expected)
    together = energy.infer(x, over={"y": torch.tensor([0.0, 1.5])}, joint=True)
    assert together.probabilities.shape == (1, 2) and together.best[0]["y"] == 1.5
    with pytest.raises(OptionError, match=r"got candidates of \['z'\]"):
        energy.infer(x, over={"z": [0.0]})
    with pytest.raises(OptionError, match="at least one candidate"):
        energy.infer(x, over={"y": []})
    for single in (1.0, torch.tensor(1.0)):
        with pytest.raises(OptionError, match="Candidates must be lists"):
            energy.infer(x, over={"y": single})  # pyright: ignore[reportArgumentType]


# Latents --------------------------------------------------------------------------------------------------------------------------------


class Doubler(nn.Module):
    """A decoder to three numbers, and back."""

    def forward(self, z):
        return torch.cat([2 * z, z.sum(1, keepdim=True)], 1)

    def encode(self, x):
        return x[:, :2] / 2


def latent(decoder):
    return ce.as_energy(quadratic, decoder=decoder, event_shape=(2,), name="latent")


def test_an_energy_of_seen_points_is_pulled_back_to_the_latents():
    decoder, z = Doubler(), points()
    seen = ce.as_energy(lambda x: x.square().sum(1), name="seen", event_shape=(3,))
    tree = latent(decoder) & seen
    assert tree.decoder is decoder
    torch.testing.assert_close(tree(z), quadratic(z) + decoder(z).square().sum(1))
    torch.testing.assert_close(seen.pull_back(decoder)(z), seen(decoder(z)))
    torch.testing.assert_close(seen.pull_back(decoder).at(0.5)(z), seen(decoder(z / 1.25)))
    torch.testing.assert_close(seen.pull_back(decoder, damping=20).at(0.5)(z), seen(decoder(z / 1.25)) / 6)
    with pytest.raises(OptionError, match="damping must be a number of at least 0"):
        seen.pull_back(decoder, damping=-1)


def test_an_energy_that_needs_a_noise_level_is_pulled_back_at_one():
    noisy, decoder, z = ce.as_energy(lambda x, sigma: x.square().sum(1) / sigma, name="noisy", event_shape=(3,)), Doubler(), points()
    with pytest.raises(ExpressionError, match=r"noisy depends on sigma.*bind it first, with `\.at\(sigma\)`"):
        noisy & latent(decoder)
    torch.testing.assert_close(noisy.at(2.0).pull_back(decoder)(z), decoder(z).square().sum(1) / 2)


def test_a_prior_is_not_pulled_back_by_accident():
    decoder, z = Doubler(), points()
    prior = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
    for seen in (
        ce.as_energy(lambda x: x.square().sum(1), event_shape=(3,)),
        ce.as_energy(torch.distributions.Normal(torch.zeros(3), 2.0)),
    ):
        for tree in (prior & seen.pull_back(decoder), seen.pull_back(decoder) & prior):
            torch.testing.assert_close(tree(z), prior(z) + seen(decoder(z)))
            assert tree.decoder is decoder and tree.event_shape == (2,)
    with pytest.raises(ExpressionError, match="For decoded points write"):
        ce.as_energy(lambda x: x.sum(1)) & seen.pull_back(decoder)


def test_a_prior_of_the_shape_of_decoded_points_is_not_pulled_back_in_silence():
    decoder = torch.nn.Linear(2, 2, dtype=torch.float64)  # whose latent points may have any shape, as far as it says
    prior, seen = (ce.as_energy(torch.distributions.Normal(torch.full((2,), mean), 1.0)) for mean in (0.0, 1.0))
    for join in (lambda a, b: a & b, lambda a, b: b & a, lambda a, b: a | b):
        with pytest.raises(ExpressionError, match="For decoded points write"):
            join(prior, seen.pull_back(decoder))
    latent = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0), decoder=decoder)
    torch.testing.assert_close((latent & seen.pull_back(decoder))(points()), prior(points()) + seen(decoder(points())))


def test_two_decoders_in_one_tree_are_named():
    with pytest.raises(ExpressionError, match="Doubler and Doubler"):
        latent(Doubler()) | latent(Doubler())
    decoder = Doubler()
    with pytest.raises(ExpressionError, match="is already an energy of latent points"):
        latent(decoder).pull_back(decoder)


def test_explain_encodes_what_people_see():
    decoder, z = Doubler(), points()
    tree = latent(decoder) & ce.as_energy(lambda x: x.abs().sum(1), event_shape=(3,))
    torch.testing.assert_close(tree.explain(decoder(z)).energy, tree(z))
    seen = ce.as_energy(lambda x: x.abs().sum(1), name="seen", event_shape=(3,))
    parts = (latent(decoder) & seen).explain(decoder(z)).terms
    assert [part.expression for part in parts] == ["latent", "seen.pull_back(Doubler)"]
    torch.testing.assert_close(parts[1].energy, seen(decoder(z)))
    blind = nn.Module()
    blind.forward = lambda z: torch.cat([z, z], 1)
    with pytest.raises(ExpressionError, match="has no `encode`"):
        latent(blind).explain(torch.zeros(2, 4))


class Linears(nn.Module):
    """A decoder with weights, to three numbers, and back."""

    def __init__(self):
        super().__init__()
        self.out, self.back = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, z):
        return self.out(z)

    def encode(self, x):
        return self.back(x)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 5), ShapeError, r"latent points of shape \(B, 2\) or points .* can encode; .* shape \(2, 5\) failed"),
        (torch.zeros(2, 3, dtype=torch.int64), DtypeError, "floating dtype, got torch.int64; for images"),
        (torch.zeros(2, 3, dtype=torch.float64), DtypeError, "has torch.float32 weights, the points are torch.float64"),
        ([[0.0, 0.0, 0.0]], DtypeError, "takes a tensor of points, got list"),
    ],
)
def test_what_a_decoder_does_not_encode_is_told(x, error, message):
    energy = latent(Linears())
    with pytest.raises(error, match=message):
        energy.explain(x)


# Explanations ---------------------------------------------------------------------------------------------------------------------------


def test_explain_gives_each_term_and_the_shares_of_branches(base):
    left, right = ce.as_energy(normal(-1.0, 1.0), name="left"), ce.as_energy(normal(1.0, 1.0), name="right")
    x = points()
    explanation = ((left | right) & LEAVES["ring"]).explain(x)
    branches = explanation.terms[0].terms
    assert [branch.expression for branch in branches] == ["left", "right"]
    torch.testing.assert_close(branches[0].share, torch.sigmoid(right(x) - left(x)))
    torch.testing.assert_close(branches[0].energy, left(x))
    assert "share" in str(explanation) and "left | right" in str(explanation)


def test_explain_shows_the_base_of_a_relative_leaf(base):
    tilt, x = Tilt(base, 0.5), points()
    explanation = tilt.explain(x)
    assert [term.expression for term in explanation.terms] == ["base", "Tilt"]
    torch.testing.assert_close(explanation.terms[0].energy + explanation.terms[1].energy, explanation.energy)


# Text -----------------------------------------------------------------------------------------------------------------------------------


def test_str_is_the_expression():
    a, b, c = (ce.as_energy(quadratic, name=name) for name in "abc")
    assert str(a & ~b | c) == "a & ~b | c"
    assert str(a & (~b | c)) == "a & (~b | c)"
    assert str(2 * (a | b)) == "2 * (a | b)"
    assert str(~(2 * a)) == "~(2 * a)"
    assert str(a - (b - c)) == "a - (b - c)"
    assert str((a & b).sharpened(2)) == "(a & b).sharpened(2)"
    assert str(a.relative_to(b)) == "a.relative_to(b)"
    assert str(a >> b) == "~a | b"


def test_repr_is_the_tree():
    a, b = (ce.as_energy(quadratic, name=name) for name in "ab")
    assert repr(a & ~b) == "Conjunction\n├─ CallableEnergy(a)\n└─ Negation(mode='power')\n   └─ CallableEnergy(b)"


def test_distributions_move_with_their_energy():
    energy = ce.as_energy(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    assert energy.to(torch.float64)(points()).dtype == torch.float64


class Embedded(nn.Module):
    """Two numbers that depend on a condition `z`, whose weights must have its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z) * x.sum(1, keepdim=True)


def test_bound_conditions_follow_the_points_also_where_to_does_not_reach_them():
    inner = Embedded()
    base = ce.as_energy(lambda x, z: inner(x, z).sum(1).square())
    events = [ce.ClassifierEnergy(Embedded(), 0, base).given(z=torch.ones(1, 3)) for _ in range(2)]
    for energy in (events[0], events[0] & events[1], events[0] | ~events[1]):
        inner.double()
        assert energy.double()(points()).dtype == torch.float64


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
