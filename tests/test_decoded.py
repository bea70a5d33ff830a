"""An energy of latent points that is shown decoded: it is the same density, and `as_energy(prior, decoder=g)` makes one of any prior."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Normal, Uniform

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

Z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def bowl() -> ce.Energy:
    return ce.as_energy(Normal(torch.zeros(2), 1.0), name="bowl")


@pytest.mark.parametrize("kind", ["absolute", "relative", "score", "support"])
def test_it_has_the_values_gradients_and_structure_of_its_energy(kind):
    E = {
        "absolute": bowl(),
        "relative": ce.ClassifierEnergy(lambda z: z, 1, bowl()),
        "score": ce.ScoreEnergy(lambda z: -z, event_shape=(2,)),
        "support": ce.as_energy(Uniform(-3 * torch.ones(2), 3 * torch.ones(2))),
    }[kind]
    D = ce.as_energy(E, decoder=nn.Linear(2, 7))
    assert D.event_shape == (2,) and D.has_value == E.has_value and len(D.bases) == len(E.bases) and D.grounded
    for found, expected in zip(D.with_gradient(Z), E.with_gradient(Z), strict=True):
        torch.testing.assert_close(found, expected)
    assert D.sample(3, sampler="langevin", step_size=0.1, steps=2, seed=0).shape == (3, 7)


def test_terms_over_it_count_it_once_and_images_are_pulled_back():
    decoder = nn.Linear(2, 7)
    prior = ce.as_energy(bowl(), decoder=decoder)
    A, B = (ce.ClassifierEnergy(lambda z, i=i: z[:, i], 1, prior) for i in range(2))
    picture = ce.as_energy(lambda x: x.square().sum(1), event_shape=(7,), name="picture")
    torch.testing.assert_close((A & B)(Z), bowl()(Z) - torch.nn.functional.logsigmoid(Z).sum(1))
    torch.testing.assert_close((prior & picture.pull_back(decoder))(Z), bowl()(Z) + decoder(Z).square().sum(1))


def test_it_can_be_copied_and_compared():
    D = ce.as_energy(bowl(), decoder=nn.Linear(2, 3))
    for other in (copy.deepcopy(D), pickle.loads(pickle.dumps(D)), D.rebuild()):
        assert D.equals(other)
    assert not D.equals(ce.as_energy(bowl(), decoder=nn.Linear(2, 3)))
    assert str(D) == "bowl.shown_by(Linear)"


def test_what_it_refuses():
    D = ce.as_energy(bowl(), decoder=nn.Linear(2, 3))
    with pytest.raises(ExpressionError, match="already an energy of latent points, of the decoder Linear"):
        D.shown_by(nn.Linear(2, 3))
    with pytest.raises(OptionError, match="a `decoder` alone"):
        ce.as_energy(bowl(), decoder=nn.Linear(2, 3), name="x")
    with pytest.raises(OptionError, match="decoder must be a Module"):
        bowl().shown_by(lambda z: z)  # type: ignore[arg-type]
