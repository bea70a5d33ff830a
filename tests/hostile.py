"""Hostile files, an area of the campaign: mutated folders, recommendations, recipes and pictures are read. A case ends with a result or a
typed error. An audit hook of Python watches what happens meanwhile: code of the file that is compiled or run, a process, a connection, an
unpickled class, a file that is changed outside of the folder, a path of the file that is opened. Cases run in forked processes by the
runner of the campaign; case `i` is a function of the seed and `i`."""

import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import composable_energy as ce
from composable_energy.files import ENERGY_FILE, VERSION, read_record, stored_options, write_record
from composable_energy.registry import get, names
from composable_energy_cli.pictures import read_points
from composable_energy_image.data import open_pictures
from composable_energy_training import open_recipe
from tests.campaign.files import KINDS, ODD, damage, edit, places
from tests.campaign.runner import Area, Counts, Defect, check, run_area, typed
from tests.saving_energies import Attributes, Mean, Picture, Tempered, X, expressions

CANARY = "hostile_canary"
"""A name in all code that a file plants, and in all paths that it gives."""
LIMIT = 200.0
"""Seconds after which a case is one that never ends, many times what the longest takes on a busy machine; the runner waits longer."""
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen")
_NAMES = ("remove", "rename", "rmdir", "mkdir", "truncate", "chmod", "chown", "link", "symlink")
_CHANGES = ("shutil.rmtree", *(f"os.{name}" for name in _NAMES))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


class Hang(BaseException):
    """A case did not end in time."""


def _stop(*_: object) -> None:
    raise Hang


class Watch:
    """Notes what an audit hook of Python sees while a case runs."""

    def __init__(self) -> None:
        self.place: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def tried(self, call: Callable[[], Any], place: Path) -> tuple[Any, str]:
        """Returns the result of a call and "", or None and the name of its typed error; it may change files in `place` alone."""
        self.seen, self.place = [], Path(os.path.realpath(place))
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        try:
            return typed(call)
        except Hang as error:
            raise Defect(f"hang: it did not end within {LIMIT:g} s") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.place = None
            check(not self.seen, "code or access", self.seen[:3])

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.place is None:
            return
        place, self.place = self.place, None  # what the hook itself does is not watched
        try:
            if reason := self._reason(event, arguments, place):
                self.seen.append(f"{event}: {reason}"[:300])
        finally:
            self.place = place

    def _reason(self, event: str, arguments: tuple[Any, ...], place: Path) -> str:
        if event in _PROCESSES or event.startswith("socket.") or event == "pickle.find_class":
            return str(arguments)
        if event in ("exec", "compile", "import"):
            text = _text_of(arguments[0])
            return text if CANARY in text else ""
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, flags = os.fsdecode(arguments[0]), arguments[2]
            if CANARY in path and not Path(path).is_relative_to(place):
                return path
            return path if isinstance(flags, int) and flags & _WRITING and _outside(path, place) else ""
        if event in _CHANGES:
            return next((str(path) for path in arguments[:2] if isinstance(path, str | os.PathLike) and _outside(path, place)), "")
        return ""


def _text_of(source: Any) -> str:
    if isinstance(source, CodeType):
        return f"{source.co_names} {source.co_consts}"
    return source.decode("latin-1") if isinstance(source, bytes) else str(source)


def _outside(path: str | os.PathLike[str], place: Path) -> bool:
    found = os.path.realpath(path)
    return not (found.startswith(f"{place}{os.sep}") or found in (str(place), os.devnull))


class Evil:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"'{CANARY}'",)


def bait(folder: Path) -> list[str]:
    """Writes files that would run code if they were read, and returns their paths."""
    folder = folder / CANARY
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(folder / "script.pt")
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), folder / "program.pt2")
    torch.save(Evil(), folder / "pickle.pt")
    (folder / "comet.json").write_text("{}")
    (folder / "module.py").write_text(f"{CANARY} = 1\n")
    return [*(str(path) for path in folder.iterdir()), str(folder), f"{folder}/../{CANARY}", f"__import__('{CANARY}')"]


