"""Published data sets are read as they are: dSprites with its pickled metadata, and factors that are fractions."""

import pickle

import numpy as np
import pytest

from composable_energy.errors import DtypeError
from composable_energy_image.data import open_pictures


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    """Fails if anything is unpickled."""
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("it was unpickled"))


def dsprites(path, n: int = 6, **more):
    """Writes an archive as dSprites is published: pictures of 0 and 1, factors twice, and a pickled dict."""
    chance = np.random.default_rng(0)
    classes = np.stack([np.arange(n) * 0, np.arange(n) % 3, np.arange(n) % 6, np.arange(n), np.arange(n), np.arange(n)[::-1]], 1)
    images = chance.integers(0, 2, (n, 8, 8), dtype=np.uint8)
    images[0, 0, :2] = 0, 1
    metadata = np.array({"title": "dSprites", "latents_names": ("color",)}, dtype=object)
    values = classes / 2 + 0.1
    np.savez_compressed(path, metadata=metadata, imgs=images, latents_classes=classes.astype(np.int64), latents_values=values, **more)
    return images, classes


def test_dsprites_is_read_as_published(tmp_path):
    images, classes = dsprites(tmp_path / "d.npz")
    found = open_pictures(tmp_path / "d.npz", cache=None)
    assert np.array_equal(found.pixels[:, 0], images * 255)
    np.save(tmp_path / "imgs.npy", images)  # the array alone
    assert np.array_equal(open_pictures(tmp_path / "imgs.npy", cache=None).pixels, found.pixels)
    assert list(found.labels) == ["color", "shape", "scale", "orientation", "x", "y"]
    for i, name in enumerate(found.labels):
        assert found.labels[name].values.tolist() == classes[:, i].tolist()


@pytest.mark.parametrize(("k", "digits", "form"), [(2, None, "npz"), (7, 3, "npz"), (40, 6, "npz"), (40, None, "npz"), (4, 3, "csv")])
def test_fractions_are_classes(tmp_path, k, digits, form):
    wanted = np.random.default_rng(k).permutation(np.arange(3 * k) % k)
    factors = wanted / (k - 1) if digits is None else (wanted / (k - 1)).round(digits)
    images = np.arange(3 * k * 4, dtype=np.uint8).reshape(3 * k, 2, 2)
    if form == "npz":
        np.savez(tmp_path / "f.npz", images=images, light=factors.astype(np.float32), both=np.stack([factors, 1 - factors], 1))
        found = open_pictures(tmp_path / "f.npz", cache=None).labels
        assert found["both_0"].values.tolist() == wanted.tolist() == (k - 1 - found["both_1"].values).tolist()
    else:
        from PIL import Image

        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{i:03d}.png")
        rows = [f"{i:03d}.png,{value}" for i, value in enumerate(factors)]
        (tmp_path / "f.csv").write_text("\n".join(["file,light", *rows]))
        found = open_pictures(tmp_path, cache=None).labels
    assert found["light"].values.tolist() == wanted.tolist()
    assert len(found["light"].names) == k


@pytest.mark.parametrize(
    "factors", [[0.0, 0.37, 1.0, 0.36], [0.0, 0.5, 0.9], [0.5, 1.0, 0.5], [0.0, float("nan"), 1.0], [0.0, 2.0, 0.5]], ids=str
)
def test_other_numbers_are_no_classes(tmp_path, factors):
    np.savez(tmp_path / "f.npz", images=np.ones((len(factors), 2, 2), np.uint8), light=np.array(factors))
    with pytest.raises(DtypeError, match="light"):
        open_pictures(tmp_path / "f.npz", cache=None)
