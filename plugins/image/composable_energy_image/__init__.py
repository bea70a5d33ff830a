"""Energies of images: the architectures of the papers, by name."""

from composable_energy_image.energy import ImageEnergy
from composable_energy_image.igebm import igebm_dsprites, igebm_mnist, igebm_resnet32, igebm_resnet32_large, igebm_resnet32_wider

__all__ = [
    "ImageEnergy",
    "igebm_dsprites",
    "igebm_mnist",
    "igebm_resnet32",
    "igebm_resnet32_large",
    "igebm_resnet32_wider",
]
