"""COMET: unsupervised decomposition of pictures into components, each an energy."""

from composable_energy_comet.attention_encoder import AttentionEncoder
from composable_energy_comet.comet import Comet
from composable_energy_comet.common import CommonCode, PictureCode, fit_common
from composable_energy_comet.component import ComponentEnergy, TargetEnergy
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.factory import comet, comet_global, comet_window, load_comet, save_comet
from composable_energy_comet.glimpse_encoder import GlimpseEncoder
from composable_energy_comet.masks import component_scores, merge_components
from composable_energy_comet.objective import Decomposition, charbonnier, edge_error, squared_error
from composable_energy_comet.parts import join_parts, recombine_parts
from composable_energy_comet.quadratic import QuadraticEnergy
from composable_energy_comet.sampler import InnerDescent
from composable_energy_comet.styles import StyleCode, fit_styles
from composable_energy_comet.vector_encoder import VectorEncoder
from composable_energy_comet.window import WindowEnergy

__all__ = [
    "AttentionEncoder",
    "Comet",
    "CommonCode",
    "ComponentEnergy",
    "ConvEnergy",
    "Decomposition",
    "GlimpseEncoder",
    "InnerDescent",
    "PictureCode",
    "QuadraticEnergy",
    "StyleCode",
    "TargetEnergy",
    "VectorEncoder",
    "WindowEnergy",
    "charbonnier",
    "comet",
    "comet_global",
    "comet_window",
    "component_scores",
    "edge_error",
    "fit_common",
    "fit_styles",
    "join_parts",
    "load_comet",
    "merge_components",
    "recombine_parts",
    "save_comet",
    "squared_error",
]
