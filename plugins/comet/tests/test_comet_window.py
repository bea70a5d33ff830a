"""Window energies: objects move with their windows, the ground has no place, and glimpses cut out what windows paint."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, GlimpseEncoder, QuadraticEnergy, WindowEnergy
from composable_energy_training import Batch

SIZE, WINDOW, LATENT = 32, 8, 6
PIXEL = 2 / (SIZE - 1)


def made_energy() -> WindowEnergy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        energy = WindowEnergy(SIZE, latent=LATENT, window=WINDOW, filters=16).eval().requires_grad_(False)
    energy.image.copy_(torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(1)))
    return energy


def made_encoder() -> GlimpseEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GlimpseEncoder(SIZE, components=3, latent=LATENT, window=WINDOW, filters=8, seen=16).eval().requires_grad_(False)


def latents(*poses: tuple[float, float, float], seed: int = 0) -> torch.Tensor:
    """Returns latents of one picture, with shape (1, K, D), all with the same numbers before the pose."""
    numbers = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed))
    return torch.stack([torch.cat([numbers, torch.tensor(pose)]) for pose in poses])[None]


REACH = WINDOW / (SIZE - 1)
MIDDLE = 0.0  # between pixels 15 and 16: the window covers whole pixels


def test_an_object_moves_with_its_window():
    energy = made_energy()
    pictures, weights = energy.decode_targets(latents((MIDDLE, MIDDLE, REACH), (MIDDLE + 5 * PIXEL, MIDDLE - 3 * PIXEL, REACH)))
    torch.testing.assert_close(pictures[0, 0].roll((5, -3), (1, 2)), pictures[0, 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[0, 0].roll((5, -3), (1, 2)), weights[0, 1], atol=1e-3, rtol=0)
    assert pictures[0, 0].std() > 1e-3


def test_outside_of_its_window_an_object_has_no_weight():
    energy = made_energy()
    z = latents((MIDDLE, MIDDLE, REACH), (0.0, 0.0, 0.0))
    _, weights = energy.decode_targets(z)
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    middle = SIZE // 2
    inside[middle - WINDOW // 2 : middle + WINDOW // 2, middle - WINDOW // 2 : middle + WINDOW // 2] = True
    share = weights.softmax(1)[0, 0, 0]
    assert share[inside].min() > 0.1 and share[F.max_pool2d(inside[None].float(), 3, 1, 1)[0] == 0].max() < 1e-4


def test_the_ground_is_smooth_and_has_weight_one_everywhere():
    energy = made_energy()
    pictures, weights = energy.decode_targets(latents((0.0, 0.0, 0.0)))
    assert (weights == 0).all()
    torch.testing.assert_close(energy.minimum(latents((0.0, 0.0, 0.0))), pictures[:, 0])
    steps = (pictures[0, 0] - energy.image).diff(dim=2).abs().max()
    assert 0 < steps < 0.5 * (pictures[0, 0] - energy.image).std()


def test_glimpses_cut_out_the_pixels_that_windows_paint():
    encoder, energy = made_encoder(), made_energy()
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    centre = torch.tensor([[MIDDLE, MIDDLE], [MIDDLE + 4 * PIXEL, MIDDLE], [MIDDLE, MIDDLE - 2 * PIXEL], [MIDDLE, MIDDLE]])
    cut = encoder.crop(x, centre)
    first = SIZE // 2 - WINDOW // 2
    rows = slice(first, first + WINDOW)
    torch.testing.assert_close(cut[0], x[0, :, rows, rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[1], x[0, :, first + 4 : first + 4 + WINDOW, rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[2], x[1, :, rows, first - 2 : first - 2 + WINDOW], atol=1e-4, rtol=0)
    pictures, _ = energy.decode_targets(latents((MIDDLE, MIDDLE, REACH)))
    again = encoder.crop(pictures[:, 0], centre[:1])
    torch.testing.assert_close(again[0], pictures[0, 0, :, rows, rows], atol=1e-4, rtol=0)


def test_the_first_component_is_the_ground_and_the_others_have_places():
    x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    z = made_encoder()(x)
    assert z.shape == (4, 3, LATENT + 3)
    assert (z[:, 0, LATENT:] == 0).all() and (z[:, 1:, -1] > 0).all()
    assert z[:, 1:, LATENT:-1].abs().max() < 1.5


def test_more_objects_than_were_encoded_are_joined():
    comet = Comet(made_encoder(), made_energy()).eval()
    x = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    parts, others = comet.decompose(x), comet.decompose(x.flip(0))
    z = torch.cat([comet.encode(x), comet.encode(x.flip(0))[:, 1:]], 1)
    torch.testing.assert_close(comet.recombine([*parts, *others[1:]]), comet.energy.minimum(z).clamp(0, 1))
    assert z.shape[1] == 5


def test_an_energy_of_fewer_pixels_is_compared_with_averages():
    encoder = made_encoder()
    energy = QuadraticEnergy(16, latent=encoder.find.latent, filters=4)
    comet = Comet(encoder.find, energy)
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    loss = Decomposition().loss(comet, Batch(x, {}, Noise(0, range(2), 1))).value
    torch.testing.assert_close(loss, (energy.minimum(encoder.find(x)) - F.avg_pool2d(x, 2)).square().mean())


@pytest.mark.parametrize(("options", "words"), [({"window": 12}, "window must be 8, 16, 32, ..., got 12"), ({"window": 64}, "at most")])
def test_windows_that_do_not_fit_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        ce.get_encoder("comet-window", size=SIZE, **options)
    with pytest.raises(OptionError, match="components must be a whole number of at least 2, got 1"):
        ce.get_encoder("comet-window", size=SIZE, components=1)
