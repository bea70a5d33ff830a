"""Pictures are opened in the documented formats alone: another reader may start a program."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from composable_energy.errors import FileFormatError
from composable_energy_cli.pictures import read_points
from composable_energy_image.data import open_pictures

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


@pytest.mark.parametrize(
    "content", [POSTSCRIPT, POSTSCRIPT.replace(b"%!PS", b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS")], ids=["text", "binary"]
)
@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_postscript_starts_no_program(tmp_path, ghostscript, content, ending):
    place = folder(tmp_path, content, ending)
    with pytest.raises(FileFormatError, match="as a picture in PNG, JPEG, WEBP, BMP"):
        open_pictures(place, cache=None, size=3)
    with pytest.raises(FileFormatError, match="as a picture in PNG, JPEG, WEBP, BMP"):
        read_points(place / f"1{ending}", [(3, 3, 3)], (0.0, 1.0))
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "TGA"])
def test_other_formats_under_a_known_ending_are_refused(tmp_path, kind):
    place = folder(tmp_path, packed(kind))
    with pytest.raises(FileFormatError, match="as a picture in PNG, JPEG, WEBP, BMP"):
        open_pictures(place, cache=None, size=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_documented_formats_are_read_under_any_ending(tmp_path, kind):
    place = folder(tmp_path, packed(kind))
    assert len(open_pictures(place, cache=None, size=3)) == 1
    assert read_points(place / "1.png", [(3, 3, 3)], (0.0, 1.0)).shape == (1, 3, 3, 3)
