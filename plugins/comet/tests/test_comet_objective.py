"""The gradient of the inner descent equals that of the full loop, and that of one random iterate has the same mean."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, WindowEnergy, edge_error, fit_common, squared_error
from composable_energy_comet.conv import SPREAD
from composable_energy_training import Batch
from tests.refusals import refusals, refused

SIZE, ROWS = 16, 3


def model(**options):
    """A small model in float64 whose steps move pictures: those of new weights hardly do, as the last layers of blocks do nothing."""
    options |= {"step": 1e4} if options.get("head", "conv") == "conv" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        comet = ce.get("encoder", "comet", size=SIZE, components=2, latent=3, filters=4, encoder_filters=4, **options).double()
        for name, weight in comet.energy.named_parameters():
            if name.endswith("second.weight"):
                torch.nn.init.normal_(weight, 0, 0.1)
    return comet


def batch(step=1, seed=0):
    x = torch.rand(ROWS, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Batch(x, {}, Noise(seed, range(ROWS), step).child("objective"))


def gradients(comet, value):
    weights = [weight for weight in comet.parameters() if weight.requires_grad]
    found = torch.autograd.grad(value, weights, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(weights, found, strict=True)])


def unrolled(comet, data, iterations, detached_before=0):
    """The loop written down without the library: all steps in one graph, but that nothing flows back beyond a step."""
    energy, z = comet.energy, comet.encoder(data.x)
    x = energy.draw_start(data.x, data.noise.child("start"), SPREAD)
    for n in range(iterations):
        held = z.detach() if n < detached_before else z
        point = (x.detach() if n <= detached_before else x).clone()
        point = point if point.requires_grad else point.requires_grad_()
        moved = point - torch.autograd.grad(sum(energy(point, z=held[:, k]).sum() for k in range(z.shape[1])), point, create_graph=True)[0]
        x = moved.clamp(0, 1)
    return squared_error(moved, data.x).mean()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"coordinates": "absolute", "start": "uniform"}, {"stem": "stride"}])
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_gradient_is_that_of_the_whole_loop_where_truncation_covers_it(options, iterations):
    comet, data = model(**options), batch()
    loss = Decomposition(iterations, iterates="last", truncate=iterations).loss(comet, data)
    reference = unrolled(comet, data, iterations)
    assert float((loss.value - reference).detach().abs()) < 1e-12
    assert float((gradients(comet, loss.value) - gradients(comet, reference)).abs().max()) < 1e-10
    assert float(gradients(comet, reference).abs().max()) > 1e-4


@pytest.mark.parametrize("truncate", [1, 2])
def test_the_gradient_stops_at_the_documented_step(truncate):
    comet, data = model(), batch()
    loss = Decomposition(4, iterates="last", truncate=truncate).loss(comet, data)
    own, stopped = gradients(comet, loss.value), gradients(comet, unrolled(comet, data, 4, detached_before=4 - truncate))
    assert float((own - stopped).abs().max()) < 1e-10
    assert float((own - gradients(comet, unrolled(comet, data, 4))).abs().max()) > 1e-6  # and not that of the whole loop


@pytest.mark.full
def test_each_iterate_is_drawn_equally_often():
    """The gradient of one iterate is that of its term, and all iterates are the mean of the terms."""
    comet, data = model(), batch()
    values = torch.stack([Decomposition(n, iterates="last").loss(comet, data).value.detach() for n in (1, 2, 3)])
    torch.testing.assert_close(Decomposition(3, iterates="all").loss(comet, data).value.detach(), values.mean(), rtol=0, atol=1e-12)
    objective, counts, z = Decomposition(3), torch.zeros(3), comet.encoder(data.x)
    for step in range(600):
        noise = _Start(data.noise, Noise(0, range(ROWS), step).child("objective"))
        counts[(values - objective.descent_loss(comet.energy, z, data.x, noise).detach()).abs().argmin()] += 1
    assert (counts - 200).square().sum() / 200 < 14  # chi-squared of two degrees of freedom: .001


class _Start:
    """Noise whose start is that of one step, and whose iterate is drawn at another."""

    def __init__(self, start, iterate):
        self.start, self.iterate = start, iterate

    def child(self, label):
        return (self.start if label == "start" else self.iterate).child(label)

    def for_chains(self, chains):
        return self.iterate.for_chains(chains)


def test_parts_of_a_batch_take_the_same_iterate():
    """A batch cut in two, as for accumulation, has the mean of the halves."""
    comet, data = model(), batch()
    objective = Decomposition(3)
    halves = [Batch(data.x[i : i + 1], {}, data.noise.for_chains(data.noise.chains[i : i + 1])) for i in range(ROWS)]
    together = torch.stack([objective.loss(comet, half).value for half in halves]).mean()
    assert torch.allclose(objective.loss(comet, data).value, together, rtol=0, atol=1e-12)


test_what_does_not_fit_is_named = refusals(
    (lambda: Decomposition(iterates="first"), "iterates must be one of 'random', 'all', 'last', got 'first'"),  # pyright: ignore[reportArgumentType]
    (lambda: Decomposition(truncate=0), "truncate must be a whole number of at least 1, got 0"),
    (lambda: Decomposition().loss(model(), Batch(255 * batch().x, {}, batch().noise)), r"must lie in \[0, 1\], got .* to 25"),
    (lambda: Decomposition().loss(torch.nn.Linear(1, 1), batch()), "trains a Comet, got Linear"),
    (lambda: Comet(model().encoder, model(coordinates="absolute").energy), "gives components of 6 numbers, the energy takes 3"),
    error=OptionError,
)


def test_a_shifted_edge_counts_more_than_the_same_error_spread_out():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 4:] = 1
    shifted = x.roll(1, 3)
    shifted[..., 0] = 0
    even = x + squared_error(shifted, x).sqrt()
    torch.testing.assert_close(squared_error(even, x), squared_error(shifted, x))
    torch.testing.assert_close(edge_error(even, x), squared_error(even, x))
    torch.testing.assert_close(edge_error(shifted, x) - squared_error(shifted, x), torch.full((1,), 6 * 2 / 7, dtype=torch.float64))


SIDE, LATENT, OBJECTS, MANY = 16, 5, 3, 3000
LIGHT, OWN = 0.8, 0.6  # deviations: objects agree by .64 in the direction of the light


def latents(n: int, seed: int) -> torch.Tensor:
    """Returns latents of a ground and three objects that own all numbers; the first is also lit by the light of the picture."""
    generator = torch.Generator().manual_seed(seed)
    own, light = torch.randn(n, OBJECTS + 1, LATENT, generator=generator), torch.randn(n, 1, generator=generator)
    own[:, :, 0] = OWN * own[:, :, 0] + LIGHT * light
    turned = own @ torch.linalg.qr(torch.randn(LATENT, LATENT, generator=torch.Generator().manual_seed(9)))[0]
    return torch.cat([turned, torch.tensor([[0.0, 0.0, 0.0], [-0.5, -0.5, 0.4], [0.5, -0.5, 0.4], [0.0, 0.5, 0.4]]).expand(n, -1, -1)], 2)


class Drawn(Comet):
    """A model that encodes the i-th picture as the i-th of given latents; the index is written into the first pixel."""

    def __init__(self, z: torch.Tensor) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = ce.get("encoder", "comet-window", size=SIDE, latent=LATENT, window=8, seen=16, encoder_filters=4, filters=8).encoder
            super().__init__(encoder, WindowEnergy(SIDE, latent=LATENT, window=8, filters=8))
        for parameter in self.energy.paint.parameters():
            nn.init.zeros_(parameter)  # all windows have the same weights, so objects have equal shares
        self.z = z

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.z[(x[:, 0, 0, 0] * MANY).round().long()]


def pictures(first: int, n: int) -> torch.Tensor:
    return ((first + torch.arange(n)) / MANY)[:, None, None, None].expand(-1, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def comet():
    return Drawn(latents(MANY, 0)).eval()


@pytest.fixture(scope="module")
def common(comet):
    return fit_common(comet, pictures(0, MANY))


def test_the_agreement_is_the_correlation_of_two_objects(common):
    """With 3,000 pictures of three pairs its standard error is below .015; all other directions agree by chance only."""
    assert common.agreement.shape == (1,) and float(common.agreement) == pytest.approx(LIGHT**2 / (LIGHT**2 + OWN**2), abs=0.06)
    direction = torch.linalg.qr(torch.randn(LATENT, LATENT, generator=torch.Generator().manual_seed(9)))[0][0]
    assert torch.nn.functional.cosine_similarity(common.read[:, 0], direction, dim=0).abs() > 0.99


def test_moved_objects_have_the_code_of_the_others(common, comet):
    z, others = comet.z[:40], comet.z[40:80]
    code = common.encode(others)
    moved = common.move(z, code)
    torch.testing.assert_close(common.encode(moved), code, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(common.move(z, common.encode(z)), z, atol=1e-5, rtol=0)
    assert torch.equal(moved[:, 0], z[:, 0]) and torch.equal(moved[:, :, LATENT:], z[:, :, LATENT:])


def test_swapped_pictures_have_the_objects_of_one_and_the_ground_of_the_other(common, comet):
    x, y = pictures(0, 4), pictures(40, 4)
    z = common.move(comet.z[:4], common.encode(comet.z[40:44]))
    torch.testing.assert_close(common.swap(x, y), comet.decode(torch.cat([comet.z[40:44, :1], z[:, 1:]], 1)))
    refused(ShapeError, "as many pictures as each other, got 4 and 3", common.swap, x, y[:3])


def test_objects_that_agree_in_nothing_are_refused(comet):
    refused(OptionError, r"agree in no direction by more than 0\.9, at most by 0\.6", fit_common, comet, pictures(0, MANY), 0.9)
    with pytest.raises(OptionError, match="no objects on a ground: train a `comet-window`"):
        fit_common(ce.get("encoder", "comet", size=SIDE), torch.rand(4, 3, SIDE, SIDE))
