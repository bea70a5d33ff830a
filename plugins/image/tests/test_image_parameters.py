"""Parameter counts of all networks, computed by hand from the papers, and the networks at their native size."""

import pytest
import torch

import composable_energy as ce


def convolution(inputs: int, outputs: int, kernel: int = 3) -> int:
    return kernel**2 * inputs * outputs


def biased(inputs: int, outputs: int, kernel: int = 3) -> int:
    return convolution(inputs, outputs, kernel) + outputs


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def block(inputs: int, outputs: int, rows: int = 1) -> int:
    """Two convolutions, a third where channels differ, and for each label a bias before each of the two and a gain after the second."""
    skip = 0 if inputs == outputs else convolution(inputs, outputs)
    return convolution(inputs, outputs) + convolution(outputs, outputs) + skip + rows * (inputs + outputs + outputs)


def halving(inputs: int, outputs: int, rows: int = 1) -> int:
    """A 4 x 4 convolution, with a bias before it and a gain after it for each label."""
    return convolution(inputs, outputs, 4) + rows * (inputs + outputs)


def six(rows: int) -> int:
    return convolution(3, 128) + 2 * block(128, 128, rows) + block(128, 256, rows) + 3 * block(256, 256, rows) + linear(256, 1)


def nine(first: int, w: int) -> int:
    small = block(first, w) + 2 * block(w, w)
    middle = block(w, 2 * w) + 2 * block(2 * w, 2 * w)
    large = block(2 * w, 4 * w) + 2 * block(4 * w, 4 * w)
    return convolution(3, first) + small + middle + large + linear(4 * w, 1)


def mnist() -> int:
    halvings = halving(64, 64) + halving(64, 128) + halving(128, 256)
    return convolution(1, 64) + halvings + linear(4 * 4 * 256, 128) + linear(128, 1)


def dsprites(rows: int) -> int:
    halvings = halving(32, 64, rows) + halving(64, 128, rows) + 2 * halving(128, 128, rows)
    return convolution(1, 32) + halvings + linear(4 * 4 * 128, 128) + linear(128, 1)


def faces_128(rows: int) -> int:
    doubling = block(64, 128, rows) + block(128, 256, rows) + block(256, 512, rows)
    return convolution(3, 64) + block(64, 64, rows) + doubling + 2 * block(512, 512, rows) + linear(512, 1)


def cubes_64(rows: int) -> int:
    middle = block(64, 64, rows) + block(64, 128, rows) + 2 * block(128, 128, rows)
    return convolution(3, 64) + middle + block(128, 256, rows) + linear(256, 1)


def normed(w: int, labels: int = 0, down: int = 0) -> int:
    """Twice a convolution, a norm's gain and bias, and the label's; then a convolution to `down` channels where the size is halved."""
    return 2 * (biased(w, w) + 2 * w + labels * 2 * w) + (biased(w, down) if down else 0)


def attention(w: int) -> int:
    return 2 * biased(w, w // 8, 1) + biased(w, w, 1) + 1


def cifar_main(labels: int = 0) -> int:
    early = normed(64, labels) + normed(64, labels, 64) + normed(64, labels) + normed(64, labels, 128)
    late = normed(128, labels) + normed(128, labels, 256) + normed(256, labels) + normed(256, labels, 512)
    return biased(3, 64) + early + late + linear(512, 1)


def cifar(labels: int = 0) -> int:
    n = labels
    middle = normed(64, n) + normed(64, n, 64) + normed(64, n) + normed(64, n, 128) + normed(128, n) + normed(128, n, 256)
    small = normed(64, n) + normed(64, n, 64) + normed(64, n) + normed(64, n, 128)
    return cifar_main(n) + attention(128) + 2 * biased(3, 64) + middle + linear(256, 1) + small + linear(128, 1)


def celeba() -> int:
    early = normed(64, down=128) + 2 * normed(128, down=128) + normed(128, down=256)
    late = normed(256) + normed(256, down=512) + attention(512) + normed(512) + normed(512, down=1024)
    middle = 3 * normed(128, down=128) + normed(128, down=256) + normed(256, down=256) + normed(256, down=512)
    small = 3 * normed(128, down=128) + normed(128, down=256)
    heads = linear(1024, 1) + linear(512, 1) + linear(256, 1)
    return biased(3, 64) + early + late + biased(3, 128) + middle + biased(3, 128) + small + heads


def wide_resnet_28_10() -> int:
    """Three groups of four blocks of two convolutions; the first block of a group has a 1 x 1 convolution for its skip."""
    groups = 0
    for inputs, outputs in ((16, 160), (160, 320), (320, 640)):
        groups += biased(inputs, outputs) + biased(outputs, outputs) + biased(inputs, outputs, 1) + 3 * 2 * biased(outputs, outputs)
    return biased(3, 16) + groups + linear(640, 10)


def unet(labels: int = 0) -> int:
    """Channels 32, 64, 128; a block at each size on the way down, and on the way up at all but the smallest."""

    def leveled(w: int) -> int:
        return 2 * biased(w, w) + linear(128, 2 * w)

    down = leveled(32) + biased(32, 64) + leveled(64) + biased(64, 128) + leveled(128)
    up = biased(128, 64) + leveled(64) + biased(64, 32) + leveled(32)
    return linear(32, 128) + labels * 128 + biased(3, 32) + down + up + biased(32, 3)


COUNTS = [
    ("igebm-resnet32", {}, six(rows=1)),
    ("igebm-resnet32", {"labels": 10}, six(rows=10)),
    ("igebm-resnet32-large", {}, nine(128, 128)),
    ("igebm-resnet32-wider", {}, nine(128, 192)),
    ("igebm-resnet32-wider", {"width": 256}, nine(128, 256)),
    ("igebm-mnist", {}, mnist()),
    ("igebm-dsprites", {}, dsprites(rows=1)),
    ("igebm-dsprites", {"labels": 3}, dsprites(rows=3)),
    ("compositional-128", {}, faces_128(rows=1)),
    ("compositional-128", {"labels": 2}, faces_128(rows=2)),
    ("compositional-64", {"labels": 6}, cubes_64(rows=6)),
    ("compositional-64", {"numbers": 2}, cubes_64(rows=2 * 7)),  # themselves, and three waves by sine and cosine
    ("improved-cd", {}, cifar()),
    ("improved-cd", {"labels": 10, "spectral_norm": False}, cifar(10)),
    ("improved-cd", {"multiscale": False, "attention": False}, cifar_main()),
    ("improved-cd", {"setting": "celeba"}, celeba()),
    ("jem", {}, wide_resnet_28_10()),
    ("energy-unet", {}, unet()),
    ("energy-unet", {"labels": 10}, unet(10)),
]


@pytest.mark.full
@pytest.mark.parametrize(("name", "options", "count"), COUNTS, ids=lambda value: str(value) if not isinstance(value, int) else "")
def test_parameters_are_those_of_the_paper(name, options, count):
    with torch.device("meta"):
        energy = ce.get_energy(name, **options)
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
    energy = ce.get_energy(name).eval()
    assert energy.event_shape == NATIVE[name]
    energies, gradient = energy.with_gradient(torch.rand(1, *NATIVE[name]))
    assert energies.shape == (1,) and bool(energies.isfinite().all())
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0


def test_the_celeba_setting_is_for_128_pixels():
    energy = ce.get_energy("improved-cd", setting="celeba", width=8).eval()
    assert energy.event_shape == (3, 128, 128)
    assert bool(energy(torch.rand(2, 3, 128, 128)).isfinite().all())
