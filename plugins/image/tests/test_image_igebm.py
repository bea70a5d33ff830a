"""The nets of Du & Mordatch (2019): their parameters counted by hand, layer by layer."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError


def convolution(inputs: int, outputs: int, kernel: int = 3) -> int:
    return kernel**2 * inputs * outputs


def block(inputs: int, outputs: int, rows: int = 1) -> int:
    """Two convolutions, a third where channels differ, and for each label a bias before each of the two and a gain after the second."""
    skip = 0 if inputs == outputs else convolution(inputs, outputs)
    return convolution(inputs, outputs) + convolution(outputs, outputs) + skip + rows * (inputs + outputs + outputs)


def halving(inputs: int, outputs: int, rows: int = 1) -> int:
    return convolution(inputs, outputs, 4) + rows * (inputs + outputs)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def nine(first: int, w: int) -> int:
    small = block(first, w) + 2 * block(w, w)
    middle = block(w, 2 * w) + 2 * block(2 * w, 2 * w)
    large = block(2 * w, 4 * w) + 2 * block(4 * w, 4 * w)
    return convolution(3, first) + small + middle + large + linear(4 * w, 1)


def six(rows: int) -> int:
    down = block(128, 128, rows) + block(128, 128, rows) + block(128, 256, rows)
    return convolution(3, 128) + down + 3 * block(256, 256, rows) + linear(256, 1)


COUNTS = {
    ("igebm-resnet32", None): six(rows=1),
    ("igebm-resnet32", 10): six(rows=10),
    ("igebm-resnet32-large", None): nine(128, 128),
    ("igebm-resnet32-wider", None): nine(128, 192),
    ("igebm-mnist", None): convolution(1, 64) + halving(64, 64) + halving(64, 128) + halving(128, 256) + linear(4096, 128) + linear(128, 1),
    ("igebm-dsprites", 3): (
        convolution(1, 32) + halving(32, 64, 3) + halving(64, 128, 3) + 2 * halving(128, 128, 3) + linear(2048, 128) + linear(128, 1)
    ),
}


@pytest.mark.parametrize(("name", "labels"), COUNTS, ids=str)
def test_parameters_are_those_of_the_paper(name, labels):
    with torch.device("meta"):
        energy = ce.get_energy(name, labels=labels)
    assert sum(p.numel() for p in energy.parameters()) == COUNTS[name, labels]


def test_a_size_that_blocks_cannot_halve_is_refused():
    with pytest.raises(OptionError, match="size must be a multiple of 8"):
        ce.get_energy("igebm-resnet32", size=28)
