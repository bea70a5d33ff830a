"""The experiments with the 2021 paper: budgets, reduced masks, shares of a swap, tables."""

import numpy as np
import pytest
import torch
from torch import nn

import composable_energy as ce
from benchmarks.papers.comet_2021.factors import Autoencoder, fit_principal_components
from benchmarks.papers.comet_2021.light import angle, relight
from benchmarks.papers.comet_2021.recombination import CropClassifier, crop, pad
from benchmarks.papers.comet_2021.window_objects import GAP, join_objects, separate_pairs
from benchmarks.papers.comet_2021.worlds import PRECISION, SLOW, Budget, Scenes, fit, majority_labels
from composable_energy_training.precision import DTYPES


def test_a_budget_of_steps_is_used_to_the_step():
    torch.manual_seed(0)
    seen, weight = [], nn.Parameter(torch.tensor(3.0))
    figures = fit(
        lambda rows, step: (seen.append((rows, step)), weight.square())[1], [weight], 5, Budget(steps=40, warm_up=10, rate=0.1, batch=4)
    )
    assert figures["steps"] == 40 and [step for _, step in seen] == list(range(1, 41))
    assert all(rows.shape == (4,) and 0 <= int(rows.min()) <= int(rows.max()) < 5 for rows, _ in seen)
    assert weight.abs() < 3 and figures["loss"] == pytest.approx(weight.square().item(), abs=0.5)


def test_a_budget_of_seconds_ends():
    weight = nn.Parameter(torch.tensor(1.0))
    figures = fit(lambda rows, step: weight.square(), [weight], 3, Budget(seconds=0.05))
    assert figures["seconds"] >= 0.05 and figures["steps"] >= 1


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("auto", DTYPES[PRECISION])])
def test_a_loss_has_the_precision_of_its_budget(precision, dtype):
    seen, weight = set(), nn.Parameter(torch.eye(2))

    def loss(rows: torch.Tensor, step: int) -> torch.Tensor:
        product = weight @ weight
        seen.add(product.dtype)
        return product.float().sum()

    fit(loss, [weight], 3, Budget(steps=2, precision=precision))
    assert seen == {dtype} and weight.dtype == torch.float32


def test_rates_rise_and_end_at_a_tenth():
    budget = Budget(steps=100, warm_up=10, rate=1.0, tail=0.2)
    assert [budget.rate_at(step, budget.spent(0.0, step - 1)) for step in (1, 5, 10, 80, 81, 100)] == [0.1, 0.5, 1.0, 1.0, 0.1, 0.1]


def test_rates_fall_to_nothing_as_half_a_cosine():
    budget = Budget(steps=100, warm_up=10, rate=1.0, cosine=True)
    assert [round(budget.rate_at(step, step / 100), 4) for step in (5, 25, 50, 75, 100)] == [0.4969, 0.8536, 0.5, 0.1464, 0.0]


def test_parameters_that_were_trained_before_learn_slowly():
    """A step of Adam is as long as the rate, whatever the gradient."""
    new, old = torch.nn.Parameter(torch.tensor(3.0)), torch.nn.Parameter(torch.tensor(3.0))
    fit(lambda rows, step: new + 7 * old, [new, old], 3, Budget(steps=10, warm_up=0, rate=0.1, tail=0.0), slow=[old])
    torch.testing.assert_close(torch.stack([3 - new, 3 - old]), torch.tensor([1.0, SLOW]), rtol=1e-4, atol=0)


def test_reduced_masks_have_the_most_frequent_label():
    masks = torch.tensor([[[0, 1, 2, 2], [1, 1, 0, 2], [0, 0, 3, 3], [3, 3, 0, 0]]])
    assert majority_labels(masks, 2).tolist() == [[[1, 2], [0, 0]]]  # ties go to the lowest
    assert torch.equal(majority_labels(masks, 1), masks)


def test_principal_components_are_rotated_and_not_scaled():
    torch.manual_seed(1)
    codes = torch.randn(300, 6) * torch.tensor([1.0, 5.0, 2.0, 0.1, 3.0, 0.5]) + 7
    found = fit_principal_components(codes)(codes)
    assert torch.allclose(torch.pdist(found), torch.pdist(codes), atol=1e-4)
    spread = found.var(0)
    assert bool((spread[:-1] >= spread[1:]).all()) and found.mean(0).abs().max() < 1e-4
    assert fit_principal_components(codes, 2)(codes).shape == (300, 2)


def test_a_beta_vae_adds_the_divergence_of_its_posterior():
    torch.manual_seed(2)
    x, model = torch.rand(4, 3, 32, 32), Autoencoder(beta=0.0)
    torch.manual_seed(3)
    free = model.loss(x).item()
    model.beta = 2.0
    torch.manual_seed(3)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0))
    assert model.loss(x).item() == pytest.approx(free + 2 * kl.sum(1).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("margin", "size"), [(7, 32), (15, 64)])
def test_crops_of_both_sizes_are_classified(margin, size):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 0], [size // 2, size // 2]])
    crops = crop(pad(images, margin), torch.tensor([0, 1]), places, margin)
    middle = slice(size // 2 - margin, size // 2 + margin + 1)
    assert torch.equal(crops[1], images[1, :, middle, middle])
    assert torch.equal(crops[0, :, margin:, margin:], images[0, :, : margin + 1, : margin + 1])
    shapes, colors = CropClassifier(3, 8, margin)(crops)
    assert shapes.shape == (2, 4) and colors.shape == (2, 8)


def test_the_objects_of_separate_pairs_do_not_touch():
    labels = ce.get("world", "objects", size=64, count=(4, 4), sizes=(0.16, 0.18)).draw(60, seed=0).labels
    pairs = separate_pairs(labels, 10)
    assert len(pairs) > 3 and pairs.unique().numel() == pairs.numel()
    for a, b in pairs.tolist():
        for i, j in np.ndindex(4, 4):
            between = np.linalg.norm(labels["position"][a, i] - labels["position"][b, j])
            assert between > labels["size"][a, i] + labels["size"][b, j] + GAP


def test_objects_of_two_pictures_and_the_ground_of_the_first_are_joined():
    torch.manual_seed(0)
    comet = ce.get("encoder", "comet-window", size=16, window=8, seen=16, filters=16, encoder_filters=8).eval()
    x, y = torch.rand(2, 2, 3, 16, 16)
    z = torch.cat([comet.encode(x), comet.encode(y)[:, 1:]], 1)
    torch.testing.assert_close(join_objects(comet, x, y), comet.decode(z))


def test_angles_between_directions():
    turned = torch.tensor([[0.0, 2.0], [-3.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert angle(turned, torch.tensor([[1.0, 0.0]]).expand(4, 2)) == pytest.approx((90 + 180 + 0 + 45) / 4, abs=0.1)


def test_only_light_and_floor_come_from_the_next_picture():
    drawn = ce.get("world", "objects", size=64, count=(3, 3), sizes=(0.16, 0.26)).draw(3, seed=0, masks=True)
    one_light = {name: np.array(value) for name, value in drawn.labels.items()}
    one_light |= {name: one_light[name][[1, 1, 1]] for name in ("light", "floor")}
    first, none = torch.from_numpy(drawn.images).float() / 255, torch.zeros(3, 3).long()
    alike = relight(Scenes(first, torch.from_numpy(drawn.masks).long(), none, none, one_light))
    torch.testing.assert_close(alike[1], first[1])
    other = relight(Scenes(first, torch.from_numpy(drawn.masks).long(), none, none, drawn.labels))
    torch.testing.assert_close(other[0], alike[0])
    assert (other[0] - first[0]).abs().mean() > 1e-3
