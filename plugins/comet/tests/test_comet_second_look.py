"""Further windows stand where the others leave errors, stay if they help, and paint nothing if they do not."""

from __future__ import annotations

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_comet import WindowEnergy, load_comet, save_comet
from composable_energy_comet.second_look import look_again

SIZE, WINDOW, LATENT = 32, 8, 6
REACH = WINDOW / (SIZE - 1)


class Told:
    """An encoder that notes where it is asked to look, and gives a component that a test chose."""

    window = WINDOW

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def look_at(self, x, centre):
        self.asked.append(centre)
        return self.answer


def made_energy():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WindowEnergy(SIZE, latent=LATENT, window=WINDOW, filters=16).eval().requires_grad_(False)


def component(place, seed):
    numbers = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed))
    return torch.cat([numbers, torch.tensor(place)])


def made_comet(**options):
    small = {"components": 3, "latent": LATENT, "window": WINDOW, "filters": 16, "encoder_filters": 8, "seen": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ce.get_encoder("comet-window", size=SIZE, **small, **options).eval()


@pytest.mark.parametrize("place", [(-0.5, 0.5), (0.3, 0.1), (0.0, -0.6)])
def test_a_missing_object_is_looked_for_at_its_place_and_stays(place):
    energy, ground, thing = made_energy(), component((0.0, 0.0, 0.0), 0), component((*place, REACH), 1)
    x = energy.minimum(torch.stack([ground, thing])[None])
    told = Told(thing[None])
    z = look_again(told, energy, x, ground[None, None])
    torch.testing.assert_close(z, torch.stack([ground, thing])[None])
    assert (told.asked[0][0] - torch.tensor(place)).abs().max() < REACH


def test_a_window_that_explains_nothing_paints_nothing():
    energy, ground, thing = made_energy(), component((0.0, 0.0, 0.0), 0), component((0.2, 0.2, REACH), 1)
    x = energy.minimum(ground[None, None])
    z = look_again(Told(thing[None]), energy, x, ground[None, None])
    assert z.shape == (1, 2, LATENT + 3)
    torch.testing.assert_close(energy.minimum(z), x, atol=1e-3, rtol=0)


def test_each_picture_decides_for_itself():
    energy, ground, thing = made_energy(), component((0.0, 0.0, 0.0), 0), component((-0.5, 0.5, REACH), 1)
    both = torch.stack([ground, thing])[None]
    x = torch.cat([energy.minimum(both), energy.minimum(both[:, :1])])
    z = look_again(Told(thing.expand(2, -1)), energy, x, ground.expand(2, 1, -1))
    torch.testing.assert_close(z[0], both[0])
    torch.testing.assert_close(energy.minimum(z), x, atol=1e-3, rtol=0)


def test_decomposed_pictures_have_the_further_windows():
    x = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    comet, plain = made_comet(), made_comet(again=0)
    assert (comet.components, plain.components, len(comet.decompose(x))) == (5, 3, 5)
    z = comet.encode(x)
    torch.testing.assert_close(z[:, :3], plain.encode(x))
    torch.testing.assert_close(plain.encode(x), plain.encoder(x).detach())
    errors = [(comet.energy.minimum(z[:, :k]) - x).square().flatten(1).mean(1) for k in (3, 4, 5)]
    assert (errors[1] < errors[0] + 1e-4).all() and (errors[2] < errors[1] + 1e-4).all()


def test_the_number_of_further_windows_is_saved(tmp_path):
    save_comet(made_comet(again=1), tmp_path)
    assert load_comet(tmp_path).components == 4
    with pytest.raises(OptionError, match="again"):
        made_comet(again=-1)
