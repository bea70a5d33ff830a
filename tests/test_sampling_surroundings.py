"""Sampling does not depend on what surrounds the call, and requests that cannot be met are typed errors."""

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import DeviceError, FileFormatError, OptionError
from composable_energy.files import ENERGY_FILE, write_record

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).eval()
    return ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, event_shape=(2,))


CALL = {"sampler": "mala", "step_size": 0.3, "steps": 20, "seed": 0}


def test_autocast_changes_no_draw():
    energy = network()
    wanted = energy.sample((16, 2), **CALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(energy.sample((16, 2), **CALL), wanted)
        assert torch.is_autocast_enabled("cpu")


def test_a_callback_that_writes_into_what_it_is_given_changes_no_draw():
    energy = network()
    wanted = energy.sample((16, 2), **CALL)

    def vandal(step, state, info):
        state.x.zero_(), state.energy.fill_(7), state.grad.normal_()
        if info.acceptance is not None:
            info.acceptance.fill_(2)
        info.scalars.clear()

    assert torch.equal(energy.sample((16, 2), observers=[ce.sampling.Stop(vandal)], **CALL), wanted)
    _, trace = energy.sample((16, 2), observers=[ce.sampling.Stop(vandal)], trace=True, **CALL)
    assert trace.acceptance.max() <= 1


class Family(ce.EnergyFamily):
    def members(self):
        return ("a",)

    def load(self, member):
        return Bowl()


class Bowl(ce.Energy):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return (self.scale * x).square().sum(1)


class Shared(Family):
    def __init__(self):
        self.bowl = Bowl()

    def load(self, member):
        return self.bowl


@pytest.mark.parametrize("family", [Family, Shared])
def test_a_family_first_loaded_in_double_precision_is_single_afterwards(family):
    with ce.register("energy", "bowls", family):
        torch.set_default_dtype(torch.float64)
        try:
            assert ce.get("energy", "bowls/a").scale.dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert ce.get("energy", "bowls/a").scale.dtype == torch.float32


def test_the_device_meta_is_refused():
    with pytest.raises(DeviceError, match="meta"):
        Bowl().to("meta").sample((4, 2))


def test_more_points_than_memory_holds_are_refused_before_anything_is_allocated():
    with pytest.raises(OptionError, match=r"points of shape .* need at least 8 TB of memory"):
        ce.as_energy(torch.distributions.Normal(torch.zeros(1000), 1.0)).sample(10**9)


def test_names_of_a_saved_energy_are_shown_with_escapes(tmp_path):
    write_record(tmp_path / ENERGY_FILE, "energy\x1b[2J", 3, {}, {})
    with pytest.raises(FileFormatError) as caught:
        ce.load(tmp_path)
    assert "\x1b" not in str(caught.value) and r"\x1b[2J" in str(caught.value)


@pytest.mark.slow
def test_the_command_line_shows_names_of_downloaded_terms_with_escapes(tmp_path, capsys):
    from composable_energy_cli import main

    bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0), name="a\x1b[2Jb")
    bowl.save(tmp_path / "saved")
    target = str(tmp_path / "draws.npy")
    for words in (
        ["sample", f"'{tmp_path / 'saved'}'", "-n", "4", "-o", target, "--seed", "0", "--json"],
        ["explain", f"'{tmp_path / 'saved'}'", target],
    ):
        main(words)
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err
        assert "1b[2J" in shown.out + shown.err


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["chees", "smc"])
def test_the_default_dtype_changes_no_draw(sampler):
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    call = {"sampler": sampler, "seed": 3, "dtype": torch.float32} | ({} if sampler == "smc" else {"steps": 3})
    wanted = energy.sample((8, 2), **call)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(energy.sample((8, 2), **call), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("output", [lambda e: e.to_sparse(), lambda e: e.to("meta")], ids=["sparse", "meta"])
def test_energies_that_are_no_dense_tensor_on_the_device_of_the_points_are_typed_errors(output):
    energy = ce.as_energy(lambda x: output(x.square().sum(1)), event_shape=(2,))
    with pytest.raises(ce.errors.DtypeError, match="dense tensor"):
        energy.sample((4, 2), **CALL)
