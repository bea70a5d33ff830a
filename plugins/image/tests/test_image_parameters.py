"""Parameter counts of all networks, and the networks at their native size."""

import pytest
import torch

import composable_energy as ce

COUNTS = [  # derived layer by layer from the papers
    ("igebm-resnet32", {}, 5_315_841),
    ("igebm-resnet32", {"labels": 10}, 5_349_249),
    ("igebm-resnet32-large", {}, 18_591_105),
    ("igebm-resnet32-wider", {}, 41_930_049),
    ("igebm-resnet32-wider", {"width": 256}, 74_337_537),
    ("igebm-mnist", {}, 1_246_721),
    ("igebm-dsprites", {}, 951_617),
    ("igebm-dsprites", {"labels": 3}, 953_217),
    ("compositional-128", {}, 15_711_809),
    ("compositional-128", {"labels": 2}, 15_717_313),
    ("compositional-64", {"labels": 6}, 2_151_617),
    ("compositional-64", {"numbers": 2}, 2_166_977),
    ("improved-cd", {}, 6_564_196),
    ("improved-cd", {"labels": 10, "spectral_norm": False}, 6_635_876),
    ("improved-cd", {"multiscale": False, "attention": False}, 4_838_593),
    ("improved-cd", {"setting": "celeba"}, 27_643_780),
    ("jem", {}, 36_471_338),
    ("energy-unet", {}, 753_027),
    ("energy-unet", {"labels": 10}, 754_307),
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "options", "count"), COUNTS, ids=lambda value: str(value) if not isinstance(value, int) else "")
def test_parameters_are_those_of_the_paper(name, options, count):
    with torch.device("meta"):
        energy = ce.get("energy", name, **options)
    assert sum(parameter.numel() for parameter in energy.parameters()) == count


NATIVE = {
    "igebm-resnet32": (3, 32, 32),
    "igebm-resnet32-large": (3, 32, 32),
    "igebm-resnet32-wider": (3, 32, 32),
    "igebm-mnist": (1, 28, 28),
    "igebm-dsprites": (1, 64, 64),
    "compositional-128": (3, 128, 128),
    "compositional-64": (3, 64, 64),
    "improved-cd": (3, 32, 32),
    "jem": (3, 32, 32),
    "energy-unet": (3, 32, 32),
}


@pytest.mark.full
@pytest.mark.parametrize("name", NATIVE)
def test_energy_and_gradient_are_finite_at_the_native_size(name):
    torch.manual_seed(0)
    energy = ce.get("energy", name).eval()
    assert energy.event_shape == NATIVE[name]
    energies, gradient = energy.with_gradient(torch.rand(1, *NATIVE[name]))
    assert energies.shape == (1,) and bool(energies.isfinite().all())
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0


def test_the_celeba_setting_is_for_128_pixels():
    energy = ce.get("energy", "improved-cd", setting="celeba", width=8).eval()
    assert energy.event_shape == (3, 128, 128)
    assert bool(energy(torch.rand(2, 3, 128, 128)).isfinite().all())
