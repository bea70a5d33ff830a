from composable_energy_viz.arviz import to_arviz as to_arviz
from composable_energy_viz.density import show as show
from composable_energy_viz.density import trace as trace
from composable_energy_viz.image_grid import PictureWarning as PictureWarning
from composable_energy_viz.image_grid import grid as grid
from composable_energy_viz.terms import explanation as explanation
from composable_energy_viz.terms import forces as forces
from composable_energy_viz.terms import shares as shares
