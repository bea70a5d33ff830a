"""Energies of latents: pulled-back terms, decoders, and explanations of decoded points."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from tests.factories import points, quadratic

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


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


def test_pulled_back_energies_work_under_autocast_of_their_processor():
    """The decoder then gives bfloat16 points, which the float32 weights of the energy take."""
    torch.manual_seed(0)
    seen = ce.as_energy(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), event_shape=(3,))
    energy, z = seen.pull_back(nn.Linear(2, 3)), torch.ones(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        low = energy(z)
    torch.testing.assert_close(low.float(), energy(z), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("count", [1, 32, 33, 400])
def test_points_are_decoded_in_batches_that_change_nothing(count):
    wide = nn.Sequential(nn.Linear(2, 10_000), nn.Tanh()).requires_grad_(False)  # a batch of decoded points has some 500,000 numbers
    energy = ce.as_energy(quadratic, decoder=wide, event_shape=(2,))
    draw = {"sampler": "langevin", "step_size": 0.1, "steps": 2, "seed": 0}
    latents = energy.latents.sample(count, **draw)
    torch.testing.assert_close(energy.sample(count, **draw), wide(latents))


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
def test_points_that_a_decoder_cannot_encode_are_errors(x, error, message):
    energy = latent(Linears())
    with pytest.raises(error, match=message):
        energy.explain(x)
