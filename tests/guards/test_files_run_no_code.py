"""Files name no paths, addresses or plug-ins that open them, what can run code asks for trust, and pictures start no program."""

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.errors import ExpressionError, FileFormatError
from composable_energy.files import stored_options
from composable_energy.registry import get_factory, plugins
from composable_energy_cli.pictures import read_points
from composable_energy_image.data import open_pictures
from composable_energy_latent import load_generator
from tests.refusals import refused
from tests.saving_energies import Mean, edit, nodes

TOUCHED: list[Any] = []


class Opens(nn.Module):
    """A third party's encoder; it notes what it was built with."""

    def __init__(self, size: int = 2, path: Any = None, mode: str = "a", where: Path | None = None, kind: Literal["p", "q"] = "p") -> None:
        super().__init__()
        TOUCHED.append((size, path, mode, where, kind))
        self.linear = nn.Linear(2, size)

    def forward(self, z):
        return self.linear(z)


class Declares(Opens):
    stored_texts: ClassVar[tuple[str, ...]] = ("mode",)


class Bowl(ce.Energy):
    """A third party's energy around another one."""

    def __init__(self, inner: ce.Energy, file: str = "", width: float = 1.0) -> None:
        super().__init__()
        self.inner, self.file, self.width = inner, file, width
        TOUCHED.append(file)

    def config(self):
        return {"inner": self.inner, "file": self.file, "width": self.width}

    def forward(self, x):
        return self.inner(x) / self.width


@pytest.fixture(autouse=True)
def registered():
    TOUCHED.clear()
    with ce.register("encoder", "opens", Opens), ce.register("encoder", "declares", Declares), ce.register("energy", "bowl", Bowl):
        yield


