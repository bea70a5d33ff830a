"""Random pictures, with and without labels, and their files, for tests."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from composable_energy_image.data import Labels, Pictures

RANDOM = np.random.default_rng(0)
CELEBA_NAMES = ("Male", "Smiling", "Young")


def random_pixels(*shape: int) -> np.ndarray:
    """Returns random bytes."""
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> np.ndarray:
    """Writes pixels to an image file, and returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """Returns the pixels of an image with shape $(C, H, W)$."""
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def pictures_of(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> Pictures:
    """A bright or a dark square on the left or on the right, in one of three colors."""
    generator = torch.Generator().manual_seed(seed)
    truth = {name: torch.randint(values, (count,), generator=generator) for name, values in (("bright", 2), ("left", 2), ("tint", 3))}
    images = 0.4 + 0.1 * torch.rand(count, channels, size, size, generator=generator)
    for image, bright, left, tint in zip(images, *truth.values(), strict=True):
        start = 2 if left else size // 2
        image[:, 4:-4, start : start + size // 2 - 2] = float(bright)
        image[tint % channels, :3] = 1.0
    words = {"tint": Labels(truth["tint"], ("blue", "green", "red"))}
    return Pictures.from_tensors(images, {"bright": truth["bright"], "left": truth["left"], **words})


def write_celeba(path: Path, count: int = 6, parts: tuple[int, ...] = (0, 0, 0, 1, 2, 2)) -> tuple[list[str], np.ndarray]:
    """Writes pictures and lists as CelebA has them; returns the names and the attributes."""
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    values = RANDOM.choice([-1, 1], (count, 3))
    values[:2] = [[-1], [1]]  # both occur of each
    for name in names:
        save(path / "img_align_celeba" / name, random_pixels(218, 178, 3))
    rows = [f"{name}  {' '.join(f'{value:2d}' for value in row)}" for name, row in zip(names, values, strict=True)]
    (path / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(CELEBA_NAMES) + " ", *rows]) + "\n")
    if parts:
        (path / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    return names, values


def write_cifar(path: Path, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Writes the files of CIFAR-10; returns labels and pixels of each."""
    path.mkdir(exist_ok=True)
    (path / "batches.meta.txt").write_text("\n".join(["airplane", "automobile", *map(str, range(8))]) + "\n\n")
    batches = []
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        labels, pixels = RANDOM.integers(0, 10, count).astype(np.uint8), random_pixels(count, 3, 32, 32)
        (path / name).write_bytes(b"".join(bytes([y]) + x.tobytes() for y, x in zip(labels, pixels, strict=True)))
        batches.append((labels, pixels))
    return batches


def write_mnist(path: Path, pack: bool = False, dot: str = "-", side: tuple[int, int] = (7, 6)) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes the files of MNIST; returns pixels and labels of both parts."""
    made = {}
    for part in ("train", "t10k"):
        pixels, labels = random_pixels(4, *side), RANDOM.integers(0, 10, 4).astype(np.uint8)
        images = struct.pack(">4i", 0x803, 4, *side) + pixels.tobytes()
        classes = struct.pack(">2i", 0x801, 4) + labels.tobytes()
        for name, data in ((f"{part}-images{dot}idx3-ubyte", images), (f"{part}-labels{dot}idx1-ubyte", classes)):
            (path / f"{name}{'.gz' * pack}").write_bytes(gzip.compress(data) if pack else data)
        made["train" if part == "train" else "test"] = pixels, labels
    return made