class Cases:
    """Expressions, a recipe and baits in a folder; a case mutates one of them."""

    def __init__(self, folder: Path) -> None:
        sys.dont_write_bytecode = True
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        for name, obj in (("people", Attributes), ("tempered", Tempered), ("picture", Picture), ("mean", Mean)):
            ce.register("energy", name, obj)
        ce.register("encoder", "linear", nn.Linear)
        folder.mkdir(parents=True, exist_ok=True)
        normal = torch.distributions.Normal(torch.zeros(2), 1.0)
        prior = ce.as_energy(normal, decoder=ce.get("encoder", "linear", in_features=2, out_features=3))
        prior.recommended = ce.Recommendation("annealed", {"levels": 4, "corrector_steps": 1}, threads=1)
        learnt = nn.Parameter(torch.tensor(2.0)) * ce.as_energy(normal)
        mixed = [prior, ce.any_of(learnt, 2 * learnt & prior, weights=[0.2, 0.8]), ce.load("plane/ring") & ~ce.load("plane/right")]
        self.saved = [folder / str(i) for i in range(len(mixed) + 3)]
        for energy, place in zip([*expressions(), *mixed], self.saved, strict=True):
            energy.save(place)
        self.baits, self.watch = bait(folder), Watch()
        self.recipes = [open_recipe(name).toml() for name in ("cd-small", "attribute")]

    def __call__(self, chance: random.Random, place: Path) -> str:
        case = chance.choices([self.a_folder, self.a_recommendation, self.a_recipe, self.a_picture], [50, 20, 15, 15])[0]
        return f"{case.__name__.removeprefix('a_')}: {case(chance, place)}"

    def odd(self, chance: random.Random) -> Any:
        return chance.choice(self.baits) if chance.random() < 0.4 else deepcopy(chance.choice(ODD))

    def change(self, config: Any, chance: random.Random) -> None:
        """Edits one value, or lets one be a path, a deep value or another plug-in."""
        if chance.random() < 0.5:
            edit(config, chance)
            return
        nodes = config.get("nodes")
        built = [node for node in nodes if isinstance(node, dict) and node.get("class") == "built"] if isinstance(nodes, list) else []
        if built and chance.random() < 0.5:
            kind, entry, options = chance.choice(REFERENCES)
            chosen = {"kind": kind, "entry": entry, "distribution": chance.choice([None, "composable-energy"])}
            chance.choice(built).update(chosen, options=options(chance.choice(self.baits)))
            return
        *path, last = chance.choice(list(places(config)))
        holder = config
        for key in path:
            holder = holder[key]
        holder[last] = self.odd(chance)
        if chance.random() < 0.1:
            for _ in range(chance.choice([5, 30, 400])):
                holder[last] = [holder[last]]

    def used(self, call: Callable[[Any], Any], found: Any, error: str, place: Path) -> str:
        """Returns what became of an object that was read and is used."""
        if error:
            return error
        _, error = self.watch.tried(lambda: call(found), place)
        return (error and f"{error} at use") or "used"

    def a_folder(self, chance: random.Random, place: Path) -> str:
        target = place / "saved"
        shutil.copytree(chance.choice(self.saved), target)
        path = target / ENERGY_FILE
        header, tensors = read_record(path, "energy", VERSION)
        match chance.randrange(8):
            case 0:
                path.write_bytes(damage(path.read_bytes(), chance))
            case 1:  # a file that is two, or another one
                data, other = path.read_bytes(), Path(chance.choice(self.baits[:5])).read_bytes()
                path.write_bytes(chance.choice([data + other, other, other + data]))
            case 2:
                path.unlink()
                path.symlink_to(chance.choice(["/dev/zero", "/dev/stdin", path, place]))
            case _:
                for _ in range(chance.choice([1, 1, 2, 4])):
                    self.change(header, chance)
                if chance.random() < 0.1:
                    tensors["x"] = torch.frombuffer(bytearray(Path(chance.choice(self.baits[:3])).read_bytes()), dtype=torch.uint8)
                write(target, header, tensors, chance)
        found = self.watch.tried(lambda: ce.load(target), place)
        return self.used(lambda E: (str(E), repr(E), E(X), E.with_gradient(X), E.save(place / "again")), *found, place)

    def a_recommendation(self, chance: random.Random, place: Path) -> str:
        target = place / "saved"
        shutil.copytree(self.saved[3], target)
        header, tensors = read_record(target / ENERGY_FILE, "energy", VERSION)
        sampler = chance.choice(names("sampler"))
        known = [name for name in stored_options(get("sampler", sampler)) if chance.random() < 0.9]
        chosen = chance.sample([*known, *_OTHERS], chance.choice([0, 1, 1, 2]))
        advice = {
            "sampler": chance.choice([sampler] * 9 + [self.odd(chance)]),
            "options": {name: chance.choice([self.odd(chance), *_NUMBERS]) for name in chosen},
            "threads": chance.choice([1, None, self.odd(chance)]),
        }
        if chance.random() < 0.3:
            advice["precedence"] = self.odd(chance)
        header["nodes"][-1]["recommended"] = chance.choice([advice] * 9 + [self.odd(chance)])
        write(target, header, tensors, chance)

        def draw(energy: ce.Energy) -> None:
            own = energy.recommended is None or energy.recommended.sampler in ("annealed", "feynman-kac", "ode", "sde", "lace")
            energy.sample(2, seed=0, **({} if own else {"steps": 2}))

        return self.used(draw, *self.watch.tried(lambda: ce.load(target), place), place)

    def a_recipe(self, chance: random.Random, place: Path) -> str:
        lines = chance.choice(self.recipes).splitlines()
        for _ in range(chance.choice([1, 1, 2, 4])):
            row = chance.randrange(len(lines))
            deep = ["[" * chance.choice([3, 3000]), "{a=" * 3000, "1" * 5000, "1979-05-27", "inf", "nan"]
            value = chance.choice([json.dumps(self.odd(chance)), *deep])
            new = [f"x = {value}", f"[{'a.' * chance.choice([1, 3000])}a]", f"extends = {json.dumps(chance.choice(self.baits))}"]
            match chance.randrange(5):
                case 0:
                    lines[row] = f"{lines[row].partition('=')[0]} = {value}"
                case 1:
                    lines.insert(row, chance.choice(new))
                case 2:
                    del lines[row]
                case 3:
                    lines[row] = f"name = {json.dumps(chance.choice(['generator', 'faces', 'diffusers', 'jem', *self.baits]))}"
                case _:
                    lines.insert(row, chance.choice(lines))
            lines = lines or ["x = 1"]
        data = "\n".join(lines).encode("utf-8", "replace")
        path = place / "recipe.toml"
        path.write_bytes(damage(data, chance) if chance.random() < 0.3 else data)
        found, error = self.watch.tried(lambda: open_recipe(path), place)
        return self.used(lambda recipe: recipe.resolved_settings() and recipe.toml(), found, error, place)

    def a_picture(self, chance: random.Random, place: Path) -> str:
        kind = chance.choice([*KINDS, "other"])
        if kind == "other":
            file = io.BytesIO()
            Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(file, chance.choice(["GIF", "TIFF", "PPM", "ICO", "TGA", "PDF"]))
            content = chance.choice([_POSTSCRIPT, file.getvalue(), bytes(26) + _POSTSCRIPT, Path(self.baits[0]).read_bytes()])
            content = damage(content, chance) if chance.random() < 0.3 else content
            (place / f"1{chance.choice(['.png', '.jpg', '.bmp', '.webp'])}").write_bytes(content)
        else:
            KINDS[kind](chance, place)
        if kind == "array" and chance.random() < 0.5:
            with zipfile.ZipFile(place / "a.npz", "w") as archive:
                file = io.BytesIO()
                np.save(file, np.array(Evil() if chance.random() < 0.5 else [Evil()], dtype=object), allow_pickle=True)
                archive.writestr(chance.choice(["images.npy", "metadata.npy", "y.npy"]), file.getvalue())
        target = place / "a.npz" if kind == "array" else place
        _, error = self.watch.tried(lambda: open_pictures(target, cache=None, size=3), place)
        if kind in ("pictures", "other"):
            path = max(path for path in place.iterdir() if path.is_file())
            _, error = self.watch.tried(lambda: read_points(path, [(3, 3, 3)], (0.0, 1.0)), place)
        return error or "read"


