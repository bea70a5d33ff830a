"""Classifiers by energies, their attacks, calibration and scores of unusual points, against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch import nn

import composable_energy as ce
import composable_energy_classification as classification
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from tests.refusals import refusals, refused

scores = st.lists(st.integers(0, 6), min_size=1, max_size=12).map(lambda values: torch.tensor(values, dtype=torch.float32))


def gaussian(mean=0.0, deviation=1.0, dimension=1):
    return ce.as_energy(td.Normal(torch.full((dimension,), float(mean)), deviation), name=f"at {mean}")


def head(seed=0, labels=3, base=True, dtype=torch.float32):
    net = line(labels, 2, seed).to(dtype)
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
    classifier, x = classification.Classifier(energy), points(dtype=dtype)
    torch.testing.assert_close(classifier(x), net(x).log_softmax(1))
    torch.testing.assert_close(classifier.energy(x), x.square().sum(1) / 2)
    assert classifier.labels == (0, 1, 2) and torch.equal(classifier.predict(x), net(x).argmax(1))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4), st.floats(0.2, 5))
@settings(max_examples=10, deadline=None)
def test_densities_are_weighed_by_bayes_rule(means, temperature):
    densities = [td.Normal(torch.tensor([mean]), 1.0 + k) for k, mean in enumerate(means)]
    x = torch.linspace(-4, 4, 9)[:, None]
    logs = torch.stack([density.log_prob(x).squeeze(1) for density in densities], 1)
    found = classification.Classifier([ce.as_energy(density) for density in densities], temperature=temperature)
    torch.testing.assert_close(found(x), (logs / temperature).log_softmax(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.energy(x), -logs.logsumexp(1), rtol=1e-4, atol=1e-4)


def test_a_condition_is_inferred_as_by_infer():
    energy, x = ce.as_energy(conditional), points()[:, :1]
    classifier = classification.Classifier(energy, classes=[0, 2, 5])
    torch.testing.assert_close(classifier.probabilities(x), energy.infer(x, over={"y": [0, 2, 5]}).probabilities)
    assert classifier.labels == (0, 2, 5) and classification.Classifier(energy, classes=4).labels == (0, 1, 2, 3)
    named = ce.as_energy(lambda z, k: (z - k).square(), variables={"z": (), "k": ()}).infer({"z": torch.ones(1)}, over={"k": [1, 3]})
    torch.testing.assert_close(named.probabilities, torch.tensor([[0.0, -4.0]]).softmax(1))
    values = torch.tensor([[0.0], [2.0]])  # points of a continuous condition
    energy = ce.as_energy(lambda x, c: (x - c).square().sum(1) / 2)
    found = classification.Classifier(energy, over="c", classes=values)(torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, -2.0], [-0.5, -0.5]]).log_softmax(1))


def test_mixtures_and_lists_of_their_branches_agree():
    left, right = gaussian(-1), gaussian(1, 2.0)
    x = torch.linspace(-3, 3, 7)[:, None]
    mixture, listed = classification.Classifier(left | right), classification.Classifier({"left": left, "right": right})
    assert mixture.labels == ("at -1", "at 1") and listed.labels == ("left", "right")
    torch.testing.assert_close(mixture(x), listed(x))
    weighted = classification.Classifier(ce.any_of(left, right, weights=[0.9, 0.1]), classes=["left", "right"])
    torch.testing.assert_close(weighted(x), (listed(x) + torch.tensor([0.9, 0.1]).log()).log_softmax(1))


def test_exclusive_events_have_their_probabilities_given_one_of_them():
    net, energy = head(labels=4)
    low, high = energy.given(y=torch.tensor([0])) | energy.given(y=1), energy.given(y=3)
    x, p = points(), net(points()).softmax(1)
    expected = torch.stack([p[:, :2].sum(1), p[:, 3]], 1)
    classifier = classification.Classifier({"low": low, "high": high})
    torch.testing.assert_close(classifier.probabilities(x), expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(classifier.energy(x), x.square().sum(1) / 2 - expected.sum(1).log())
    torch.testing.assert_close(classification.Classifier([low, ~low]).probabilities(x)[:, 0], p[:, :2].sum(1))


def test_the_callers_network_is_evaluated_once_keeps_its_mode_and_shares_its_weights():
    calls, net = [], nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
    net.register_forward_hook(lambda *_: calls.append(1))
    classifier, x = classification.Classifier(ce.ClassifierEnergy(net, labels=3)), points()
    classifier.probabilities(x)
    assert len(calls) == 1 and net.training and torch.equal(classifier.train()(x), classifier(x))
    before = classifier(x)
    with torch.no_grad():
        net[0].bias += torch.tensor([1.0, 0.0, -1.0])
    assert not torch.allclose(before, classifier(x)) and net.training


def test_offsets_stand_for_priors():
    x, prior = torch.linspace(-2, 2, 5)[:, None], torch.tensor([0.2, 0.8])
    even = classification.Classifier([gaussian(-1), gaussian(1)])
    skewed = classification.Classifier([gaussian(-1), gaussian(1)], offsets=prior.log())
    torch.testing.assert_close(skewed(x), (even(x) + prior.log()).log_softmax(1))
    mixture = td.MixtureSameFamily(td.Categorical(prior), td.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    torch.testing.assert_close(skewed.energy(x), -mixture.log_prob(x.squeeze(1)))


def test_abstention_keeps_the_share_of_held_out_points():
    classifier = classification.Classifier([gaussian(-2), gaussian(2)])
    held_out = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) + 2
    careful = classifier.abstaining(held_out, keep=0.9)
    assert (careful.predict(held_out) >= 0).float().mean() == pytest.approx(0.9, abs=0.002)
    assert careful.predict(torch.tensor([[2.0], [-2.0], [40.0]])).tolist() == [1, 0, -1] and classifier.threshold is None


def test_points_of_no_class_are_refused_or_abstained_from():
    inside = [ce.as_energy(lambda x, m=m: (x - m).square().sum(1), support=td.constraints.positive) for m in (1.0, 2.0)]
    with pytest.warns(classification.CalibrationWarning, match="unknown normalisers"):
        classifier = classification.Classifier(inside, threshold=100.0)
    x = torch.tensor([[1.0], [-1.0]])
    assert classifier.predict(x).tolist() == [0, -1]
    refused(ExpressionError, "impossible at 1 of 2 points", classifier.probabilities, x)


def test_refined_probabilities_do_not_depend_on_the_batch():
    _, energy = head()
    refined = classification.Classifier(energy).refined(steps=3, step_size=0.1, draws=3, seed=5)
    x = points()
    torch.testing.assert_close(refined.probabilities(x, batch_size=7), refined.probabilities(x))
    assert torch.equal(refined.predict(x, batch_size=7), refined.probabilities(x).argmax(1))
    assert not torch.allclose(refined(x, seed=6), refined(x)) and torch.allclose(refined.plain(x), classification.Classifier(energy)(x))
    careful = refined.abstaining(x, keep=0.5)
    kept = careful.predict(x, batch_size=7) >= 0
    assert torch.equal(careful.predict(x)[kept], refined.predict(x)[kept]), "a point has the noise of its own row"


test_bad_classifiers_are_refused = refusals(
    (lambda: gaussian(0), {}, "no condition y"),
    (lambda: ce.as_energy(conditional), {}, "Say which values"),
    (lambda: ce.as_energy(conditional), {"classes": [1]}, "two classes or more"),
    (lambda: ce.as_energy(lambda x, y, sigma: x[:, 0] * y * sigma), {"classes": 2}, "also depends on sigma"),
    (lambda: [gaussian(0), gaussian(1)], {"classes": ["one"]}, "one for each"),
    (lambda: [(e := head()[1]).given(y=0), e.given(y=0) | e.given(y=1)], {}, "may hold together"),
    (lambda: [gaussian(0), gaussian(1)], {"offsets": [1.0, math.nan]}, "finite"),
    call=lambda energy, options: classification.Classifier(energy(), **options),
    error=OptionError,
)


def test_bad_points_are_refused():
    classifier = classification.Classifier([gaussian(0), gaussian(1)])
    for bad, error in (([1.0], DtypeError), (torch.empty(0, 1), ShapeError), (torch.zeros(3, 2), ShapeError)):
        for method in (classifier.predict, classifier.probabilities, classifier.energy):
            refused(error, None, method, bad)
    with pytest.raises(ExpressionError, match="not a number at 1 of 2"):
        classification.Classifier(ce.as_energy(conditional), classes=2)(torch.tensor([[0.0], [math.nan]]))
    refused(ExpressionError, "needs values", classification.Classifier, ce.ScoreEnergy(lambda x, y: -x * y[:, None]), classes=2)
    refused(OptionError, "got both", classifier.refined, classification.Refinement(), steps=3)


CHAINS = 20_000


def refine(energy, x, **options):
    return classification.Refinement(**options)(energy, x)


def bowl(width=1.0):
    return ce.as_energy(lambda x: x.square().sum(1) / (2 * width**2))


def line(labels=2, dimension=4, seed=0):
    generator, net = torch.Generator().manual_seed(seed), nn.Linear(dimension, labels)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return net


def test_refinement_has_the_moments_of_langevin():
    """After n steps from x the mean is a^n x and the variance the sum of lambda a^2k, with a = 1 - lambda / 2."""
    step, steps = 0.2, 5
    a = 1 - step / 2
    found = refine(bowl(), torch.full((CHAINS, 1), 3.0), steps=steps, step_size=step, seed=1)
    variance = sum(step * a ** (2 * k) for k in range(steps))
    assert abs(found.mean() - 3 * a**steps) < 4 * math.sqrt(variance / CHAINS)
    assert abs(found.var() - variance) < 4 * variance * math.sqrt(2 / CHAINS)


def test_refinement_can_be_differentiated_through_its_noise():
    energy = ce.as_energy(lambda x: x.pow(4).sum(1))
    refinement, x = classification.Refinement(steps=4, step_size=0.05), torch.tensor([[0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda points: refinement(energy, points, graph=True), (x,))


def test_refinement_stays_within_its_clamp_and_refuses_what_diverges():
    positive = ce.as_energy(lambda x: x.sum(1), support=td.constraints.positive)
    refused(OptionError, "give the refinement a `clamp`", refine, positive, torch.ones(2, 1))
    found = refine(positive, torch.ones(100, 1), steps=20, step_size=0.5, clamp=(0.1, 2.0))
    assert found.min() >= 0.1 and found.max() <= 2.0 and found.std() > 0.1
    refused(ExpressionError, "smaller step_size", refine, bowl(0.01), torch.ones(2, 1), steps=200, step_size=10.0)


def test_a_classifier_without_a_base_has_no_density_to_refine_on():
    """Its classes exhaust, so that the energy of points of any class is 0, and its gradient only rounding."""
    refined = classification.Classifier(ce.ClassifierEnergy(line(), labels=2)).refined(steps=2)
    refused(ExpressionError, "gradient", refined.probabilities, torch.rand(3, 4))


@pytest.mark.parametrize("norm, dual, loss, dtype", [("linf", 1, "margin", torch.float32), ("l2", 2, "cross-entropy", torch.float64)])
def test_the_worst_point_of_a_linear_classifier_is_found(norm, dual, loss, dtype):
    """In a ball of radius r the margin of two classes grows by r times the dual norm of the difference of their weights."""
    net, radius = line().to(dtype), 0.3
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    y = net(x).argmax(1)
    attacked = classification.pgd(net, x, y, radius, norm=norm, loss=loss, bounds=None, step_size=10 * radius)
    difference = net.weight[1] - net.weight[0]
    sign = 1 - 2.0 * y.to(dtype)
    margin = lambda points: sign * (net(points)[:, 1] - net(points)[:, 0])
    torch.testing.assert_close(margin(attacked) - margin(x), radius * difference.norm(dual).expand(20), rtol=1e-3, atol=1e-4)
    assert ((attacked - x).abs().amax(1) if norm == "linf" else (attacked - x).norm(dim=1)).max() <= radius * (1 + 1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacked_points_stay_within_bounds_and_the_ball(norm):
    net, x = line(labels=3), torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    attacked = classification.pgd(net, x, net(x).argmax(1), 0.4, norm=norm, steps=7, restarts=2)
    change = attacked - x
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert (change.abs().amax(1) if norm == "linf" else change.norm(dim=1)).max() <= 0.4 * (1 + 1e-5)
    assert (net(attacked).argmax(1) != net(x).argmax(1)).any(), "the attack changes the class of a point"


def test_a_module_is_attacked_in_eval_mode_and_keeps_its_own():
    net, x = nn.Sequential(line(), nn.Dropout(0.9)), torch.rand(20, 4)
    y = net.eval()(x).argmax(1)
    net.train()
    attacked = classification.pgd(net, x, y, 0.5, steps=10, bounds=None)
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(attacked, classification.pgd(net[0], x, y, 0.5, steps=10, bounds=None))


def test_the_adaptive_attack_sees_what_the_refinement_does():
    """The step removes coordinate 0, which the plain classifier reads most: its attack changes coordinate 1 by a tenth of the radius."""
    base = ce.as_energy(lambda x: x[:, 0].square() / 2)
    weights = torch.tensor([[10.0, -10.0], [1.0, -1.0]])
    classifier = classification.Classifier(ce.ClassifierEnergy(lambda x: x @ weights, base=base, labels=2))
    refined = classifier.refined(steps=1, step_size=2.0, temperature=1e-5, draws=2)
    x = torch.cat([torch.zeros(20, 1), torch.linspace(0.1, 0.4, 20)[:, None]], 1)
    y = torch.zeros(20, dtype=torch.int64)
    options = {"norm": "l2", "bounds": None, "steps": 10, "step_size": 1.0}
    adaptive, unaware = (refined.predict(classification.pgd(model, x, y, 0.5, draws=2, **options)) for model in (refined, refined.plain))
    assert torch.equal(refined.predict(x), y) and torch.equal(unaware, y) and torch.equal(adaptive, 1 - y)


ATTACK = {"model": line(), "x": torch.rand(3, 4), "y": torch.tensor([0, 1, 0]), "radius": 0.1}
test_bad_attacks_are_refused = refusals(
    ({"x": [0.5]}, DtypeError, None),
    ({"radius": -1.0}, OptionError, None),
    ({"bounds": (0.5, 1.0)}, OptionError, None),
    ({"y": torch.tensor([0, 1])}, ShapeError, None),
    ({"y": torch.tensor([0, 1, 2])}, OptionError, None),
    ({"model": lambda x: x.sum(1)}, ShapeError, None),
    ({"model": lambda x: x.detach()}, ExpressionError, None),
    call=lambda options: classification.pgd(**{**ATTACK, **options}),
)


def drawn_labels(logits, seed=0):
    return torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)


def test_temperature_and_offsets_of_drawn_labels_are_found():
    """The standard error of log T is at most 1 / sqrt(n I) with the information I of log T; here about .02."""
    energies = 3 * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    labels, impossible = drawn_labels(-energies / 0.3), torch.full((20_000, 1), torch.inf)
    assert (found := classification.fit_probabilities(energies, labels)[0]) == pytest.approx(0.3, rel=0.08)
    shared, columns = 1e9 * torch.rand(20_000, 1).double(), (energies, impossible, impossible.clamp(max=1e30))
    assert classification.fit_probabilities(torch.cat(columns, 1) + shared, labels)[0] == pytest.approx(found)
    wanted, energies = torch.tensor([1.0, -2.0, 1.0]), 2 * torch.randn(20_000, 3, generator=torch.Generator().manual_seed(2))
    temperature, offsets = classification.fit_probabilities(energies, drawn_labels((wanted - energies) / 1.5), offsets=True)
    assert temperature == pytest.approx(1.5, rel=0.08) and torch.allclose(offsets, wanted.double(), atol=0.2)
    with pytest.warns(classification.CalibrationWarning, match="all of them are classified right"):
        assert classification.fit_probabilities(torch.eye(3) * -5, torch.arange(3))[0] == 1.0


def test_calibration_mends_normalisers_and_lowers_the_error():
    """Two Gaussians without their constants: the offsets are the logarithms of prior over normaliser, log(.9 / .1) - log(1 / 3)."""
    generator = torch.Generator().manual_seed(3)
    y = (torch.rand(4000, generator=generator) < 0.1).long()
    x = torch.where(y == 0, torch.randn(4000, generator=generator), 3 * torch.randn(4000, generator=generator))[:, None]
    first = classification.Classifier(ce.as_energy(lambda x, y: x[:, 0].square() / 2 / (1 + 8 * y.to(x))), classes=2)
    mended = first.calibrated(x[:2000], y[:2000], offsets=True)
    before, after = (classification.calibration_error(found.probabilities(x[2000:]), y[2000:]) for found in (first, mended))
    assert after < 0.03 < before and mended.offsets[0] - mended.offsets[1] == pytest.approx(math.log(27), abs=0.5)
    assert first.offsets is None and mended.calibrated(x[:2000], y[:2000]).temperature == pytest.approx(mended.temperature, rel=1e-3)
    refused(OptionError, "first, then `abstaining`", first.abstaining(x).calibrated, x, y, offsets=True)


test_bad_held_out_points_are_refused = refusals(
    (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 1.0]), False, DtypeError, None),
    (torch.zeros(3, 2), torch.tensor([0, 0, 0]), True, OptionError, None),
    (torch.tensor([[torch.inf, 0.0]]), torch.tensor([0]), False, ExpressionError, None),
    *((torch.tensor([[energy, 0.0]]), torch.tensor([1]), False, ExpressionError, None) for energy in (torch.nan, -torch.inf)),
    call=lambda energies, y, offsets: classification.fit_probabilities(energies, y, offsets=offsets),
)


def test_the_calibration_error_is_the_mean_gap():
    p = torch.tensor([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10)
    y = torch.tensor([0] * 6 + [1] * 4 + [1] * 6 + [0] * 4)
    assert classification.calibration_error(p.numpy(), y) == pytest.approx(0.5 * 0.3 + 0.5 * 0, abs=1e-6)
    assert classification.calibration_error(p.bfloat16(), y.to(torch.uint16)) == pytest.approx(0.5 * 0.3, abs=3e-3)


@given(scores, scores)
@settings(max_examples=25, deadline=None)
def test_the_area_is_the_share_of_pairs_in_order(inside, outside):
    pairs = outside[:, None] - inside[None, :]
    assert classification.auroc(inside, outside) == pytest.approx(float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2))
    assert classification.auroc(inside, outside) == pytest.approx(1 - classification.auroc(outside, inside))
    assert classification.auroc(inside, torch.tensor([torch.inf])) == 1


@given(scores, scores)
@settings(max_examples=25, deadline=None)
def test_false_positives_are_those_below_the_least_threshold_that_keeps_the_data(inside, outside):
    kept = [t for t in inside.tolist() if (inside <= t).double().mean() >= 0.95 - 1e-9]
    assert classification.fpr_at_95(inside, outside) == pytest.approx(float((outside <= min(kept)).double().mean()))


def test_scores_of_gaussians_have_closed_forms():
    x, data = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), gaussian(dimension=2)
    torch.testing.assert_close(classification.energy_score(data, x), torch.tensor([0.0, 12.5]) + math.log(2 * math.pi))
    net = nn.Linear(2, 3).double()
    classifier, x = classification.Classifier(ce.ClassifierEnergy(net, base=data.double(), labels=3)), 30 * torch.randn(20, 2).double()
    p = net(x).softmax(1)
    others = p.sum(1) - p.amax(1)  # count where the greatest is 1 up to rounding
    found = classification.uncertainty_score(classifier.float(), x.float()).double()
    torch.testing.assert_close(found, -torch.log1p(-others), rtol=1e-3, atol=1e-9)


ZEROS, HALVES = torch.zeros(3), torch.full((3, 2), 0.5)
BAD_SCORES = ((torch.zeros(0), ShapeError), (torch.zeros(2, 2), ShapeError), (ZEROS / 0, OptionError), ([1.0], DtypeError))
METRICS = (classification.auroc, classification.fpr_at_95)
test_bad_scores_and_options_are_refused = refusals(
    *((lambda metric=metric, bad=bad: metric(ZEROS, bad), error, None) for metric in METRICS for bad, error in BAD_SCORES),
    *((lambda p=p: classification.calibration_error(p, ZEROS.long()), OptionError, None) for p in (HALVES.log(), 2 * HALVES)),
    (lambda: classification.calibration_error(HALVES[:, 0], ZEROS.long()), ShapeError, None),
    (lambda: classification.auroc(ZEROS + 1j, ZEROS), DtypeError, "real numbers"),
    (lambda: classification.pgd(nn.Identity(), HALVES, ZEROS.long(), 0.1, bounds=1.0), OptionError, "bounds must be"),
    *((lambda wrong=wrong: classification.Refinement(**wrong), OptionError, None) for wrong in ({"steps": 0}, {"temperature": -1})),
    (lambda: classification.Refinement(clamp=(1, 0)), OptionError, None),
    (lambda: refine(bowl(), [1.0]), DtypeError, None),
    (lambda: classification.energy_score(lambda x: x.sum(1).sqrt(), torch.tensor([[1.0], [-1.0]])), ExpressionError, "1 of 2 points"),
)
