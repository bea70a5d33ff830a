from composable_energy_ui.orders import Limits as Limits
from composable_energy_ui.plane import Plane as Plane
from composable_energy_ui.server import Playground as Playground
