"""The table of factors: codes of all rows, and means with their errors."""

import math

import pytest
import torch

from benchmarks.papers.comet_2021.factors import ROWS, Autoencoder, codes_of_row, mean_and_error, scaled_steps, summarize, train_row

SCORES = {"BetaVAE": 90.0, "MIG": 10.0, "MCC": 50.0}


def some_images(count=20):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_tables_have_means_and_standard_errors():
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2, 1 / math.sqrt(3))) and mean_and_error([1.0]) == (1, None)
    runs = [
        {"model": "pixels", "seed": seed, "R2": 0.8 + 0.1 * seed, "raw": SCORES, "PCA 64": {**SCORES, "MIG": 20.0 + seed}}
        for seed in (0, 1)
    ]
    (found,) = summarize(runs)
    assert found["model"] == "pixels" and found["seeds"] == 2
    assert found["R2"] == pytest.approx((0.85, 0.05)) and found["MIG, PCA 64"] == pytest.approx((20.5, 0.5)) and found["MIG, raw"][0] == 10


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_trained_scored_and_loaded(name, tmp_path):
    images = some_images()
    share = 1.5 / max(ROWS[name], default=1)
    model, figures = train_row(name, 3, images, tmp_path, share)
    codes, numbers = codes_of_row(name, model), {"pixels": 768, "beta-0.25-10": 10}.get(name, 64)
    with torch.no_grad():
        first = codes(images[:4]).flatten(1)
        assert first.shape == (4, numbers)
        again, loaded = train_row(name, 3, images, tmp_path, share)
        torch.testing.assert_close(codes_of_row(name, again)(images[:4]).flatten(1), first)
    assert loaded == figures and figures["steps"] == sum(scaled_steps(name, share))


def test_the_second_stage_keeps_the_encoder_of_the_first_and_moves_it_little(tmp_path):
    images, names = some_images(), ("comet-coarse", "comet-coarse")
    few, many = (train_row(name, 3, images, tmp_path / str(share), share)[0] for name, share in zip(names, (0.0, 0.01), strict=True))
    start, end = few.encoder.net[0].weight, many.encoder.net[0].weight
    assert few.energy.size == many.energy.size == 32 and few.components == 2
    assert 0 < (start - end).norm() < 0.3 * start.norm()


def test_a_beta_vae_has_codes_of_any_size():
    model = Autoencoder(0.25, codes=10)
    assert model.encode(some_images(2)).shape == (2, 10) and model.decode(torch.zeros(2, 10)).shape == (2, 3, 32, 32)
    assert model.loss(some_images(2)).isfinite()
