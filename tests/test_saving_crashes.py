"""Saving that is killed, that fails at any system call, or that others read and write at the same time."""

import errno
import os
import stat

import pytest

import composable_energy as ce
from composable_energy.errors import FileFormatError, StorageError
from composable_energy.files import ENERGY_FILE
from tests.campaign.faults import KILLED, POSSIBLE, Faults, in_child
from tests.processes import ended, needs_forkserver, start
from tests.saving_energies import X, normal

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


def read_often(folder, count):
    for _ in range(count):
        ce.load(folder)(X)


def write_often(folder, mean, count):
    for _ in range(count):
        normal(mean).save(folder)


@pytest.mark.full
@needs_forkserver
def test_readers_beside_two_writers_never_fail(tmp_path):
    folder = tmp_path / "saved"
    normal(0.0).save(folder)
    running = [start("writer", write_often, folder, float(i + 1), 60) for i in range(2)]
    running += [start("reader", read_often, folder, 150) for _ in range(3)]
    assert ended(running) == [0] * 5
    assert mean(folder) in (1.0, 2.0)
    assert len(list(folder.iterdir())) == 1


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
