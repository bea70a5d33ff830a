"""What objects of a picture have in common, such as light or style: found from their covariance, and moved between pictures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy_comet import Comet, WindowEnergy, fit_common, fit_styles

SIZE, LATENT, OBJECTS, MANY = 16, 5, 3, 3000
LIGHT, OWN = 0.8, 0.6  # deviations: objects agree by .64 in the direction of the light


def latents(n: int, seed: int) -> torch.Tensor:
    """Returns latents of a ground and three objects that own all numbers; the first is also lit by the light of the picture."""
    generator = torch.Generator().manual_seed(seed)
    own, light = torch.randn(n, OBJECTS + 1, LATENT, generator=generator), torch.randn(n, 1, generator=generator)
    own[:, :, 0] = OWN * own[:, :, 0] + LIGHT * light
    turned = own @ torch.linalg.qr(torch.randn(LATENT, LATENT, generator=torch.Generator().manual_seed(9)))[0]
    pose = torch.tensor([[0.0, 0.0, 0.0], [-0.5, -0.5, 0.4], [0.5, -0.5, 0.4], [0.0, 0.5, 0.4]])
    return torch.cat([turned, pose.expand(n, -1, -1)], 2)


class Drawn(Comet):
    """A model that encodes the i-th picture as the i-th of given latents; the index is written into the first pixel."""

    def __init__(self, z: torch.Tensor) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = ce.get("encoder", "comet-window", size=SIZE, latent=LATENT, window=8, seen=16, encoder_filters=4, filters=8).encoder
            super().__init__(encoder, WindowEnergy(SIZE, latent=LATENT, window=8, filters=8))
        for parameter in self.energy.paint.parameters():
            nn.init.zeros_(parameter)  # all windows have the same weights, so objects have equal shares
        self.z = z

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.z[(x[:, 0, 0, 0] * MANY).round().long()]


def pictures(first: int, n: int) -> torch.Tensor:
    return ((first + torch.arange(n)) / MANY)[:, None, None, None].expand(-1, 3, SIZE, SIZE)


@pytest.fixture(scope="module")
def comet():
    return Drawn(latents(MANY, 0)).eval()


@pytest.fixture(scope="module")
def common(comet):
    return fit_common(comet, pictures(0, MANY))


def test_the_agreement_is_the_correlation_of_two_objects(common):
    """With 3,000 pictures of three pairs its standard error is below .015; all other directions agree by chance only."""
    assert common.agreement.shape == (1,)
    assert float(common.agreement) == pytest.approx(LIGHT**2 / (LIGHT**2 + OWN**2), abs=0.06)
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
    expected = torch.cat([comet.z[40:44, :1], z[:, 1:]], 1)
    torch.testing.assert_close(common.swap(x, y), comet.decode(expected))
    with pytest.raises(ShapeError, match="as many pictures as each other, got 4 and 3"):
        common.swap(x, y[:3])


def test_objects_that_agree_in_nothing_are_refused(comet):
    with pytest.raises(OptionError, match=r"agree in no direction by more than 0\.9, at most by 0\.6"):
        fit_common(comet, pictures(0, MANY), 0.9)
    with pytest.raises(OptionError, match="no objects on a ground: train a `comet-window`"):
        fit_common(ce.get("encoder", "comet", size=SIZE), torch.rand(4, 3, SIZE, SIZE))


MOVED, NARROWED = torch.tensor([0.0, 6.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.5, 0.7, 1.0])


def in_style(objects: torch.Tensor) -> torch.Tensor:
    """Returns the latents of the same objects in the second style."""
    return objects * NARROWED + MOVED


@pytest.fixture(scope="module")
def two_styles():
    """A model in which every other picture has the second style."""
    z = latents(MANY, 3)
    z[:, :, :LATENT] = torch.randn(MANY, OBJECTS + 1, LATENT, generator=torch.Generator().manual_seed(4))
    z[1::2, :, :LATENT] = in_style(z[1::2, :, :LATENT])
    comet = Drawn(z).eval()
    return fit_styles(comet, pictures(0, MANY))


@pytest.mark.full
def test_two_styles_are_found_without_labels(two_styles):
    styles = two_styles.encode(two_styles.comet.z)
    assert set(styles[0::2].tolist()) | set(styles[1::2].tolist()) == {0, 1} and len(set(styles[0::2].tolist())) == 1


@pytest.mark.full
def test_an_object_becomes_the_same_object_in_the_other_style(two_styles):
    """Means of 4,500 objects have standard errors of .015, and their deviations of .01."""
    z, plain = two_styles.comet.z, int(two_styles.encode(two_styles.comet.z[:1]))
    first, second = z[0:40:2], z[1:40:2]
    there = two_styles.move(first, torch.full((20,), 1 - plain))
    torch.testing.assert_close(there[:, 1:, :LATENT], in_style(first[:, 1:, :LATENT]), atol=0.25, rtol=0)
    assert torch.equal(there[:, 0], first[:, 0]) and torch.equal(there[..., LATENT:], first[..., LATENT:])
    back = two_styles.move(second, torch.full((20,), plain))
    torch.testing.assert_close(in_style(back[:, 1:, :LATENT]), second[:, 1:, :LATENT], atol=0.25, rtol=0)
    assert torch.equal(two_styles.move(first, torch.full((20,), plain)), first)


@pytest.mark.full
def test_pictures_of_one_style_are_refused(comet):
    with pytest.raises(OptionError, match=r"no two styles: two means explain 0\.6\d of what objects agree in most, less than 0\.85"):
        fit_styles(comet, pictures(0, MANY))
