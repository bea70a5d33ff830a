"""Energies of latent points: decoders, terms of decoded points that are pulled back, and explanations of these."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Normal, Uniform
from torch.nn.functional import logsigmoid

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from tests.factories import points, quadratic
from tests.refusals import refusals

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
Z = points()
DRAW = {"sampler": "langevin", "step_size": 0.1, "steps": 2, "seed": 0}


class Doubler(nn.Module):
    """A decoder to three numbers, and back."""

    def forward(self, z):
        return torch.cat([2 * z, z.sum(1, keepdim=True)], 1)

    def encode(self, x):
        return x[:, :2] / 2


DECODER = Doubler()
SEEN = ce.as_energy(lambda x: x.square().sum(1), name="seen", event_shape=(3,))
PRIOR = ce.as_energy(Normal(torch.zeros(2), 1.0), name="bowl")


def latent(decoder):
    return ce.as_energy(quadratic, decoder=decoder, event_shape=(2,), name="latent")


@pytest.mark.parametrize("kind", ["absolute", "relative", "score", "support"])
def test_an_energy_with_a_decoder_has_the_values_gradients_and_structure_of_its_energy(kind):
    E = {
        "absolute": PRIOR,
        "relative": ce.ClassifierEnergy(lambda z: z, 1, PRIOR),
        "score": ce.ScoreEnergy(lambda z: -z, event_shape=(2,)),
        "support": ce.as_energy(Uniform(-3 * torch.ones(2), 3 * torch.ones(2))),
    }[kind]
    D, z = ce.as_energy(E, decoder=nn.Linear(2, 7)), Z.float()
    assert D.event_shape == (2,) and D.has_value == E.has_value and len(D.bases) == len(E.bases) and D.grounded
    for found, expected in zip(D.with_gradient(z), E.with_gradient(z), strict=True):
        torch.testing.assert_close(found, expected)
    assert D.sample(3, **DRAW).shape == (3, 7)


def test_it_counts_once_and_can_be_copied_and_compared():
    D = ce.as_energy(PRIOR, decoder=nn.Linear(2, 3))
    A, B = (ce.ClassifierEnergy(lambda z, i=i: z[:, i], 1, D) for i in range(2))
    torch.testing.assert_close((A & B)(Z), PRIOR(Z) - logsigmoid(Z).sum(1))
    for other in (copy.deepcopy(D), pickle.loads(pickle.dumps(D)), D.rebuild()):
        assert D.equals(other)
    assert not D.equals(ce.as_energy(PRIOR, decoder=nn.Linear(2, 3)))
    assert str(D) == "bowl.shown_by(Linear)"


def test_an_energy_of_seen_points_is_pulled_back_to_the_latents():
    decoded = DECODER(Z)
    for tree in (latent(DECODER) & SEEN, SEEN & latent(DECODER)):
        assert tree.decoder is DECODER
        torch.testing.assert_close(tree(Z), quadratic(Z) + SEEN(decoded))
    torch.testing.assert_close(SEEN.pull_back(DECODER)(Z), SEEN(decoded))
    torch.testing.assert_close(SEEN.pull_back(DECODER).at(0.5)(Z), SEEN(DECODER(Z / 1.25)))
    torch.testing.assert_close(SEEN.pull_back(DECODER, damping=20).at(0.5)(Z), SEEN(DECODER(Z / 1.25)) / 6)
    noisy = ce.as_energy(lambda x, sigma: x.square().sum(1) / sigma, name="noisy", event_shape=(3,))
    with pytest.raises(ExpressionError, match=r"noisy depends on sigma.*bind it first, with `\.at\(sigma\)`"):
        noisy & latent(DECODER)
    torch.testing.assert_close(noisy.at(2.0).pull_back(DECODER)(Z), SEEN(decoded) / 2)


def test_pulled_back_energies_work_under_autocast_of_their_processor():
    """The decoder then gives bfloat16 points, which the float32 weights of the energy take."""
    torch.manual_seed(0)
    seen = ce.as_energy(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), event_shape=(3,))
    energy, z = seen.pull_back(nn.Linear(2, 3)), torch.ones(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        low = energy(z)
    torch.testing.assert_close(low.float(), energy(z), rtol=0.05, atol=0.05)


def test_a_prior_is_not_pulled_back_by_accident():
    for tree in (PRIOR & SEEN.pull_back(DECODER), SEEN.pull_back(DECODER) & PRIOR):
        torch.testing.assert_close(tree(Z), PRIOR(Z) + SEEN(DECODER(Z)))
        assert tree.decoder is DECODER and tree.event_shape == (2,)
    with pytest.raises(ExpressionError, match="For decoded points write"):
        ce.as_energy(lambda x: x.sum(1)) & SEEN.pull_back(DECODER)
    decoder = torch.nn.Linear(2, 2, dtype=torch.float64)  # whose latent points may have any shape, as far as it says
    seen = ce.as_energy(Normal(torch.ones(2), 1.0))
    for join in (lambda a, b: a & b, lambda a, b: b & a, lambda a, b: a | b):
        with pytest.raises(ExpressionError, match="For decoded points write"):
            join(PRIOR, seen.pull_back(decoder))
    known = ce.as_energy(Normal(torch.zeros(2), 1.0), decoder=decoder)
    torch.testing.assert_close((known & seen.pull_back(decoder))(Z), PRIOR(Z) + seen(decoder(Z)))


def test_explain_encodes_what_people_see():
    tree = latent(DECODER) & SEEN
    explanation = tree.explain(DECODER(Z))
    torch.testing.assert_close(explanation.energy, tree(Z))
    assert [part.expression for part in explanation.terms] == ["latent", "seen.pull_back(Doubler)"]
    torch.testing.assert_close(explanation.terms[1].energy, SEEN(DECODER(Z)))


class Linears(nn.Module):
    """A decoder with weights, to three numbers, and back."""

    def __init__(self):
        super().__init__()
        self.out, self.back = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, z):
        return self.out(z)

    def encode(self, x):
        return self.back(x)


test_what_a_decoder_cannot_do_is_an_error = refusals(
    (lambda: SEEN.pull_back(DECODER, damping=-1), OptionError, "damping must be a number of at least 0"),
    (lambda: latent(DECODER) | latent(Doubler()), ExpressionError, "Doubler and Doubler"),
    (lambda: latent(DECODER).pull_back(DECODER), ExpressionError, "is already an energy of latent points"),
    (lambda: latent(DECODER).shown_by(DECODER), ExpressionError, "already an energy of latent points, of the decoder Doubler"),
    (lambda: ce.as_energy(PRIOR, decoder=DECODER, name="x"), OptionError, "a `decoder` alone"),
    (lambda: PRIOR.shown_by(lambda z: z), OptionError, "decoder must be a Module"),
    (lambda: latent(nn.Linear(2, 4)).explain(torch.zeros(2, 4)), ExpressionError, "has no `encode`"),
    (
        lambda: latent(Linears()).explain(torch.zeros(2, 5)),
        ShapeError,
        r"latent points of shape \(B, 2\) or points .* can encode; .* shape \(2, 5\) failed",
    ),
    (lambda: latent(Linears()).explain(torch.zeros(2, 3).long()), DtypeError, "floating dtype, got torch.int64; for images"),
    (lambda: latent(Linears()).explain(torch.zeros(2, 3).double()), DtypeError, "torch.float32 weights, the points are torch.float64"),
    (lambda: latent(Linears()).explain([[0.0, 0.0, 0.0]]), DtypeError, "takes a tensor of points, got list"),
)
