"""The gradient of the inner descent equals that of the full loop, and that of one random iterate has the same mean."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, QuadraticEnergy, charbonnier, edge_error, squared_error
from composable_energy_comet.descent import SPREAD
from composable_energy_comet.targets import joint_minimum
from composable_energy_training import Batch, Monitor, Optimizer, Trainer

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
        total = sum(energy(point, z=held[:, k]).sum() for k in range(z.shape[1]))
        moved = point - torch.autograd.grad(total, point, create_graph=True)[0]
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
    difference = gradients(comet, loss.value) - gradients(comet, reference)
    assert float(difference.abs().max()) < 1e-10
    assert float(gradients(comet, reference).abs().max()) > 1e-4


@pytest.mark.parametrize("truncate", [1, 2])
def test_the_gradient_stops_at_the_documented_step(truncate):
    comet, data = model(), batch()
    loss = Decomposition(4, iterates="last", truncate=truncate).loss(comet, data)
    own, stopped = gradients(comet, loss.value), gradients(comet, unrolled(comet, data, 4, detached_before=4 - truncate))
    assert float((own - stopped).abs().max()) < 1e-10
    assert float((own - gradients(comet, unrolled(comet, data, 4))).abs().max()) > 1e-6  # and not that of the whole loop


def test_all_iterates_are_the_mean_of_each():
    comet, data = model(), batch()
    alone = [Decomposition(n, iterates="last").loss(comet, data).value for n in (1, 2, 3)]
    together = Decomposition(3, iterates="all").loss(comet, data).value
    assert torch.allclose(together, torch.stack(alone).mean(), rtol=0, atol=1e-12)


@pytest.mark.full
def test_one_random_iterate_has_the_gradient_of_all_on_average():
    """A thousand draws of which iterate is taken, at one start; every coordinate within four standard errors of the mean over all, but
    for as many as chance leaves outside of 1,800 (6e-5 each, so that two are expected at most)."""
    comet, data = model(), batch()
    each = torch.stack([gradients(comet, Decomposition(n, iterates="last").loss(comet, data).value) for n in (1, 2, 3)])
    expected = gradients(comet, Decomposition(3, iterates="all").loss(comet, data).value)
    assert torch.allclose(each.mean(0), expected, rtol=0, atol=1e-12)
    values = [float(Decomposition(n, iterates="last").loss(comet, data).value.detach()) for n in (1, 2, 3)]
    counts = torch.zeros(3, dtype=torch.float64)
    objective = Decomposition(3, iterates="random")
    for step in range(1000):
        drawn = Noise(0, range(ROWS), step).child("objective")
        same_start = _Start(data.noise, drawn)
        value = float(objective.descent_loss(comet.energy, comet.encoder(data.x), data.x, same_start).detach())
        counts[min(range(3), key=lambda n: abs(values[n] - value))] += 1
    shares = counts / counts.sum()
    error = (each.T @ shares - expected).abs()
    deviation = (each - each.mean(0)).square().mean(0).sqrt() / 1000**0.5
    assert float((error / deviation.clamp(min=1e-15)).max()) < 4
    assert float(counts.min()) > 250


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


def test_a_quadratic_energy_needs_no_descent():
    comet, data = model(head="quadratic"), batch()
    assert isinstance(comet.energy, QuadraticEnergy)
    value = Decomposition().loss(comet, data).value
    assert torch.allclose(value, squared_error(comet.energy.minimum(comet.encoder(data.x)), data.x).mean())


def test_any_function_can_be_the_error():
    comet, data = model(), batch()
    absolute = Decomposition(2, iterates="last", reconstruction=lambda a, b: (a - b).abs().flatten(1).mean(1)).loss(comet, data)
    squared = Decomposition(2, iterates="last").loss(comet, data)
    assert absolute.scalars["error"] > squared.scalars["error"] > 0
    assert torch.equal(squared.scalars["error"], squared.value.detach())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["conv", "quadratic"])
def test_training_lowers_the_error(head):
    """Of pictures of one color each, met again and again."""
    comet = model(head=head).float()
    images = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(2)).expand(-1, -1, SIZE, SIZE).contiguous()
    objective, seen = Decomposition(2, iterates="last"), Batch(images, {}, Noise(9, range(len(images)), 1))
    before = objective.loss(comet, seen).scalars["error"]
    optimizer = Optimizer(rate=5e-3, betas=(0.9, 0.999), clip=1.0)
    Trainer(comet, Decomposition(2), images, steps=60, batch_size=8, optimizer=optimizer, callbacks=[Monitor(None)]).fit()
    assert objective.loss(comet, seen).scalars["error"] < 0.8 * before


def test_the_size_of_a_step_is_learnt():
    comet = model()
    assert gradients(comet, Decomposition(1).loss(comet, batch()).value).isfinite().all()
    (slope,) = torch.autograd.grad(Decomposition(1).loss(comet, batch()).value, comet.energy.log_scale)
    assert slope != 0


def test_what_does_not_fit_is_named():
    with pytest.raises(OptionError, match="iterates must be one of 'random', 'all', 'last', got 'first'"):
        Decomposition(iterates="first")  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="truncate must be a whole number of at least 1, got 0"):
        Decomposition(truncate=0)
    with pytest.raises(OptionError, match="trains a Comet, got Linear"):
        Decomposition().loss(torch.nn.Linear(1, 1), batch())
    encoder, energy = model().encoder, model(coordinates="absolute").energy
    with pytest.raises(OptionError, match="gives components of 6 numbers, the energy takes 3"):
        Comet(encoder, energy)


def test_a_shifted_edge_counts_more_than_the_same_error_spread_out():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 4:] = 1
    shifted = x.roll(1, 3)
    shifted[..., 0] = 0
    even = x + squared_error(shifted, x).sqrt()
    torch.testing.assert_close(squared_error(even, x), squared_error(shifted, x))
    torch.testing.assert_close(edge_error(even, x), squared_error(even, x))
    torch.testing.assert_close(edge_error(shifted, x) - squared_error(shifted, x), torch.full((1,), 6 * 2 / 7, dtype=torch.float64))


def test_large_differences_count_by_their_size_and_small_ones_by_their_square():
    x = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    torch.testing.assert_close(charbonnier(x, x), torch.full((2,), 0.03, dtype=torch.float64))
    torch.testing.assert_close(charbonnier(x + 0.4, x), torch.full((2,), (0.16 + 0.0009) ** 0.5, dtype=torch.float64))
    small = charbonnier(x + 1e-3, x) - charbonnier(x, x)
    torch.testing.assert_close(small, squared_error(x + 1e-3, x) / 0.06, rtol=1e-3, atol=0)
    torch.testing.assert_close(charbonnier(x + torch.tensor([0.0, 0.4]).view(2, 1, 1, 1), x)[0], charbonnier(x, x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_joint_minimum_has_no_subnormal_gradients_where_one_component_has_nearly_all_weight(dtype):
    generator = torch.Generator().manual_seed(7)
    pictures = torch.rand(2, 4, 3, 8, 8, generator=generator, dtype=dtype)
    weights = 150 * torch.randn(2, 4, 1, 8, 8, generator=generator, dtype=dtype)
    inputs = [pictures.requires_grad_(), weights.requires_grad_()]
    picture = joint_minimum(*inputs)
    torch.testing.assert_close(picture, (weights.softmax(1) * pictures).sum(1), rtol=0, atol=4 * torch.finfo(dtype).eps)
    for gradient in torch.autograd.grad(picture.square().sum(), inputs):
        sizes = gradient.abs()
        assert not ((sizes > 0) & (sizes < torch.finfo(torch.float32).tiny)).any()
