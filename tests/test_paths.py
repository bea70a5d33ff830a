"""Paths that the system cannot look up lead nowhere, and a reader says so in its own words."""

from pathlib import Path

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError
from composable_energy.paths import exists, is_directory, is_file
from composable_energy_cli import main
from composable_energy_comet import load_comet
from composable_energy_image.data import open_pictures
from composable_energy_mcmc import Langevin
from composable_energy_training import open_recipe

LONG = "a" * 300
"""Longer than the 255 bytes that file systems take."""


@pytest.mark.parametrize("path", [Path(LONG), Path("a\0b"), Path(f"{LONG}/b")])
def test_there_is_nothing_at_a_path_that_cannot_be_looked_up(path):
    assert not exists(path)
    assert not is_file(path)
    assert not is_directory(path)


def test_files_and_folders_are_told_apart(tmp_path):
    (tmp_path / "file").write_text("")
    assert [look(tmp_path / "file") for look in (exists, is_file, is_directory)] == [True, True, False]
    assert [look(tmp_path) for look in (exists, is_file, is_directory)] == [True, False, True]


READERS = {
    "load": ce.load,
    "load_path": lambda text: ce.load(Path(text)),
    "comet": load_comet,
    "pictures": lambda text: open_pictures(text, cache=None),
    "recipe": lambda text: open_recipe(f"{text}.toml"),
    "checkpoint": lambda text: ce.get_energy("plane/ring").sample(
        (2, 2), sampler=Langevin(0.1), init=torch.zeros(2, 2), steps=1, checkpoint=text
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_name_that_is_too_long_is_an_error_of_the_library(reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ComposableEnergyError):
        READERS[reader](LONG)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "x", "--in", LONG],
        ["sample", f"{LONG}/x"],
        ["sample", "ring", "--in", "plane", "-o", f"{LONG}/a.png"],
        ["train", "--recipe", "base-and-attributes", "--data", LONG, "--out", "run"],
    ],
)
def test_the_command_line_says_that_there_is_nothing(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert "Errno" not in capsys.readouterr().err
