"""Classifiers by energies against closed forms: Gaussians, events, conditions."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import composable_energy as ce
from composable_energy.errors import ContradictionError, DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy_classification import CalibrationWarning, Classifier, Refinement


def gaussian(mean, deviation=1.0):
    return ce.as_energy(torch.distributions.Normal(torch.tensor([float(mean)]), deviation), name=f"at {mean}")


def head(seed=0, labels=3, base=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(2, labels).to(dtype)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    prior = ce.as_energy(lambda x: x.square().sum(1) / 2, name="prior") if base else None
    return net, ce.ClassifierEnergy(net, base=prior, labels=labels, name="label")


def points(count=50, seed=1, dtype=torch.float32):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)


def conditional(x, y):
    """Gaussians at the labels, which have equal normalisers."""
    return (x[:, 0] - y.to(x)).square() / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_classes_of_a_head_have_its_probabilities_and_the_energy_of_its_base(dtype):
    net, energy = head(dtype=dtype)
    classifier, x = Classifier(energy), points(dtype=dtype)
    torch.testing.assert_close(classifier(x), net(x).log_softmax(1))
    torch.testing.assert_close(classifier.energy(x), x.square().sum(1) / 2)
    assert classifier.labels == (0, 1, 2) and torch.equal(classifier.predict(x), net(x).argmax(1))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4), st.floats(0.2, 5))
@settings(max_examples=10, deadline=None)
def test_densities_are_weighed_by_bayes_rule(means, temperature):
    densities = [torch.distributions.Normal(torch.tensor([mean]), 1.0 + k) for k, mean in enumerate(means)]
    x = torch.linspace(-4, 4, 9)[:, None]
    logs = torch.stack([density.log_prob(x).squeeze(1) for density in densities], 1)
    found = Classifier([ce.as_energy(density) for density in densities], temperature=temperature)
    torch.testing.assert_close(found(x), (logs / temperature).log_softmax(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.energy(x), -logs.logsumexp(1), rtol=1e-4, atol=1e-4)


def test_a_condition_is_inferred_as_by_infer():
    energy, x = ce.as_energy(conditional), points()[:, :1]
    classifier = Classifier(energy, classes=[0, 2, 5])
    torch.testing.assert_close(classifier.probabilities(x), energy.infer(x, over={"y": [0, 2, 5]}).probabilities)
    assert classifier.labels == (0, 2, 5) and Classifier(energy, classes=4).labels == (0, 1, 2, 3)
    values = torch.tensor([[0.0], [2.0]])  # points of a continuous condition
    energy = ce.as_energy(lambda x, c: (x - c).square().sum(1) / 2)
    found = Classifier(energy, over="c", classes=values)(torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, -2.0], [-0.5, -0.5]]).log_softmax(1))


def test_mixtures_and_lists_of_their_branches_agree():
    left, right = gaussian(-1), gaussian(1, 2.0)
    x = torch.linspace(-3, 3, 7)[:, None]
    mixture, listed = Classifier(left | right), Classifier({"left": left, "right": right})
    assert mixture.labels == ("at -1", "at 1") and listed.labels == ("left", "right")
    torch.testing.assert_close(mixture(x), listed(x))
    weighted = Classifier(ce.any_of(left, right, weights=[0.9, 0.1]), classes=["left", "right"])
    torch.testing.assert_close(weighted(x), (listed(x) + torch.tensor([0.9, 0.1]).log()).log_softmax(1))


def test_exclusive_events_have_their_probabilities_given_one_of_them():
    net, energy = head(labels=4)
    low, high = energy.given(y=torch.tensor([0])) | energy.given(y=1), energy.given(y=3)
    x, p = points(), net(points()).softmax(1)
    expected = torch.stack([p[:, :2].sum(1), p[:, 3]], 1)
    classifier = Classifier({"low": low, "high": high})
    torch.testing.assert_close(classifier.probabilities(x), expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(classifier.energy(x), x.square().sum(1) / 2 - expected.sum(1).log())
    torch.testing.assert_close(Classifier([low, ~low]).probabilities(x)[:, 0], p[:, :2].sum(1))


def test_the_callers_network_is_evaluated_once_keeps_its_mode_and_shares_its_weights():
    calls, net = [], nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    net.register_forward_hook(lambda *_: calls.append(1))
    classifier, x = Classifier(ce.ClassifierEnergy(net, labels=3)), points()
    classifier.probabilities(x)
    assert len(calls) == 1 and net.training and torch.equal(classifier.train()(x), classifier(x))
    before = classifier(x)
    with torch.no_grad():
        net[0].bias += torch.tensor([1.0, 0.0, -1.0])
    assert not torch.allclose(before, classifier(x)) and net.training


def test_a_copied_classifier_classifies_alike():
    _, energy = head()
    classifier = Classifier(energy, offsets=[0.0, 1.0, 2.0], temperature=2.0)
    assert torch.equal(copy.deepcopy(classifier)(points()), classifier(points()))
    torch.testing.assert_close(
        classifier.double()(points().double()).float(), Classifier(energy.float(), offsets=[0, 1, 2], temperature=2)(points())
    )


def test_offsets_stand_for_priors():
    x, prior = torch.linspace(-2, 2, 5)[:, None], torch.tensor([0.2, 0.8])
    even = Classifier([gaussian(-1), gaussian(1)])
    skewed = Classifier([gaussian(-1), gaussian(1)], offsets=prior.log())
    torch.testing.assert_close(skewed(x), (even(x) + prior.log()).log_softmax(1))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(prior), torch.distributions.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    )
    torch.testing.assert_close(skewed.energy(x), -mixture.log_prob(x.squeeze(1)))


def test_abstention_keeps_the_share_of_held_out_points():
    classifier = Classifier([gaussian(-2), gaussian(2)])
    held_out = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) + 2
    careful = classifier.abstaining(held_out, keep=0.9)
    assert (careful.predict(held_out) >= 0).float().mean() == pytest.approx(0.9, abs=0.002)
    assert careful.predict(torch.tensor([[2.0], [-2.0], [40.0]])).tolist() == [1, 0, -1] and classifier.threshold is None


def test_points_of_no_class_are_refused_or_abstained_from():
    inside = [ce.as_energy(lambda x, m=m: (x - m).square().sum(1), support=torch.distributions.constraints.positive) for m in (1.0, 2.0)]
    with pytest.warns(CalibrationWarning, match="unknown normalisers"):
        classifier = Classifier(inside, threshold=100.0)
    x = torch.tensor([[1.0], [-1.0]])
    assert classifier.predict(x).tolist() == [0, -1]
    with pytest.raises(ExpressionError, match="impossible at 1 of 2 points"):
        classifier.probabilities(x)


def test_an_impossible_class_has_probability_0():
    net, energy = head()
    never = energy.given(y=0) & energy.given(y=1)
    classifier = Classifier([never, energy.given(y=0), energy.given(y=2)])
    p = net(points()).softmax(1)[:, [0, 2]]
    torch.testing.assert_close(classifier.probabilities(points())[:, 1:], p / p.sum(1, keepdim=True))
    with pytest.raises((ContradictionError, ExpressionError)):
        Classifier([never, never & energy.given(y=2)]).probabilities(points())


def test_refined_probabilities_do_not_depend_on_the_batch():
    _, energy = head()
    refined = Classifier(energy).refined(steps=3, step_size=0.1, draws=3, seed=5)
    x = points()
    torch.testing.assert_close(refined.probabilities(x, batch_size=7), refined.probabilities(x))
    assert torch.equal(refined.predict(x, batch_size=7), refined.probabilities(x).argmax(1))
    assert not torch.allclose(refined(x, seed=6), refined(x)) and torch.allclose(refined.plain(x), Classifier(energy)(x))
    careful = refined.abstaining(x, keep=0.5)
    kept = careful.predict(x, batch_size=7) >= 0
    assert torch.equal(careful.predict(x)[kept], refined.predict(x)[kept]), "a point has the noise of its own row"


@pytest.mark.parametrize(
    ("energy", "options", "message"),
    [
        (lambda: gaussian(0), {}, "no condition y"),
        (lambda: ce.as_energy(conditional), {}, "Say which values"),
        (lambda: ce.as_energy(conditional), {"classes": [1]}, "two classes or more"),
        (lambda: ce.as_energy(lambda x, y, sigma: x[:, 0] * y * sigma), {"classes": 2}, "also depends on sigma"),
        (lambda: [gaussian(0), gaussian(1)], {"classes": ["one"]}, "one for each"),
        (lambda: "faces", {}, "takes an energy"),
        (lambda: [(e := head()[1]).given(y=0), e.given(y=0) | e.given(y=1)], {}, "may hold together"),
        (lambda: [gaussian(0), gaussian(1)], {"offsets": [1.0, math.nan]}, "finite"),
        (lambda: [gaussian(0), gaussian(1)], {"refinement": 3}, "refinement"),
    ],
)
def test_bad_classifiers_are_refused(energy, options, message):
    with pytest.raises(OptionError, match=message):
        Classifier(energy(), **options)


def test_bad_points_are_refused():
    classifier = Classifier([gaussian(0), gaussian(1)])
    for bad, error in (([1.0], DtypeError), (torch.empty(0, 1), ShapeError), (torch.zeros(3, 2), ShapeError)):
        for method in (classifier.predict, classifier.probabilities, classifier.energy):
            with pytest.raises(error):
                method(bad)
    with pytest.raises(ExpressionError, match="not a number at 1 of 2"):
        Classifier(ce.as_energy(conditional), classes=2)(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ExpressionError, match="needs values"):
        Classifier(ce.ScoreEnergy(lambda x, y: -x * y[:, None]), classes=2)
    with pytest.raises(OptionError, match="got both"):
        classifier.refined(Refinement(), steps=3)


def test_the_core_builds_the_classifier_of_the_plug_in():
    found = ce.classifier([gaussian(-1), gaussian(1)], temperature=2.0)
    assert isinstance(found, Classifier) and found.temperature == 2.0
