"""Energies of images: the architectures of the papers, by name."""

from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.compositional import compositional_64, compositional_128
from composable_energy_image.energy import ImageEnergy
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
