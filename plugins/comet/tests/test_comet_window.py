"""Window energies: objects move with their windows, the ground has no place; further windows explain what the others leave."""

import pytest
import torch
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.sampling import Noise
from composable_energy.testing import Check, parametrize_with_checks, sampler_checks
from composable_energy_comet import Comet, Decomposition, GlimpseEncoder, InnerDescent, QuadraticEnergy, WindowEnergy
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


def test_an_object_shrinks_with_its_window():
    energy = made_energy()
    pictures, _ = energy.decode_targets(latents((MIDDLE, MIDDLE, REACH), (MIDDLE, MIDDLE, 2 * REACH)))
    middle, half = SIZE // 2, WINDOW // 2
    small = pictures[0, 0, :, middle - half : middle + half, middle - half : middle + half]
    large = pictures[0, 1, :, middle - WINDOW : middle + WINDOW, middle - WINDOW : middle + WINDOW]
    line = torch.tensor([0.125, 0.75, 0.125])  # linear interpolation to twice the pixels, then means of two
    soft = F.conv2d(small[:, None], (line[:, None] * line)[None, None])[:, 0]
    torch.testing.assert_close(F.avg_pool2d(large, 2)[:, 1:-1, 1:-1], soft, atol=1e-4, rtol=0)


def test_outside_of_its_window_an_object_has_no_weight():
    energy = made_energy()
    z = latents((MIDDLE, MIDDLE, REACH), (0.0, 0.0, 0.0))
    _, weights = energy.decode_targets(z)
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    middle = SIZE // 2
    inside[middle - WINDOW // 2 : middle + WINDOW // 2, middle - WINDOW // 2 : middle + WINDOW // 2] = True
    share = weights.softmax(1)[0, 0, 0]
    assert share[inside].min() > 0.1 and share[F.max_pool2d(inside[None].float(), 3, 1, 1)[0] == 0].max() < 1e-4


def test_glimpses_cut_out_the_pixels_that_windows_paint():
    encoder, energy = made_encoder(), made_energy()
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    centre = torch.tensor([[MIDDLE, MIDDLE], [MIDDLE + 4 * PIXEL, MIDDLE], [MIDDLE, MIDDLE - 2 * PIXEL], [MIDDLE, MIDDLE]])
    cut = encoder.crop(x, centre, torch.full((4, 1), REACH))
    first = SIZE // 2 - WINDOW // 2
    rows = slice(first, first + WINDOW)
    torch.testing.assert_close(cut[0], x[0, :, rows, rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[1], x[0, :, first + 4 : first + 4 + WINDOW, rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[2], x[1, :, rows, first - 2 : first - 2 + WINDOW], atol=1e-4, rtol=0)
    pictures, _ = energy.decode_targets(latents((MIDDLE, MIDDLE, REACH)))
    again = encoder.crop(pictures[:, 0], centre[:1], torch.full((1, 1), REACH))
    torch.testing.assert_close(again[0], pictures[0, 0, :, rows, rows], atol=1e-4, rtol=0)


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
        ce.get("encoder", "comet-window", size=SIZE, **options)
    with pytest.raises(OptionError, match="components must be a whole number of at least 2, got 1"):
        ce.get("encoder", "comet-window", size=SIZE, components=1)


def test_what_the_ground_explains_can_be_left_to_it():
    comet = Comet(made_encoder(), made_energy())
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, {}, Noise(0, range(2), 1))
    plain, covered = Decomposition().loss(comet, batch), Decomposition(cover=0.5).loss(comet, batch)
    share = 1 - comet.energy.decode_targets(comet.encoder(x))[1].softmax(1)[:, 0].mean()
    torch.testing.assert_close(covered.value, plain.value + 0.5 * share)
    torch.testing.assert_close(covered.scalars["error"], plain.value)
    with pytest.raises(OptionError, match="cover needs an energy with targets"):
        Decomposition(cover=0.5).loss(ce.get("encoder", "comet", size=SIZE), batch)


def made_comet(**options):
    small = {"components": 3, "latent": LATENT, "window": WINDOW, "filters": 16, "encoder_filters": 8, "seen": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ce.get("encoder", "comet-window", size=SIZE, **small, **options).eval()


def test_decomposed_pictures_have_the_further_windows():
    x = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    comet, plain = made_comet(), made_comet(again=0)
    assert (comet.components, plain.components, len(comet.decompose(x))) == (5, 3, 5)
    z = comet.encode(x)
    torch.testing.assert_close(z[:, :3], plain.encode(x))
    torch.testing.assert_close(plain.encode(x), plain.encoder(x).detach())
    errors = [(comet.energy.minimum(z[:, :k]) - x).square().flatten(1).mean(1) for k in (3, 4, 5)]
    assert (errors[1] < errors[0] + 1e-4).all() and (errors[2] < errors[1] + 1e-4).all()


CHECKS = sampler_checks(InnerDescent(30, step_size=0.1, clamp=(-4.0, 4.0)), steps=30)
EXPECTED = {"seed": "it draws nothing", "noise": "it draws nothing", "moments": "it ends near the mode"}


@parametrize_with_checks(CHECKS, expected_failures=EXPECTED)
def test_the_inner_descent_keeps_what_samplers_keep(check: Check) -> None:
    check()


def test_a_start_that_is_given_is_taken() -> None:
    sampler = InnerDescent(start_image=torch.full((3, 4, 4), 0.7))
    like = torch.zeros(50, 3, 4, 4)
    start = sampler.start(like, Noise(0, range(50)))
    assert abs(float(start.mean()) - 0.7) < 4 * 0.1 / (50 * 48) ** 0.5
    assert abs(float(start.std()) - 0.1) < 4 * 0.1 / (2 * 50 * 48) ** 0.5
