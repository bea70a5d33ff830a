"""Fitting of attributes: accuracy and calibration of heads, and labels that are refused."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_latent import LACE, LabelError, fit_attributes, latent


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


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (lambda x: {"rare": x[:, 0] > 2}, "Of 200 pictures 0 show rare, too few"),
        (lambda x: {"a": -(x[:, 0] > 0).long()}, "whole numbers from 0"),
        (lambda x: {"tone": x[:, 0] / 0 * 0}, "200 of 200 values of tone are not finite"),
        (lambda x: {"a": x > 0}, r"have shape \(200, 5\) for 200 pictures"),
        (lambda x: x > 0, "give one name for each column"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels, says):
    with pytest.raises(LabelError, match=says):
        fit_attributes(base(), labels, count=200, steps=1)


def test_other_wrong_arguments():
    plain = ce.as_energy(torch.distributions.Normal(torch.zeros(3), 1.0), decoder=nn.Linear(3, 4))
    with pytest.raises(LabelError, match="no Generator as its decoder"):
        fit_attributes(plain, labeller, count=200)
    for wrong in ({"on": "x"}, {"count": 5}, {"rounds": 2}, {"steps": 0}, {"width": 0}):
        with pytest.raises(OptionError):
            fit_attributes(base(), labeller, **{"count": 200, "steps": 1, **wrong})
