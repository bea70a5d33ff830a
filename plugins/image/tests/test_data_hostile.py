"""Files that would hang a reader, or that raised errors without a type."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError
from composable_energy_image.data import open_pictures


def write_picture(path):
    Image.new("RGB", (4, 4)).save(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("cache", [False, True])
def test_a_picture_that_is_a_pipe_is_refused_at_once(tmp_path, cache):
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_picture(folder / "1.png")
    os.mkfifo(folder / "2.png")
    with pytest.raises(FileFormatError, match=r"2\.png is no regular file"):
        open_pictures(folder, cache=tmp_path / "cache" if cache else None)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_picture_that_links_to_itself_is_named(tmp_path):
    write_picture(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "2.png")
    with pytest.raises(FileFormatError, match=r"2\.png is no regular file"):
        open_pictures(tmp_path, cache=None)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("format", [None, "npy", "npz"])
def test_an_array_that_is_a_pipe_is_refused_at_once(tmp_path, format):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ComposableEnergyError):
        open_pictures(tmp_path / "a.npy", format=format, cache=None)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_table_that_is_a_pipe_is_refused_at_once(tmp_path):
    write_picture(tmp_path / "1.png")
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(FileFormatError, match="no regular file"):
        open_pictures(tmp_path, cache=None)


def test_a_number_of_5000_digits_is_no_label(tmp_path):
    write_picture(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text("file,class\n1.png," + "7" * 5000 + "\n")
    with pytest.raises(FileFormatError, match="is not an integer"):
        open_pictures(tmp_path, cache=None)


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            data = io.BytesIO()
            if isinstance(value, bytes):
                archive.writestr(name, value)
                continue
            np.save(data, value)
            archive.writestr(f"{name}.npy", data.getvalue())


@pytest.mark.parametrize(
    "label",
    [
        b"no array",
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype=np.complex128),
        np.array([b"a", b"b"]),
        np.array([0, 2**62]),
        np.array([-(2**62), 0]),
        np.array(3),
    ],
    ids=["bytes", "dates", "records", "complex", "byte strings", "huge", "negative", "a number"],
)
def test_a_bad_member_of_an_archive_is_a_typed_error(tmp_path, label):
    npz(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), label=label)
    with pytest.raises(ComposableEnergyError):
        open_pictures(tmp_path / "a.npz", cache=None)


def test_labels_beyond_a_million_classes_are_refused():
    import torch

    from composable_energy_image.data.labels import labels_from_numbers

    with pytest.raises(OptionError, match="number the classes from 0"):
        labels_from_numbers(torch.tensor([0, 10**12]))


def test_a_name_that_no_folder_can_have_is_found_before_training(tmp_path):
    write_picture(tmp_path / "1.png")
    for table in ("file," + "x" * 300 + "\n1.png,1\n", "file,class\n1.png," + "x" * 300 + "\n"):
        (tmp_path / "table.csv").write_text(table)
        with pytest.raises(FileFormatError, match="of 300 characters"):
            open_pictures(tmp_path, cache=None)
