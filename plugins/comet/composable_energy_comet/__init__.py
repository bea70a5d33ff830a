"""COMET: energies of the components of a picture, found without labels."""

from .attention import AttentionEncoder
from .comet import Comet
from .component import ComponentEnergy
from .conv import ConvEnergy
from .making import comet, comet_global, load_comet, save_comet
from .objective import Decomposition, charbonnier, squared_error
from .parts import joined, recombined
from .quadratic import QuadraticEnergy
from .reading import component_scores, merged
from .sampler import InnerDescent
from .vectors import VectorEncoder

__all__ = [
    "AttentionEncoder",
    "Comet",
    "ComponentEnergy",
    "ConvEnergy",
    "Decomposition",
    "InnerDescent",
    "QuadraticEnergy",
    "VectorEncoder",
    "charbonnier",
    "comet",
    "comet_global",
    "component_scores",
    "joined",
    "load_comet",
    "merged",
    "recombined",
    "save_comet",
    "squared_error",
]
