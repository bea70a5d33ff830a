r"""Refinement: a few Langevin steps of the points before they are classified."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_integer, check_interval, check_number
from composable_energy.sampling import Noise
from composable_energy_classification.calibration import check_points


@dataclass(frozen=True)
class Refinement:
    r"""Langevin steps $x' = x - \tfrac{\lambda}{2} \nabla E(x) + \sqrt{\lambda T}\, \xi$ from given points.

    Points near the data come back to where the density is high, so that small perturbations are lost (Grathwohl et al., 2020). The noise
    is a function of (seed, row, step, draw).

    Args:
        steps: The number of steps.
        step_size: $\lambda$, in units of $x^2$.
        temperature: $T$; 0 is gradient descent.
        draws: The number of refined points for each point; a classifier averages its probabilities over them.
        clamp: The lowest and the highest value of a coordinate, such as `(0, 1)`; None leaves points alone.
        seed: The seed of the noise.

    References:
        Your classifier is secretly an energy based model and you should treat it like one (Grathwohl et al., 2020),
        https://arxiv.org/abs/1912.03263
    """

    steps: int = 10
    step_size: float = 0.01
    temperature: float = 1.0
    draws: int = 1
    clamp: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("steps", self.steps)
        check_integer("draws", self.draws)
        check_number("step_size", self.step_size, above=0)
        check_number("temperature", self.temperature, least=0)
        check_integer("seed", self.seed, least=-(2**63))
        if self.clamp is not None:
            object.__setattr__(self, "clamp", check_interval("clamp", self.clamp))

    @property
    def random(self) -> bool:
        return self.temperature > 0

    def __call__(
        self, energy: Energy, x: Tensor, *, draw: int = 0, seed: int | None = None, rows: Sequence[int] | None = None, graph: bool = False
    ) -> Tensor:
        """Returns the refined points, with the shape of the points.

        `seed` and `rows` are those of `Classifier`; each `draw` has its own noise. With `graph` points get gradients through all steps.

        Raises:
            OptionError: The energy has a support and the refinement no `clamp`.
            ExpressionError: A refined point is not finite.
        """
        check_points(x)
        if energy.support is not None and self.clamp is None:
            raise OptionError(f"{energy} lives on {energy.support}, which Langevin steps may leave: give the refinement a `clamp` inside.")
        noise = Noise(self.seed if seed is None else seed, range(len(x)) if rows is None else tuple(rows))
        point, scale = (x if graph else x.detach()), (self.step_size * self.temperature) ** 0.5
        for step in range(1, self.steps + 1):
            point = point + self.step_size / 2 * energy.score(point, create_graph=graph)
            if scale:
                point = point + scale * noise.at(step).normal(point, draw)
            if self.clamp is not None:
                point = point.clamp(*self.clamp)
        if not bool(point.isfinite().all()):
            count = int((~point.isfinite()).flatten(1).any(1).sum())
            raise ExpressionError(f"Refinement of {count} of {len(x)} points diverged: take a smaller step_size than {self.step_size:g}.")
        return point