REFERENCES: list[tuple[str, str, Callable[[str], dict[str, Any]]]] = [
    ("encoder", "generator", lambda path: {"path": path, "trust": True}),
    ("encoder", "comet", lambda path: {"weights": path}),
    ("energy", "faces", lambda path: {"folder": path}),
    ("energy", "diffusers", lambda path: {"location": path}),
    ("encoder", "linear", lambda path: {"in_features": 2, "out_features": 3, "device": path}),
]
"""Plug-ins of this kind and name, and their options with a path, to which a file may refer."""


def write(target: Path, header: Any, tensors: Any, chance: random.Random) -> None:
    """Writes a record, which may be damaged; one that is too deep to be written is deeper than any reader takes."""
    path = target / ENERGY_FILE
    try:
        write_record(path, "energy", VERSION, header, tensors)
    except RecursionError:
        path.write_bytes(safetensors.torch.save({}, {"composable_energy": "[" * 10_000}))
    if chance.random() < 0.1:
        path.write_bytes(damage(path.read_bytes(), chance))


_OTHERS = ["levels", "path", "checkpoint", "callback"]
_NUMBERS = [0, 1, 2, 3, 10_001, 10**9, -1, 0.5, 1e300, 1e-300, 1.0, True, [0.0, 1.0], {"$tensor": "x"}, "mala", "diagonal"]
AREA = Area("hostile", Cases, 2 * LIMIT)


def run(cases: int, seed: int, *, until: Callable[[Counts], bool] = lambda counts: False) -> Counts:
    """Returns the counts of so many cases."""
    with tempfile.TemporaryDirectory() as out:
        return run_area(AREA, seed, float("inf"), Path(out), cases, until)
