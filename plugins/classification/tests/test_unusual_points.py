"""Calibration, scores of unusual points, and their metrics, against closed forms and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy_classification import (
    CalibrationWarning,
    Classifier,
    auroc,
    calibration_error,
    energy_score,
    fit_probabilities,
    fpr_at_95,
    gradient_score,
    histogram,
    relative_score,
    typicality_score,
    uncertainty_score,
)

scores = st.lists(st.integers(0, 6), min_size=1, max_size=12).map(lambda values: torch.tensor(values, dtype=torch.float32))


def gaussian(mean=0.0, deviation=1.0, dimension=1):
    return ce.as_energy(torch.distributions.Normal(torch.full((dimension,), mean), deviation))


def drawn_labels(logits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def test_temperature_and_offsets_of_drawn_labels_are_found():
    """The standard error of log T is at most 1 / sqrt(n I) with the information I of log T; here about .02."""
    energies = 3 * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    assert fit_probabilities(energies, drawn_labels(-energies / 0.3))[0] == pytest.approx(0.3, rel=0.08)
    wanted, energies = torch.tensor([1.0, -2.0, 1.0]), 2 * torch.randn(20_000, 3, generator=torch.Generator().manual_seed(2))
    temperature, offsets = fit_probabilities(energies, drawn_labels((wanted - energies) / 1.5), offsets=True)
    assert temperature == pytest.approx(1.5, rel=0.08) and torch.allclose(offsets, wanted.double(), atol=0.2)


def test_calibration_mends_normalisers_and_lowers_the_error():
    """Two Gaussians without their constants: the offsets are the logarithms of prior over normaliser, log(.9 / .1) - log(1 / 3)."""
    generator = torch.Generator().manual_seed(3)
    y = (torch.rand(4000, generator=generator) < 0.1).long()
    x = torch.where(y == 0, torch.randn(4000, generator=generator), 3 * torch.randn(4000, generator=generator))[:, None]
    energy = ce.as_energy(lambda x, y: x[:, 0].square() / 2 / (1 + 8 * y.to(x)))
    first = Classifier(energy, classes=2)
    mended = first.calibrated(x[:2000], y[:2000], offsets=True)
    before, after = (calibration_error(found.probabilities(x[2000:]), y[2000:]) for found in (first, mended))
    assert after < 0.03 < before
    assert mended.offsets[0] - mended.offsets[1] == pytest.approx(math.log(27), abs=0.5)
    assert first.offsets is None and mended.calibrated(x[:2000], y[:2000]).temperature == pytest.approx(mended.temperature, rel=1e-3)
    with pytest.raises(OptionError, match="first, then `abstaining`"):
        first.abstaining(x).calibrated(x, y, offsets=True)


@pytest.mark.parametrize(
    ("energies", "y", "offsets", "error"),
    [
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 1.0]), False, DtypeError),
        (torch.zeros(3, 2), torch.tensor([0, 0, 0]), True, OptionError),
        (torch.tensor([[torch.inf, 0.0]]), torch.tensor([0]), False, ExpressionError),
        (torch.tensor([[torch.nan, 0.0]]), torch.tensor([1]), False, ExpressionError),
    ],
)
def test_bad_held_out_points_are_refused(energies, y, offsets, error):
    with pytest.raises(error):
        fit_probabilities(energies, y, offsets=offsets)
    with pytest.warns(CalibrationWarning, match="all of them are classified right"):
        assert fit_probabilities(torch.eye(3) * -5, torch.arange(3))[0] == 1.0


def test_the_calibration_error_is_the_mean_gap():
    p = torch.tensor([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10)
    y = torch.tensor([0] * 6 + [1] * 4 + [1] * 6 + [0] * 4)
    assert calibration_error(p, y) == pytest.approx(0.5 * 0.3 + 0.5 * 0, abs=1e-6)
    for bad in (p.log(), p[:, 0], 2 * p):
        with pytest.raises((OptionError, ShapeError)):
            calibration_error(bad, y)


@given(scores, scores)
@settings(max_examples=25, deadline=None)
def test_the_area_is_the_share_of_pairs_in_order(inside, outside):
    pairs = outside[:, None] - inside[None, :]
    assert auroc(inside, outside) == pytest.approx(float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2))
    assert auroc(inside, outside) == pytest.approx(1 - auroc(outside, inside))


@given(scores, scores)
@settings(max_examples=25, deadline=None)
def test_false_positives_are_those_below_the_least_threshold_that_keeps_the_data(inside, outside):
    kept = [t for t in inside.tolist() if (inside <= t).double().mean() >= 0.95 - 1e-9]
    assert fpr_at_95(inside, outside) == pytest.approx(float((outside <= min(kept)).double().mean()))


@given(scores, scores, st.sampled_from([0.0, 0.1]))
@settings(max_examples=15, deadline=None)
def test_histograms_count_every_score(inside, outside, trim):
    found = histogram(inside, outside, bins=5, trim=trim)
    assert float(found.inside.sum()) == pytest.approx(1) and float(found.outside.sum()) == pytest.approx(1)
    assert found.edges.shape == (6,) and bool((found.edges.diff() > 0).all())
    if trim == 0:
        first = (inside < found.edges[1]).double().mean()
        assert float(found.inside[0]) == pytest.approx(float(first), abs=1e-9)


def test_bad_scores_are_refused():
    good = torch.zeros(3)
    for metric in (auroc, fpr_at_95, histogram):
        for bad, error in ((torch.zeros(0), ShapeError), (torch.zeros(2, 2), ShapeError), (good / 0, OptionError), ([1.0], DtypeError)):
            with pytest.raises(error):
                metric(good, bad)
    assert auroc(good, torch.tensor([torch.inf])) == 1
    with pytest.raises(OptionError, match="infinite"):
        histogram(good, torch.tensor([torch.inf]))
    with pytest.raises(OptionError, match="kept"):
        fpr_at_95(good, good, kept=1.5)


def test_scores_of_gaussians_have_closed_forms():
    x, data, wide = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), gaussian(dimension=2), gaussian(0.0, 5.0, dimension=2)
    torch.testing.assert_close(energy_score(data, x), torch.tensor([0.0, 12.5]) + math.log(2 * math.pi))
    torch.testing.assert_close(gradient_score(data, x), torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(relative_score(data, wide, x), torch.tensor([0.0, 12.0]) - 2 * math.log(5.0))
    reference = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # energies 1 and 4 above that of the origin
    torch.testing.assert_close(typicality_score(data, reference, x), torch.tensor([2.5, 10.0]))
    torch.testing.assert_close(gradient_score(ce.ScoreEnergy(lambda x: -x), x), torch.tensor([0.0, 5.0]))
    net = nn.Linear(2, 3).double()
    classifier, x = Classifier(ce.ClassifierEnergy(net, base=data.double(), labels=3)), 30 * torch.randn(20, 2).double()
    p = net(x).softmax(1)
    others = p.sum(1) - p.amax(1)  # count where the greatest is 1 up to rounding
    torch.testing.assert_close(uncertainty_score(classifier.float(), x.float()).double(), -torch.log1p(-others), rtol=1e-3, atol=1e-9)


def test_scores_that_are_not_numbers_are_refused():
    energy = ce.as_energy(lambda x: x.sum(1).sqrt())
    with pytest.raises(ExpressionError, match="1 of 2 points"):
        energy_score(energy, torch.tensor([[1.0], [-1.0]]))
    with pytest.raises(ShapeError, match="reference"):
        typicality_score(gaussian(), torch.zeros(0, 1), torch.zeros(2, 1))
    with pytest.raises(ExpressionError, match="reference points"):
        typicality_score(energy, torch.tensor([[-1.0]]), torch.ones(2, 1))
