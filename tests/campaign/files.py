"""Damaged and edited files: a load returns the same values, or raises a typed error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import composable_energy as ce
from composable_energy.files import config_bytes, digest_of
from composable_energy_training import CSVLog
from plugins.training.tests.run_helpers import Scripted, trainer
from tests.campaign.crashes import Training, normal, trained_weights
from tests.campaign.trial import Area, Trial, check, typed
from tests.checkpoint_runs import BOWL, safe_metadata
from tests.saving_energies import Attributes, Mean, Picture, Tempered, X, expressions

_CHECKPOINT = "composable_energy_checkpoint"
_CALL = {"sampler": "mala", "step_size": 0.1, "seed": 0, "trace": 2, "warn": False}
_ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2, 10**6, 10**9, 10**20, -(10**20), 0.0, -0.5, 1e300, 1e-300),
    *("", "x", "\x1b[2J", "../..", "/dev/zero", "a" * 5000),
    *([], [0], [[]], {}, {"$tensor": "x"}, {"$energy": 0}, {"$module": [0, ""]}, {"$tuple": []}, {"$slice": [0, 10**18, 1]}),
    *({"$distribution": ["Normal", {}, {}]}, {"$support": ["positive", []]}),
]


def damage(data: bytes, chance: random.Random) -> bytes:
    """Returns damaged bytes: flips, cuts, insertions, swaps of blocks, zeros."""
    if not data:
        return b"\0"
    place, size = chance.randrange(len(data)), chance.choice([1, 4, 16, 512])
    match chance.randrange(8):
        case 0 | 1:
            return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
        case 2:
            return data[:place]
        case 3:
            return data[:place] + chance.randbytes(size) + data[place:]
        case 4:
            return data[:place] + data[place + size :]
        case 5:
            return data[:place] + bytes(size) + data[place + size :]
        case 6:
            other = chance.randrange(len(data))
            first, second = sorted((place, other))
            return (
                data[:first]
                + data[second : second + size]
                + data[first + size : second]
                + data[first : first + size]
                + data[second + size :]
            )
        case _:
            return data + data[:size]


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each value inside JSON data."""
    if path:
        yield path
    if isinstance(data, (dict, list)):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from places(data[key], (*path, key))


def edit(data: Any, chance: random.Random) -> None:
    """Replaces, removes, doubles or moves one value inside JSON data."""
    *path, last = chance.choice(list(places(data)))
    holder = data
    for key in path:
        holder = holder[key]
    match chance.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(["x", "$tensor", "terms"])] = deepcopy(chance.choice(_ODD))
        case 2 if isinstance(holder, list):
            holder.insert(last, holder[last])
        case 3 if isinstance(holder, list):
            del holder[last]
        case 4 if isinstance(holder[last], int) and not isinstance(holder[last], bool):
            holder[last] += chance.choice([-1, 1, 100, 10**9])
        case _:
            holder[last] = deepcopy(chance.choice(_ODD))  # a later edit may change it


def prepare(folder: Path) -> Trial:
    """Writes three expressions and a checkpoint; a trial damages or edits one of them."""
    for name, obj in (("people", Attributes), ("tempered", Tempered), ("picture", Picture), ("mean", Mean)):
        ce.register("energy", name, obj)
    ce.register("encoder", "linear", nn.Linear)
    saved = [folder / str(i) for i in range(3)]
    for energy, place in zip(expressions(), saved, strict=True):
        energy.save(place)
    values = [ce.load(place)(X) for place in saved]
    BOWL.sample((8, 3), steps=4, checkpoint=folder / "c", **_CALL)
    wanted, _ = BOWL.sample((8, 3), steps=6, **_CALL)
    (normal(1.0) & normal(2.0)).save(folder / "pair")
    trainer(Scripted({}), None, out=folder / "trained" / "run", steps=4, checkpoint_every=2, callbacks=[CSVLog(1)]).fit()

    def expression(chance: random.Random, place: Path) -> str:
        i, other = chance.randrange(3), chance.randrange(3)
        target = place / "saved"
        shutil.copytree(saved[i], target)
        name, edited = chance.choice(["config.json", "model.safetensors"]), False
        if chance.random() < 0.1:
            shutil.copy(saved[other] / name, target / name)
        elif chance.random() < 0.5:
            (target / name).write_bytes(damage((target / name).read_bytes(), chance))
        else:
            edited = True
            config = json.loads((target / "config.json").read_text())
            tensors = (target / "model.safetensors").read_bytes()
            for _ in range(chance.choice([1, 1, 2, 4])):
                edit(config, chance)
            config.pop("checksum", None)
            config.pop("tensors_sha256", None)
            (target / "config.json").write_bytes(config_bytes(config, tensors))
        found, error = typed(lambda: ce.load(target))
        if error:
            return error
        now, error = typed(lambda: found(X))
        if error:
            return f"{error} at use"
        same = now.shape == values[i].shape and torch.equal(now, values[i])
        check(same or edited or i != other, "silent wrong answer", name)
        return "same values" if same else "another valid energy"

    def checkpoint(chance: random.Random, place: Path) -> str:
        target, edited = place / "c", chance.random() < 0.5
        shutil.copy(folder / "c", target)
        if edited:
            record, tensors = json.loads(safe_metadata(target)[_CHECKPOINT]), safetensors.torch.load_file(target)
            edit(record, chance)
            record.pop("digest", None)
            record = {**record, "digest": digest_of(tensors, record)} if chance.random() < 0.8 else record
            safetensors.torch.save_file(tensors, target, {_CHECKPOINT: json.dumps(record)})
        else:
            target.write_bytes(damage(target.read_bytes(), chance))
        found, error = typed(lambda: BOWL.sample((8, 3), steps=6, checkpoint=target, **_CALL))
        if error:
            return error
        same = torch.equal(found[0], wanted)
        check(same or edited, "silent wrong answer", "a damaged checkpoint")
        return "same draws" if same else "an edited checkpoint"

    def training(chance: random.Random, place: Path) -> str:
        """Damages the last checkpoint of a training; the run takes the one before, or says that there is none."""
        work = Training(chance, place)
        shutil.copytree(folder / "trained" / "run", work.folder)
        last = max((work.folder / "checkpoints").iterdir())
        last.write_bytes(damage(last.read_bytes(), chance))
        found, error = typed(work.run)
        check(bool(error) or found == trained_weights(), "silent wrong answer", "a damaged checkpoint of a training")
        return f"training: {error or 'same weights'}"

    def doubled(chance: random.Random, place: Path) -> str:
        """Lets each of many nodes be the one before twice."""
        shutil.copytree(folder / "pair", place / "saved")
        path = place / "saved" / "config.json"
        config, tensors = json.loads(path.read_text()), (place / "saved" / "model.safetensors").read_bytes()
        node, last = config["nodes"][-1], len(config["nodes"]) - 1
        config["nodes"] += [{**node, "terms": [last + i] * 2} for i in range(chance.choice([2, 40, 400]))]
        config["root"] = len(config["nodes"]) - 1
        config.pop("checksum"), config.pop("tensors_sha256")
        path.write_bytes(config_bytes(config, tensors))
        found, error = typed(lambda: ce.load(place / "saved"))
        return error or typed(lambda: found(X))[1] or "doubled"

    return lambda chance, place: chance.choices([expression, checkpoint, training, doubled], [60, 30, 2, 5])[0](chance, place)


AREA = Area("files", prepare)
