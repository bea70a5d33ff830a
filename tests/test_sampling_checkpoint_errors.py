"""Checkpoint files of other calls, damaged files, and what a file may hold."""

from dataclasses import dataclass, replace

import pytest
import safetensors.torch
import torch

from composable_energy import sampling
from composable_energy.errors import ExpressionError, FileFormatError, OptionError
from composable_energy.files import write_record
from composable_energy.sampling import Info, Sampler, State, energy_and_gradient
from tests.checkpoint_runs import BOWL, Stop, same, stop_at


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"step_size": 0.2}, r"sampler was 'Langevin\(step_size=0.1.*, is 'Langevin\(step_size=0.2"),
        ({"init": torch.ones(4, 3, dtype=torch.float64)}, "init was None, is '"),
        ({"trace": 5}, "trace was False, is 5"),
    ],
)
def test_a_checkpoint_of_another_call_is_reported(tmp_path, other, told):
    call = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "observers": [sampling.Checkpoint(tmp_path / "c")]}
    BOWL.sample((4, 3), **call)
    with pytest.raises(OptionError, match=f"belongs to another call.*{told}.*give another path"):
        BOWL.sample((4, 3), **{**call, **other})


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"", lambda data: b"not a checkpoint", lambda data: data[:40]])
def test_a_damaged_file_is_reported_and_left_alone(tmp_path, damage):
    call = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "observers": [sampling.Checkpoint(tmp_path / "c")]}
    BOWL.sample((4, 3), **call)
    (tmp_path / "c").write_bytes(damage((tmp_path / "c").read_bytes()))
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(FileFormatError, match="is damaged, or no record"):
        BOWL.sample((4, 3), **call)
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.slow
def test_one_bit_that_flipped_is_found_or_changes_no_draw(tmp_path):
    """In the lengths, the names, the metadata and the data of the tensors; one place in each stretch of the file."""
    call = {"sampler": "mala", "step_size": 0.1, "seed": 0, "trace": 2, "batch_size": 3, "observers": [sampling.Checkpoint(tmp_path / "c")]}
    BOWL.sample((8, 3), steps=4, **call)
    data = (tmp_path / "c").read_bytes()
    wanted = BOWL.sample((8, 3), steps=6, **call)
    harmless, generator, flips = 0, torch.Generator().manual_seed(0), 200
    for i in range(flips):
        stretch = len(data) / flips
        place = int((i + torch.rand(1, generator=generator).item()) * stretch)
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        (tmp_path / "c").write_bytes(flipped)
        try:
            same(wanted, BOWL.sample((8, 3), steps=6, **call))
            harmless += 1
        except FileFormatError:
            assert (tmp_path / "c").read_bytes() == flipped
    assert harmless < flips / 50  # such as a small letter of JSON that became a capital one


def test_a_file_of_another_version_is_refused_with_what_to_do(tmp_path):
    write_record(tmp_path / "c", "checkpoint", 2, {}, {})
    with pytest.raises(FileFormatError, match=r"has version 2, .* reads 4: use the version that wrote it.* give another path"):
        BOWL.sample((4, 3), sampler="langevin", step_size=0.1, steps=3, seed=0, observers=[sampling.Checkpoint(tmp_path / "c")])


@dataclass(frozen=True)
class Pulled(Sampler):
    towards: torch.Tensor

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = self.towards + 0.1 * noise.normal(state.x)
        return State(x, *energy_and_gradient(energy, x)), Info()


def test_options_that_are_tensors_are_compared_to_the_bit(tmp_path):
    one = torch.ones(3, dtype=torch.float64)
    for other, call in ((one.clone(), {}), (one + 1e-9, {"match": "sampler was"})):
        BOWL.sample((4, 3), sampler=Pulled(one), steps=3, seed=0, observers=[sampling.Checkpoint(tmp_path / "c")])
        if not call:
            BOWL.sample((4, 3), sampler=Pulled(other), steps=3, seed=0, observers=[sampling.Checkpoint(tmp_path / "c")])
            continue
        with pytest.raises(OptionError, **call):
            BOWL.sample((4, 3), sampler=Pulled(other), steps=3, seed=0, observers=[sampling.Checkpoint(tmp_path / "c")])


def test_a_file_that_is_no_checkpoint_is_reported(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "c")
    for path in (tmp_path / "c", tmp_path):
        with pytest.raises(FileFormatError, match="give another path"):
            BOWL.sample((4, 3), sampler="langevin", step_size=0.1, steps=3, observers=[sampling.Checkpoint(path)])


@dataclass(frozen=True)
class Odd(State):
    note: object = None


@dataclass(frozen=True)
class Noting(Sampler):
    note: object

    def init(self, energy, x, noise):
        return Odd(x, *energy_and_gradient(energy, x), note=self.note)

    def step(self, energy, state, noise):
        x = state.x + 0.1 * noise.normal(state.x)
        energies, grad = energy_and_gradient(energy, x)
        return replace(state, x=x, energy=energies, grad=grad), Info()


def test_what_a_state_may_hold(tmp_path):
    for i, note in enumerate((None, 3, 2.5, "text", True)):
        whole = BOWL.sample((4, 3), sampler=Noting(note), steps=6, seed=0, trace=True)
        with pytest.raises(Stop):
            BOWL.sample(
                (4, 3),
                sampler=Noting(note),
                steps=6,
                seed=0,
                trace=True,
                observers=[sampling.Stop(stop_at(3)), sampling.Checkpoint(tmp_path / f"{i}")],
            )
        _, trace = again = BOWL.sample(
            (4, 3), sampler=Noting(note), steps=6, seed=0, trace=True, observers=[sampling.Checkpoint(tmp_path / f"{i}")]
        )
        same(whole, again)
        assert trace.state.note == note
    with pytest.raises(ExpressionError, match=r"Odd.note is a list: a checkpoint holds tensors, numbers and text"):
        BOWL.sample((4, 3), sampler=Noting([]), steps=6, seed=0, observers=[sampling.Checkpoint(tmp_path / "odd")])
