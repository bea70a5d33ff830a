"""Saving that is killed, that fails at any system call, or that others read and write at the same time."""

import errno
import os
import stat

import pytest

import composable_energy as ce
from composable_energy import sampling
from composable_energy.errors import ComposableEnergyError, FileFormatError, StorageError
from composable_energy.files import ENERGY_FILE, read_record, write_record
from tests.campaign.faults import KILLED, POSSIBLE, Faults, in_child
from tests.sampling_runs import BOWL, Stop, same
from tests.saving_energies import normal

pytestmark = pytest.mark.usefixtures("saving_registry")
needs_fork = pytest.mark.skipif(not POSSIBLE, reason="forks, and reads the names of open files")

STATES = {"a new folder": False, "a folder with a saved energy": True}


def mean(folder):
    """The mean of the saved energy; None if there is none."""
    try:
        return ce.load(folder).distribution.mean[0].item()
    except FileFormatError as error:
        assert "holds no saved energy" in str(error), error
        return None


@pytest.mark.full
@needs_fork
@pytest.mark.parametrize("fault", [None, errno.ENOSPC], ids=["kill", "error"])
@pytest.mark.parametrize("before", STATES.values(), ids=STATES)
def test_a_fault_at_any_system_call_leaves_the_old_or_the_new_energy_that_the_next_save_replaces(tmp_path, before, fault):
    seen, at, done = set(), 0, False
    while not done:
        folder = tmp_path / str(at) / "saved"
        folder.parent.mkdir()
        if before:
            normal(1.0).save(folder)
        code, text = in_child(lambda folder=folder: normal(2.0).save(folder), Faults(at, tmp_path, fault))
        assert code == 0 or (code == KILLED if fault is None else text.startswith("composable_energy.errors.StorageError")), text
        seen.add(mean(folder))
        done = code == 0 and (fault is None or int(text) <= at)
        normal(3.0).save(folder)
        assert mean(folder) == 3.0
        assert fault or [path.name for path in (*folder.parent.iterdir(), *folder.iterdir())] == ["saved", ENERGY_FILE]
        at += 1
    assert at > 3
    assert seen == {1.0 if before else None, 2.0}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_save_keeps_the_permissions_of_the_folder_and_of_its_files(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir(mode=0o700)
    normal(1.0).save(folder)
    (folder / ENERGY_FILE).chmod(0o600)
    normal(2.0).save(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_name_that_is_too_long_is_a_typed_error(tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        normal().save(tmp_path / ("x" * 300))


CALL = {"sampler": "mala", "step_size": 0.1, "seed": 0, "trace": 2, "batch_size": 3}


def sample(path, steps=6, every=10, callback=lambda *_: None, **options):
    watched = [sampling.Stop(callback)] + ([] if path is None else [sampling.Checkpoint(path, every)])
    return BOWL.sample((8, 3), steps=steps, observers=watched, **{**CALL, **options})


def test_a_second_call_with_a_checkpoint_in_use_is_refused_(tmp_path):
    def again(step, state, info):
        with pytest.raises(StorageError, match="in use by another call or process: wait"):
            sample(tmp_path / "c")
        raise Stop

    with pytest.raises(Stop):
        sample(tmp_path / "c", callback=again)
    sample(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_files_with_similar_names_and_links_stay(tmp_path):
    mine = [".c.mine.new", ".c.12-abc.new", ".c.txt", f".c.{os.getpid()}-0123abcd.new"]  # the last is that of a process that runs
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "elsewhere" / "real")
    wanted = sample(tmp_path / "c")
    same(wanted, sample(tmp_path / "c"))
    assert (tmp_path / "c").is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real"]
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


@pytest.mark.full
@needs_fork
@pytest.mark.parametrize("fault", [None, errno.ENOSPC], ids=["kill", "error"])
def test_a_fault_at_any_system_call_leaves_a_checkpoint_that_continues_to_the_same_bits(tmp_path, fault):
    wanted, at, done = sample(None), 0, False
    while not done:
        path = tmp_path / str(at) / "c"
        code, text = in_child(lambda path=path: sample(path, every=0), Faults(at, tmp_path, fault))
        assert code == 0 or (code == KILLED if fault is None else text.startswith("composable_energy.errors.StorageError")), text
        same(wanted, sample(path))
        assert fault or [left.name for left in path.parent.iterdir()] == ["c"]
        done = code == 0 and (fault is None or int(text) <= at)
        at += 1
    assert at > 20


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot be locked"):
        sample(tmp_path / "file" / "c")
    with pytest.raises(StorageError):
        sample(tmp_path / ("x" * 300))


EDITS = {
    "no steps": lambda r, t: r.pop("steps"),
    "steps as text": lambda r, t: r.update(steps="3"),
    "negative steps": lambda r, t: r.update(steps=-3),
    "steps beyond a word": lambda r, t: r.update(steps=2**70),
    "a call of another type": lambda r, t: r.update(call=3),
    "a seed of another type": lambda r, t: r["call"].update(seed="zero"),
    "no state": lambda r, t: r.pop("state"),
    "a scalar that is text": lambda r, t: r.update(scalars={"a": ["b"]}),
    "steps of points of another type": lambda r, t: r.update(point_steps="many"),
    "a reference that is missing": lambda r, t: r.update(reference=9),
    "no reference": lambda r, t: r.update(reference=0),
    "points of another shape": lambda r, t: t.update({"state.x": t["state.x"][:1]}),
    "points without rows": lambda r, t: t.update({"state.x": t["state.x"].sum()}),
    "divergences of another type": lambda r, t: t.update(diverged_at=t["diverged_at"].double()),
    "divergences that are missing": lambda r, t: t.pop("diverged_at"),
    "energies of another shape": lambda r, t: t.update(energies=t["energies"][:, :1].clone()),
    "gradients of another shape": lambda r, t: t.update({"reference.0.grads": t["reference.0.grads"].flatten()}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_record_is_a_typed_error(tmp_path, name):
    sample(tmp_path / "c", steps=3)
    record, tensors = read_record(tmp_path / "c", "checkpoint", 4)
    EDITS[name](record, tensors)
    write_record(tmp_path / "c", "checkpoint", 4, record, tensors)  # with a digest that fits
    with pytest.raises(ComposableEnergyError, match="give another path"):
        sample(tmp_path / "c")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_in_place_of_a_checkpoint_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "c")
    with pytest.raises(FileFormatError, match="no regular file"):
        sample(tmp_path / "c")