def script(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(path)
    return path


def saved(target: Path, /, name: str = "opens", **options: Any) -> Path:
    """Saves an energy over an encoder, with other options in the file than it was built with."""
    ce.as_energy(Normal(torch.zeros(2), 1.0), decoder=ce.get("encoder", "opens"), name="prior").save(target)
    edit(target, lambda config: nodes(config, "built")[0].update({"entry": name, "options": options}))
    TOUCHED.clear()
    return target


def test_texts_reach_a_plug_in_only_where_it_says_so(tmp_path):
    texts = [("path", "/etc/passwd"), ("path", ["a", {"b": "x"}]), ("path", {"$tuple": ["x"]})]
    for name, value in (*texts, ("where", 3), ("where", "x"), ("kind", "r")):
        refused(FileFormatError, "no saved file may give", ce.load, saved(tmp_path / "E", **{name: value}))
        assert not TOUCHED


def test_plain_data_and_declared_texts_are_read_from_files(tmp_path):
    ce.load(saved(tmp_path / "E", kind="q", path=[1, {"b": 2.5}]))
    assert TOUCHED == [(2, [1, {"b": 2.5}], "a", None, "q")]
    ce.load(saved(tmp_path / "F", "declares", mode="anything"))
    assert TOUCHED == [(2, None, "anything", None, "p")]


@pytest.mark.parametrize(
    ("kind", "entry", "options"),
    [
        ("energy", "diffusers", {"location": "owner/name"}),
        ("energy", "faces", {"folder": "/tmp"}),
        ("encoder", "generator", {"path": "g.pt", "trust": True}),
        ("encoder", "comet", {"weights": "/tmp/model"}),
        ("encoder", "comet-global", {"weights": "../sprites"}),
    ],
)
def test_plug_ins_of_the_library_open_nothing_for_a_file(tmp_path, monkeypatch, kind, entry, options):
    folder = saved(tmp_path / "E", entry, **options)
    edit(folder, lambda config: nodes(config, "built")[0].update(kind=kind, distribution="composable-energy"))
    opened, open_path = [], Path.open

    def record(path: Path, *arguments, **options):
        if path.suffix != ".pyi":  # the stub of a package that is imported now
            opened.append(path)
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", record)
    refused(FileFormatError, "no saved file may give", ce.load, folder)
    assert not opened


def test_energies_and_nodes_of_plug_ins_take_no_text_from_a_file(tmp_path):
    Bowl(ce.as_energy(Normal(torch.zeros(2), 1.0)), width=2.0).save(tmp_path / "E")  # its text is the default
    assert ce.load(tmp_path / "E")(torch.ones(1, 2)) > 0
    TOUCHED.clear()
    edit(tmp_path / "E", lambda config: config["nodes"][-1]["options"].update(file="/etc/passwd"))
    refused(FileFormatError, "no saved file may give", ce.load, tmp_path / "E")
    assert not TOUCHED
    with ce.register("energy", "mean", Mean):
        Mean(*(ce.as_energy(Normal(torch.zeros(2), scale)) for scale in (1.0, 2.0))).save(tmp_path / "F")
        edit(tmp_path / "F", lambda config: config["nodes"][-1]["config"].update(power="/etc/passwd"))
        refused(FileFormatError, "no saved file may give", ce.load, tmp_path / "F")


def test_what_no_reader_takes_is_not_written(tmp_path):
    energy = ce.as_energy(Normal(torch.zeros(2), 1.0), decoder=ce.get("encoder", "opens", mode="w"), name="prior")
    refused(ExpressionError, r"mode='w' .* no saved file may give.*register", energy.save, tmp_path / "E")
    assert not (tmp_path / "E").exists()
    with ce.register("encoder", "mine", lambda: Opens(mode="w")):  # the way that the message gives
        energy = ce.as_energy(Normal(torch.zeros(2), 1.0), decoder=ce.get("encoder", "mine"), name="prior")
        energy.save(tmp_path / "E")
        assert ce.load(tmp_path / "E").equals(energy)


def test_weights_that_are_an_archive_too_are_refused(tmp_path):
    """A file of safetensors whose last tensor ends in a zip archive is two files for two readers."""
    padded = torch.frombuffer(bytearray(script(tmp_path / "g.pt").read_bytes()), dtype=torch.uint8)
    path = tmp_path / "both.safetensors"
    safetensors.torch.save_file({"x": padded}, path)
    assert zipfile.is_zipfile(path)
    refused(FileFormatError, "weights alone", load_generator, path, trust=True)
    refused(FileFormatError, "zip archive, too", ce.load, edit(saved(tmp_path / "E"), tensors=lambda found: {**found, "x": padded}))


def test_bytes_that_look_like_the_end_of_an_archive_are_no_archive(tmp_path):
    energy = ce.as_energy(Normal(torch.frombuffer(bytearray(b"PK\5\6" * 8), dtype=torch.float32).clone(), 1.0))
    energy.save(tmp_path / "E")
    assert ce.load(tmp_path / "E").equals(energy)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%BeginPreview: 8 8 8 8\n(x) show\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Puts a program `gs` on the path, which leaves a file."""
    program, trace = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return trace


def packed(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((3, 3, 3), 7, np.uint8)).save(file, kind)
    return file.getvalue()


def folder(tmp_path: Path, content: bytes, ending: str = ".png") -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    (place / f"1{ending}").write_bytes(content)
    return place


@pytest.mark.parametrize("content", [POSTSCRIPT, POSTSCRIPT.replace(b"%!PS", b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS")])
@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_postscript_starts_no_program(tmp_path, ghostscript, content, ending):
    place = folder(tmp_path, content, ending)
    refused(FileFormatError, "as a picture in PNG, JPEG, WEBP, BMP", open_pictures, place, cache=None, size=3)
    refused(FileFormatError, "as a picture in PNG, JPEG, WEBP, BMP", read_points, place / f"1{ending}", [(3, 3, 3)], (0.0, 1.0))
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "TGA", "PNG", "JPEG", "WEBP", "BMP"])
def test_documented_formats_alone_are_read_under_any_ending(tmp_path, kind):
    place = folder(tmp_path, packed(kind))
    if kind in ("GIF", "TIFF", "TGA"):
        refused(FileFormatError, "as a picture in PNG, JPEG, WEBP, BMP", open_pictures, place, cache=None, size=3)
        return
    assert len(open_pictures(place, cache=None, size=3)) == 1
    assert read_points(place / "1.png", [(3, 3, 3)], (0.0, 1.0)).shape == (1, 3, 3, 3)


DOCS = Path(__file__).parents[2] / "docs" / "files.md"
KINDS = {"energy": "composable_energy.energies", "encoder": "composable_energy.encoders", "sampler": "composable_energy.samplers"}
OURS = {"composable-energy", "composable-energy-worlds"}


def shown(name: str, texts: frozenset[str] | None) -> str:
    if texts is None:
        return f"`{name}` (text)"
    return f"`{name}` ({', '.join(sorted(texts))})" if texts else f"`{name}`"


def table() -> list[str]:
    """Returns the rows: the plug-ins of one kind that take the same options are one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for kind, group in KINDS.items():
        for record in plugins():
            if record.group == group and record.distribution in OURS:
                options = stored_options(get_factory(kind, record.qualified))
                text = ", ".join(shown(name, texts) for name, texts in options.items()) or "none"
                rows.setdefault((kind, text), []).append(f"`{record.name}`")
    return [f"| {kind} | {', '.join(entries)} | {text} |" for (kind, text), entries in rows.items()]


def test_the_docs_list_every_option_that_a_file_may_give():
    text = DOCS.read_text(encoding="utf-8")
    rows = text[text.index("| kind | plug-ins | options that a file may give |") :].split("\n\n")[0].splitlines()[2:]
    assert sorted(rows) == sorted(table())


@pytest.mark.parametrize("name", ["path", "folder", "location", "weights", "file", "url", "checkpoint", "function", "callback"])
def test_no_option_with_the_name_of_a_path_takes_any_text(name):
    for kind, group in KINDS.items():
        for record in plugins():
            if record.group == group and record.distribution in OURS:
                texts = stored_options(get_factory(kind, record.qualified)).get(name, frozenset())
                assert texts is not None and not any("/" in text for text in texts), record
