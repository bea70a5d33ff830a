"""Fitting of attributes: accuracy and calibration of heads, and labels that are refused."""

import pytest
import torch
from torch import nn
from torch.distributions import Uniform

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.testing import check_sampler
from composable_energy_latent import LACE, LabelError, attribute, fit_attributes, latent
from plugins.latent.tests.closed_case import direction, errors, logistic, moments
from tests.refusals import refusals


def base(prior=3):
    mixing = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    return latent(lambda w: torch.tanh(w @ mixing), prior, mapping=lambda z: z * torch.tensor([1.0, 2.0, 0.5]))


def labeller(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Three kinds of labels, functions of the picture."""
    return {"bright": x.mean(1) > 0, "side": (x[:, 0] > -0.5).long() + (x[:, 0] > 0.5).long(), "tone": x[:, 2]}


@pytest.fixture(scope="module")
def found():
    return fit_attributes(base(), labeller, values={"side": ("left", "middle", "right")}, count=4000, steps=800, seed=0)


@pytest.mark.full
def test_it_learns_labels_of_all_kinds(found):
    assert list(found) == ["bright", "side=left", "side=middle", "side=right", "tone"]
    report = found.report
    assert (report.pictures, report.held_out) == (4000, 400)
    for name in ("bright", "side", "tone"):
        assert report[name].accuracy > 0.93, report
        assert report[name].ece < 0.08, report
    assert str(report).splitlines()[-1].startswith("4000 pictures, 400 held out")


@pytest.mark.full
def test_draws_have_the_attributes_that_were_asked_for(found):
    E = found["bright"] & ~found["side=middle"]
    x = E.sample(400, sampler=LACE(), seed=0)
    truth = labeller(x)
    assert (truth["bright"] & (truth["side"] != 1)).float().mean() > 0.92
    at = found["tone"](0.5).sample(300, seed=0)[:, 2]
    assert abs(at.mean().item() - 0.5) < 0.1


@pytest.mark.slow
def test_a_seed_gives_the_same_heads():
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    first, again, other = (fit_attributes(base(), labeller, on="w", count=300, steps=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["bright"](z), again["bright"](z))
    assert not torch.equal(first["bright"](z), other["bright"](z))


@pytest.mark.full
def test_rounds_label_the_pictures_that_a_flow_is_led_to():
    seen, box = [], torch.distributions.Uniform(-torch.ones(3), torch.ones(3))

    def labels(x):
        seen.append(x)
        return labeller(x)

    found = fit_attributes(base(box), labels, on="w", count=2001, rounds=2, steps=300, seed=0)
    x = torch.cat(seen)
    assert len(x) == found.report.pictures == 2001 and found.report.held_out == 100
    shares = [(labeller(part)["side"] == 1).double().mean() for part in (x[:1001], x[1001:])]
    assert x.abs().max() < 1 and abs(shares[0] - shares[1]) < 0.1  # labels as frequent as before, from other latent points
    assert found.report["side"].accuracy > 0.9


def test_a_tensor_of_labels_has_names(capsys):
    found = fit_attributes(base(), lambda x: x[:, :2] > 0, names=("a", "b"), count=300, steps=10, progress=True)
    assert list(found) == ["a", "b"]
    assert "label" in (shown := capsys.readouterr().err) and "train" in shown
    with pytest.raises(OptionError, match="no attribute 'c'; known are a, b"):
        found["c"]


test_labels_that_teach_nothing_are_refused = refusals(
    (lambda x: {"rare": x[:, 0] > 2}, "Of 200 pictures 0 show rare, too few"),
    (lambda x: {"a": -(x[:, 0] > 0).long()}, "whole numbers from 0"),
    (lambda x: {"tone": x[:, 0] / 0 * 0}, "200 of 200 values of tone are not finite"),
    (lambda x: {"a": x > 0}, r"have shape \(200, 5\) for 200 pictures"),
    (lambda x: x > 0, "give one name for each column"),
    call=lambda labels: fit_attributes(base(), labels, count=200, steps=1),
    error=LabelError,
)


def test_other_wrong_arguments():
    plain = ce.as_energy(torch.distributions.Normal(torch.zeros(3), 1.0), decoder=nn.Linear(3, 4))
    with pytest.raises(LabelError, match="no Generator as its decoder"):
        fit_attributes(plain, labeller, count=200)
    for wrong in ({"on": "x"}, {"count": 5}, {"rounds": 2}, {"steps": 0}, {"width": 0}):
        with pytest.raises(OptionError):
            fit_attributes(base(), labeller, **{"count": 200, "steps": 1, **wrong})


@pytest.mark.full
@pytest.mark.parametrize(("d", "slope", "offset"), [(1, 2.0, 0.0), (2, 5.0, -2.5), (32, 2.0, 0.0), (8, 5.0, -2.5)])
@pytest.mark.parametrize("sampler", ["chees", LACE(draws=64)])
def test_draws_have_the_moments_of_the_posterior(d, slope, offset, sampler):
    E, a = logistic(d, slope, offset)
    z = E.latents.sample(4000, sampler=sampler, seed=0)
    truth = moments(slope, offset)
    assert max(errors(z @ a, truth)) < 4
    if d > 1:
        other = torch.linalg.svd(a[None])[2][1:]
        rest = z @ other.T
        assert (rest.mean(0).abs() < 4.5 / len(z) ** 0.5).all()
        assert ((rest.var(0) - 1).abs() < 4.5 * (2 / len(z)) ** 0.5).all()


@pytest.mark.slow
def test_the_prior_may_have_any_mean_and_scale():
    E, a = logistic(3, 2.0, 1.0, mean=-1.0, scale=0.5)
    z = E.latents.sample(500, sampler=LACE(draws=64), seed=0)
    along = moments(2.0, 1.0, float(-direction(3).sum()), 0.5)
    assert max(errors(z @ a, along)) < 4


def test_labels_of_each_chain_are_kept_apart():
    base = latent(torch.nn.Linear(1, 3), 1)
    side = ce.ClassifierEnergy(lambda z: 8 * z[:, 0], None, base, labels=2, name="side")
    y = torch.tensor([0, 1]).repeat(50)
    for draws in (0, 32):
        z = side.given(y=y).latents.sample(100, sampler=LACE(draws=draws), seed=0)
        assert ((z[:, 0] > 0) == y.bool()).float().mean() > 0.9
        assert torch.equal(z, side.given(y=y).latents.sample(100, sampler=LACE(draws=draws), seed=0))


def test_a_rare_expression_warns():
    E, _ = logistic(2, 30.0, -150.0)
    with pytest.warns(ce.SamplingWarning, match="raise `draws`"):
        E.latents.sample(8, sampler=LACE(draws=4), seed=0)


@pytest.mark.full
def test_a_uniform_prior_is_drawn_by_the_default_and_refused_by_the_flow():
    base = latent(torch.nn.Linear(2, 3), Uniform(-torch.ones(2), torch.ones(2)))
    right = attribute(base, lambda z: 10 * z[:, 0], "right")
    z = right.latents.sample(500, seed=0)
    assert (z.abs() <= 1).all() and (z[:, 0] > 0).float().mean() > 0.85
    with pytest.raises(ExpressionError, match="none with independent coordinates of shape"):
        right.sample(8, sampler=LACE(), seed=0)


@pytest.mark.slow
def test_the_flow_passes_the_checks_of_samplers():
    check_sampler(LACE(draws=4, mean=torch.zeros(()), scale=torch.ones(())))


def test_wrong_options_are_refused():
    for options in ({"draws": 3}, {"levels": 0}, {"tolerance": 0.0}):
        with pytest.raises(OptionError):
            LACE(**options)
