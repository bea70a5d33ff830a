"""Further windows explain what the others leave, and are saved; the inner descent keeps the contract of samplers."""

from __future__ import annotations

import torch

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy.testing import Check, parametrize_with_checks, sampler_checks
from composable_energy_comet import InnerDescent

SIZE, WINDOW, LATENT = 32, 8, 6


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
