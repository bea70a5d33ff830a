"""Images: the papers' networks by name, labelled pictures, rendered worlds, training recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from composable_energy.lazy import lazy_exports

if TYPE_CHECKING:
    from composable_energy_image.autoencoder import Autoencoder
    from composable_energy_image.code_energy import CodeEnergy
    from composable_energy_image.compositional import compositional_64, compositional_128
    from composable_energy_image.energy import ImageEnergy
    from composable_energy_image.energy_recipe import EnergyRecipe
    from composable_energy_image.heads import CodeHeads
    from composable_energy_image.igebm import igebm_dsprites, igebm_mnist, igebm_resnet32, igebm_resnet32_large, igebm_resnet32_wider
    from composable_energy_image.improved_cd import ImprovedCDEnergy
    from composable_energy_image.jem import JEM
    from composable_energy_image.unet import UNetEnergy

__all__ = [
    "JEM",
    "Autoencoder",
    "CodeEnergy",
    "CodeHeads",
    "EnergyRecipe",
    "ImageEnergy",
    "ImprovedCDEnergy",
    "UNetEnergy",
    "compositional_64",
    "compositional_128",
    "igebm_dsprites",
    "igebm_mnist",
    "igebm_resnet32",
    "igebm_resnet32_large",
    "igebm_resnet32_wider",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "autoencoder": ("Autoencoder",),
        "code_energy": ("CodeEnergy",),
        "compositional": ("compositional_64", "compositional_128"),
        "energy": ("ImageEnergy",),
        "energy_recipe": ("EnergyRecipe",),
        "heads": ("CodeHeads",),
        "igebm": ("igebm_dsprites", "igebm_mnist", "igebm_resnet32", "igebm_resnet32_large", "igebm_resnet32_wider"),
        "improved_cd": ("ImprovedCDEnergy",),
        "jem": ("JEM",),
        "unet": ("UNetEnergy",),
    },
)
