"""Small files that would hang, or take all memory, if they were believed."""

import os
import time

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, FileFormatError
from composable_energy.files import ENERGY_FILE
from tests.saving_energies import X, nodes, normal
from tests.saving_energies import edit as change_record

pytestmark = pytest.mark.usefixtures("saving_registry")


class Deep(ce.Energy):
    def __init__(self, depth: int = 2, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 1))
        self.options = {"depth": depth, "width": width}

    def config(self):
        return self.options

    def forward(self, x):
        return self.net(x).squeeze(1) + x.square().sum(1)


@pytest.fixture
def config(tmp_path):
    """Edits the header of a saved energy."""
    folder = tmp_path / "saved"

    def edit(change):
        change_record(folder, change)
        began = time.process_time()
        with pytest.raises(ComposableEnergyError) as caught:
            ce.load(folder)
        assert time.process_time() - began < 10
        return str(caught.value)

    return folder, edit


def test_an_expression_that_doubles_at_each_level_is_refused(config):
    folder, edit = config
    (normal() & normal(1.0)).save(folder)

    def double(data):
        node = data["nodes"][-1]
        for i in range(len(data["nodes"]), 60):
            data["nodes"].append({**node, "terms": 2 * [{"$module": [i - 1, ""]}]})
        data["root"] = {"$module": [len(data["nodes"]) - 1, ""]}

    assert "more than 100000 nodes" in edit(double)


@pytest.mark.full
@pytest.mark.parametrize("options", [{"depth": 100_000}, {"width": 10**18}])
def test_options_that_build_much_more_than_the_saved_tensors_are_refused(config, options):
    folder, edit = config
    with ce.register("energy", "deep", Deep):
        ce.get("energy", "deep").save(folder)
        assert torch.isfinite(ce.load(folder)(X)).all()
        message = edit(lambda data: nodes(data, "built")[0]["options"].update(options))
    assert "much larger than its saved tensors" in message or "cannot be built" in message


class Stacked(ce.Energy):
    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.register_buffer("table", torch.cat([torch.zeros(1000, 1000)] * copies).sum(0))
        self.options = {"copies": copies}

    def config(self):
        return self.options

    def forward(self, x):
        return x.square().sum(1)


def test_what_functions_return_is_counted(config):
    folder, edit = config
    with ce.register("energy", "stacked", Stacked):
        ce.get("energy", "stacked").save(folder)
        message = edit(lambda data: nodes(data, "built")[0]["options"].update(copies=200))
    assert "much larger than its saved tensors" in message


def test_an_expression_that_could_not_be_loaded_is_not_saved(tmp_path):
    energy = normal() & normal(1.0)
    for _ in range(20):
        energy = ce.algebra.Negation(ce.algebra.Conjunction(energy, energy), mode="power")
    with pytest.raises(ce.errors.ExpressionError, match="cannot be saved"):
        energy.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
@pytest.mark.parametrize("kind", ["a pipe", "an endless device", "a link to itself", "a folder"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    folder = tmp_path / "saved"
    normal().save(folder)
    path = folder / ENERGY_FILE
    path.unlink()
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "an endless device":
            path.symlink_to("/dev/zero")
        case "a link to itself":
            path.symlink_to(path)
        case _:
            path.mkdir()
    with pytest.raises(FileFormatError):
        ce.load(folder)
