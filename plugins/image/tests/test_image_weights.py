"""Weights on disk: half precision in the file, single precision in memory, and files of other networks are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from composable_energy.errors import FileFormatError
from composable_energy_image.weights import read_weights, write_weights


def network(seed: int, width: int = 5) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
        for value in [*net.parameters(), net[1].get_buffer("running_mean")]:
            nn.init.normal_(value)
    return net


def test_parameters_come_back_rounded_to_half_precision_and_statistics_as_they_were(tmp_path):
    before = network(0)
    write_weights(before, "net", tmp_path)
    after = read_weights(network(1), "net", tmp_path)
    for name, value in before.named_parameters():
        assert torch.equal(after.get_parameter(name), value.half().float()) and not torch.equal(value.half().float(), value)
    assert torch.equal(after[1].get_buffer("running_mean"), before[1].get_buffer("running_mean"))
    assert not after.training and not any(value.requires_grad for value in after.parameters())
    assert {path.name for path in tmp_path.iterdir()} == {"net.safetensors"}


def test_layers_are_found_by_what_they_were_called(tmp_path):
    write_weights(network(0), "net", tmp_path)
    old = {
        f"former.{name[2:]}" if name.startswith("2.") else name: value for name, value in load_file(tmp_path / "net.safetensors").items()
    }
    save_file(old, tmp_path / "old.safetensors")
    with pytest.raises(FileFormatError, match=r"differing: \['2.bias', '2.weight', 'former.bias', 'former.weight'\]"):
        read_weights(network(1), "old", tmp_path)
    found = read_weights(network(1), "old", tmp_path, renamed={"former": "2"})
    assert torch.equal(found.get_parameter("2.weight"), network(0).get_parameter("2.weight").half().float())


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_file_that_cannot_be_read_is_reported(tmp_path, damage):
    write_weights(network(0), "net", tmp_path)
    file = tmp_path / "net.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="Cannot read the weights"):
        read_weights(network(1), "net", tmp_path)
