"""Recipes by name: the papers' settings, and small ones of our own. Each reads the TOML file of its name beside this module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from composable_energy_training import Recipe, open_recipe

__all__ = [
    "cd_small",
    "compositional_celeba",
    "compositional_scenes",
    "denoising_small",
    "igebm_cifar10",
    "igebm_cifar10_unconditional",
    "igebm_dsprites",
    "igebm_imagenet32",
    "igebm_imagenet128",
    "igebm_mnist",
    "improved_cd_celeba",
    "improved_cd_cifar10",
    "improved_cd_small",
    "jem_cifar10",
]


def _recipe(name: str) -> Callable[[], Recipe]:
    return lambda: open_recipe(Path(__file__).with_name(f"{name}.toml"))


cd_small = _recipe("cd-small")
compositional_celeba = _recipe("compositional-celeba")
compositional_scenes = _recipe("compositional-scenes")
denoising_small = _recipe("denoising-small")
igebm_cifar10 = _recipe("igebm-cifar10")
igebm_cifar10_unconditional = _recipe("igebm-cifar10-unconditional")
igebm_dsprites = _recipe("igebm-dsprites")
igebm_imagenet32 = _recipe("igebm-imagenet32")
igebm_imagenet128 = _recipe("igebm-imagenet128")
igebm_mnist = _recipe("igebm-mnist")
improved_cd_celeba = _recipe("improved-cd-celeba")
improved_cd_cifar10 = _recipe("improved-cd-cifar10")
improved_cd_small = _recipe("improved-cd-small")
jem_cifar10 = _recipe("jem-cifar10")
