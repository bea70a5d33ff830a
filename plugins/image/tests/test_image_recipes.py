"""The packaged recipes: the numbers of the papers, and two steps of each on pictures in the format of its data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.data import Pictures
from composable_energy_training import (
    DiffusionRecoveryLikelihood,
    EnergyDiscrepancy,
    EnergyMatching,
    FlowNoise,
    GaussianNoise,
    NoiseContrastive,
    open_recipe,
)
from plugins.image.tests.picture_files import RANDOM, random_pixels, write_celeba, write_cifar, write_mnist

OPTIMIZER = ("rate", "betas", "clip")

# What the papers and their released code say: K, step a, noise, the largest gradient; Adam's rate, betas and the clip of gradients; the
# weight of squared energies, pictures in a batch, the share of fresh chains. JEM's are those for pictures in [0, 1].
NUMBERS = {
    "igebm-cifar10": ((60, 10.0, 0.005, 0.01), (3e-4, [0.0, 0.999], "adam"), (1.0, 128, 0.05)),
    "igebm-cifar10-unconditional": ((60, 10.0, 0.005, 0.01), (3e-4, [0.0, 0.999], "adam"), (1.0, 128, 0.05)),
    "igebm-imagenet32": ((60, 10.0, 0.005, 0.01), (3e-4, [0.0, 0.999], "adam"), (1.0, 32, 0.05)),
    "igebm-imagenet128": ((50, 100.0, 0.005, None), (3e-4, [0.0, 0.999], "adam"), (1.0, 16, 0.05)),
    "igebm-dsprites": ((20, 500.0, 0.005, None), (3e-4, [0.0, 0.999], "adam"), (1.0, 256, 0.05)),
    "compositional-celeba": ((60, 100.0, 0.001, None), (3e-4, [0.0, 0.99], "adam"), (1.0, 16, 0.05)),
    "compositional-scenes": ((60, 100.0, 0.001, None), (3e-4, [0.0, 0.99], "adam"), (1.0, 16, 0.05)),
    "improved-cd-cifar10": ((40, 100.0, 0.001, None), (2e-4, [0.0, 0.9], 0.5), (1.0, 128, 0.001)),
    "improved-cd-celeba": ((40, 500.0, 0.001, None), (2e-4, [0.0, 0.9], 0.5), (1.0, 128, 0.001)),
    "jem-cifar10": ((20, 1.0 / 4, 0.01 / 2, None), (1e-4, [0.9, 0.999], None), (0.0, 64, 0.05)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_settings_are_those_of_the_papers(name: str):
    (steps, step, noise, most), optimizer, (l2, batch_size, fresh) = NUMBERS[name]
    written = ce.get("recipe", name).resolved_settings()
    objective, chains, training = written["objective"], written["chains"], written["training"]
    assert (chains["steps"], chains["step"], chains["noise"], chains.get("max_gradient")) == (steps, step, noise, most)
    assert chains["clamp"] == (None if name.startswith("jem") else [0.0, 1.0])
    assert tuple(written["optimizer"][key] for key in OPTIMIZER) == optimizer
    assert (objective["l2"], training["batch_size"], objective["fresh"], objective["buffer"]) == (l2, batch_size, fresh, 10_000)
    assert training["ema"] == (0.99 if name.startswith("improved") else None)
    assert written["sampling"]["step"] == step


def imagenet(folder: Path) -> None:
    for i, name in enumerate(["n01440764", "n01443537", "n01484850"] * 2):
        (folder / name).mkdir(exist_ok=True)
        picture(48, 40).save(folder / name / f"{i}.jpg")


def archive(size: int, channels: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        images = RANDOM.integers(0, 2, (6, size, size, channels), dtype=np.uint8) * 255
        np.savez(folder / "all.npz", images=images, shape=np.arange(6) % 3)

    return write


def pictures(folder: Path) -> None:
    for i in range(6):
        picture(40, 40).save(folder / f"{i}.png")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(random_pixels(height, width, 3))


FEW = {"training.batch_size": 2, "training.steps": 2}
CHAINS = {**FEW, "objective.buffer": 8, "chains.steps": 2}
CASES = {
    "igebm-cifar10": (write_cifar, {"model.width": 4}),
    "igebm-cifar10-unconditional": (write_cifar, {"model.width": 4}),
    "igebm-imagenet32": (imagenet, {"model.width": 4, "model.labels": 3}),
    "igebm-imagenet128": (imagenet, {"model.width": 4, "model.labels": 3, "model.size": 32, "data.size": 32}),
    "igebm-mnist": (lambda folder: write_mnist(folder, side=(28, 28)), {"model.width": 4}),
    "igebm-dsprites": (archive(64, 1), {"model.width": 4}),
    "compositional-celeba": (write_celeba, {"model.width": 4, "model.size": 32, "data.size": 32}),
    "compositional-scenes": (archive(64, 3), {"model.width": 4, "model.size": 32, "data.size": 32}),
    "improved-cd-cifar10": (write_cifar, {"model.width": 8}),
    "improved-cd-celeba": (write_celeba, {"model.width": 8, "model.size": 66, "data.size": 66}),
    "jem-cifar10": (write_cifar, {"model.width": 1, "model.depth": 10}),
    "cd-small": (pictures, {"model.width": 4}),
    "improved-cd-small": (pictures, {"model.width": 4}),
    "denoising-small": (pictures, {"model.width": 8, "sheets.n": 2}),
}


def test_each_packaged_recipe_has_a_case():
    folder = Path(__file__).parents[1] / "composable_energy_image" / "recipes"
    assert {file.stem for file in folder.glob("*.toml")} - {"attribute", "base-and-attributes"} == set(CASES)
    for name in CASES:
        recipe = ce.get("recipe", name)
        assert recipe.name == name
        assert "ne core" in recipe.cost and "one GPU" in recipe.cost  # what it takes of both, or that it was not measured


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_two_steps_on_data_of_the_recipes_own_format(name: str, tmp_path: Path):
    write, changes = CASES[name]
    (tmp_path / "data").mkdir()
    recipe = ce.get("recipe", name).with_changes({**(FEW if name == "denoising-small" else CHAINS), **changes})
    untrained = recipe.energy()  # pyright: ignore[reportAttributeAccessIssue]
    write(tmp_path / "data")
    out = recipe.run(next((tmp_path / "data").glob("*.npz"), tmp_path / "data"), tmp_path / "out")
    energy = ce.load(out)
    parameters = list(zip(energy.parameters(), untrained.parameters(), strict=True))
    assert any(not torch.equal(trained, before) for trained, before in parameters)
    assert all(trained.isfinite().all() for trained, _ in parameters)
    bound = energy.given(y=0) if energy.required_conditions else energy
    draws = bound.sample(2, seed=0, **({"levels": 2} if name == "denoising-small" else {"steps": 2}))
    assert draws.shape[1:] == energy.event_shape
    assert draws.isfinite().all()
    assert (tmp_path / "out" / "log.csv").is_file()
    assert (tmp_path / "out" / "samples" / "step-00000002.png").is_file()


@pytest.mark.parametrize(
    ("table", "kind", "steps"),
    [
        ('name = "energy-discrepancy"\nvariance = 0.1', EnergyDiscrepancy, None),
        ('name = "energy-matching"\ntemperature = 0.1\nwarm_up = 5\nsteps = 7', EnergyMatching, 7),
        ('name = "diffusion-recovery-likelihood"\nsigma_min = 0.1\nsigma_max = 1.0\nsteps = 7', DiffusionRecoveryLikelihood, 7),
    ],
)
def test_a_recipe_may_name_an_objective_with_chains_of_its_own(table: str, kind: type, steps: int | None, tmp_path: Path):
    text = f'about = "An energy"\n[model]\nname = "igebm-mnist"\nwidth = 4\n[objective]\n{table}\n[training]\nsteps = 1\nbatch_size = 2\n'
    (tmp_path / "mine.toml").write_text(text)
    pictures = Pictures(np.zeros((2, 1, 28, 28), np.uint8), {}, "nothing")
    objective = open_recipe(tmp_path / "mine.toml").trainer(pictures).objective  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(objective, kind) and getattr(objective, "steps", None) == steps


@pytest.mark.parametrize(("noise", "kind"), [("gaussian", GaussianNoise), ("flow", FlowNoise)])
def test_a_recipe_fits_the_noise_of_noise_contrastive_estimation(noise: str, kind: type, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(FlowNoise, "fit", partial(FlowNoise.fit, steps=5))
    text = (
        'about = "An energy"\n[model]\nname = "energy-unet"\nsize = 16\nchannels = 1\nwidth = 8\n'
        '[preparation]\ndequantize = "uniform"\n'
        f'[objective]\nname = "noise-contrastive"\nnoise = "{noise}"\nratio = 2\n'
        "[training]\nsteps = 1\nbatch_size = 2\n"
    )
    (tmp_path / "mine.toml").write_text(text)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 1, 16, 16), np.uint8)
    pictures = Pictures(pixels, {}, "noise")
    recipe = open_recipe(tmp_path / "mine.toml")
    objective = recipe.trainer(pictures).objective  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(objective, NoiseContrastive) and isinstance(objective.noise, kind) and objective.ratio == 2
    images = pictures.images(torch.arange(40))
    assert objective.noise.log_prob(images).mean() > objective.noise.log_prob(1 - 2 * images).mean()
    with pytest.raises(OptionError, match=r"objective\.noise takes 'gaussian' or 'flow'"):
        recipe.with_changes({"objective.noise": "uniform"})
