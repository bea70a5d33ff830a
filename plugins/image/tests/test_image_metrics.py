"""Metrics of pictures and of sets, against closed forms and values of scikit-image."""

import math

import pytest
import torch

from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy_image.metrics import features_of, fidelity, frechet_distance, psnr, ssim
from tests.refusals import refusals

F64 = torch.float64


def pictures():
    axis = torch.linspace(0, 1, 24, dtype=F64)
    a = torch.stack(
        [torch.outer(axis, axis), (7 * axis[:, None] + 3 * axis).sin() / 2 + 0.5, (axis[:, None] > 0.5).double().expand(24, 24)]
    )
    b = a * 0.8 + 0.1 + 0.05 * torch.cos(40 * axis)
    return a[None], b[None]


def test_similarity_and_noise_are_those_of_scikit_image():
    # scikit-image 0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False), peak_signal_noise_ratio
    a, b = pictures()
    assert ssim(a, b).item() == pytest.approx(0.7228616161295007, rel=1e-9)
    assert psnr(a, b).item() == pytest.approx(21.026221731713374, rel=1e-9)
    assert ssim(255 * a, 255 * b, peak=255).item() == pytest.approx(ssim(a, b).item(), rel=1e-9)
    assert psnr(255 * a, 255 * b, peak=255).item() == pytest.approx(psnr(a, b).item(), rel=1e-6)
    assert ssim(a, a).item() == 1
    assert psnr(a, a).item() == math.inf


def test_the_frechet_distance_of_gaussians_is_that_of_their_moments():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(500, 3, dtype=F64, generator=generator)
    points = (points - points.mean(0)) @ torch.linalg.cholesky(torch.cov(points.T)).inverse().T  # mean 0 and covariance 1
    scale, shift = torch.tensor([2.0, 0.5, 1.0], dtype=F64), torch.tensor([1.0, -2.0, 0.0], dtype=F64)
    expected = shift.square().sum() + (scale - 1).square().sum()
    assert frechet_distance(points, points * scale + shift) == pytest.approx(expected.item())
    assert frechet_distance(points, points.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points[:, :1], 3 * points[:, :1]) == pytest.approx(4)


def test_a_network_of_features_gets_pictures_in_batches():
    a = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sizes = []

    def network(x):
        sizes.append(len(x))
        return x.mean((2, 3))

    assert torch.equal(features_of(network, a, batch_size=3), a.mean((2, 3)))
    assert sizes == [3, 3, 1]
    assert frechet_distance(a, a + 1, network) == pytest.approx(3, rel=1e-5)


def test_draws_of_one_mode_are_precise_and_miss_the_other():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(400, 2, generator=generator)
    truth[200:] += 100
    same = torch.randn(400, 2, generator=generator)
    same[200:] += 100
    found = fidelity(same, truth)
    assert min(found) > 0.85
    one = fidelity(same[:200], truth)
    assert one.precision > 0.85
    assert 0.4 < one.recall < 0.55
    assert 0.4 < one.coverage < 0.55
    assert fidelity(truth + 1000, truth) == (0, 0, 0, 0)


test_bad_input_is_refused = refusals(
    (lambda: psnr(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 5)), ShapeError, "two batches"),
    (lambda: psnr(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), peak=0), OptionError, "positive"),
    (lambda: ssim(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)), ShapeError, "11 pixels"),
    (lambda: frechet_distance(torch.rand(5, 2), torch.rand(5, 3)), ShapeError, "\\(N, D\\)"),
    (lambda: frechet_distance(torch.full((5, 2), math.nan), torch.rand(5, 2)), ExpressionError, "not finite"),
    (lambda: fidelity(torch.rand(5, 2), torch.rand(5, 2)), ShapeError, "at least 6"),
)
