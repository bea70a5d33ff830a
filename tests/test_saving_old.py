"""Files of version 0.1, as long as `composable_energy.files.old` reads them."""

import hashlib
import json

import pytest
import safetensors.torch
import torch

import composable_energy as ce
from composable_energy.errors import FileFormatError
from composable_energy.files import ENERGY_FILE, digest_of, read_record
from tests.checkpoint_runs import BOWL
from tests.saving_energies import X, expressions

pytestmark = pytest.mark.usefixtures("saving_registry")


def write_pair(folder, energy):
    """Writes an energy as version 0.1 did."""
    energy.save(folder)
    header, tensors = read_record(folder / ENERGY_FILE, "energy", 3)
    (folder / ENERGY_FILE).unlink()
    data, name = safetensors.torch.save(tensors), "model-0123456789abcdef.safetensors"
    body = {"format": 2, "written_by": "composable-energy 0.1.0", "tensors_file": name, **header}
    body["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({**body, "checksum": checksum}, indent=1))
    return folder


def test_folders_load_and_are_replaced_by_a_save(tmp_path):
    for i, energy in enumerate(expressions()):
        folder = write_pair(tmp_path / str(i), energy)
        assert torch.equal(ce.load(folder)(X), energy(X))
        (2 * energy).save(folder)
        assert torch.equal(ce.load(folder)(X), 2 * energy(X))


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("0.3", "0.4"),
        lambda text: text.replace("model-0", "../model-0"),
        lambda text: "[" * 100_000,
        lambda text: "[1, 2]",
        lambda text: '{"model_type": "bert"}',
    ],
)
def test_damaged_and_other_folders_are_refused(tmp_path, edit):
    path = write_pair(tmp_path, expressions()[0]) / "config.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(FileFormatError, match="cannot be read"):
        ce.load(tmp_path)


def test_checkpoints_are_refused_with_what_to_do(tmp_path):
    call = {"sampler": "mala", "step_size": 0.1, "seed": 0, "steps": 3}
    record = {"format": 3, "call": {}, "steps": 3}
    for digest, message in ((digest_of({}, record), "has version 3, written by 'version 0.1'"), ("0", "its digest is another")):
        metadata = {"composable_energy_checkpoint": json.dumps({**record, "digest": digest})}
        safetensors.torch.save_file({}, tmp_path / "c", metadata)
        with pytest.raises(FileFormatError, match=message):
            BOWL.sample((8, 3), observers=[ce.sampling.Checkpoint(tmp_path / "c")], **call)
