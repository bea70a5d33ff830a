r"""Energy matching: far from the data the gradient of the energy is a flow from noise to data, near the data the energy is a density."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number, import_extra
from composable_energy.sampling import energy_and_gradient, twin
from composable_energy_training.contrastive_divergence import Factor, contrast, run_langevin
from composable_energy_training.objective import Batch, Loss, Objective, as_float32, get_conditions, require_energy
from composable_energy_training.second_derivatives import differentiable_gradient


class EnergyMatching(Objective):
    r"""Flow matching of the gradient of the energy, and contrastive divergence near the data (Balcerak et al., 2025, algorithms 1 and 2).

    The paper's potential is $V = \varepsilon E$. The flow term trains it to carry standard normal points $x_0$ to data $x_1$ in unit time,

    $$\Bigl\langle w(t)\, \lVert \varepsilon \nabla E(x_t) + x_1 - x_0 \rVert^2 / d \Bigr\rangle, \qquad x_t = (1 - t)\, x_0 + t\, x_1,$$

    with uniform $t$, pairs matched by optimal transport, and $w$ falling linearly from 1 at $\tau$ to 0 at 1 (1 everywhere during warm-up).
    After the warm-up a second term makes $e^{-E}$ the density of the data, $\lambda \varepsilon \langle E(x_1) - E(x') \rangle$. Its chains

    $$x' \leftarrow x' - \delta \varepsilon \nabla E(x') + \sqrt{2 \delta \varepsilon\, T(k \delta)}\, \xi$$

    start at noise in even rows, with a temperature $T$ that is 0 up to the time $\tau$ and rises linearly to 1 at time 1; in odd rows they
    start at data, with $T = 1$. One energy without noise levels serves both. Sampling is the same chain: `langevin` with step size
    $2 \delta \varepsilon$, from normal points.

    Args:
        temperature: $\varepsilon$, in units of the squares of the points; it sets how sharp the density is within the flow's potential.
        warm_up: Training steps with the flow term alone.
        weight: $\lambda$, the weight of the contrastive term.
        flow: The weight of the flow term after the warm-up.
        steps: Steps of a chain.
        step_size: $\delta$, in units of time; `steps * step_size` above 1 lets chains stay at $T = 1$ for a while.
        cutoff: $\tau$.
        coupling: The number of consecutive rows within which noise and data are matched, a divisor of the rows of each process; 1 matches
            nothing. More than 1 needs the extra `metrics` (SciPy).
        l2: The weight of squared energies, see `ContrastiveDivergence`.
        condition: An attribute of the data that becomes the condition `y` of the energy.

    References:
        Energy matching: unifying flow matching and energy-based models for generative modeling (Balcerak et al., 2025),
        https://arxiv.org/abs/2504.10612
    """

    def __init__(
        self,
        *,
        temperature: float,
        warm_up: int,
        weight: float = 1.0,
        flow: float = 1.0,
        steps: int = 75,
        step_size: float = 0.02,
        cutoff: float = 0.9,
        coupling: int = 16,
        l2: float = 0.0,
        condition: str | None = None,
    ) -> None:
        self.temperature, self.warm_up = check_number("temperature", temperature, above=0), check_integer("warm_up", warm_up, least=0)
        self.weight, self.flow = check_number("weight", weight, least=0), check_number("flow", flow, least=0)
        self.steps, self.step_size = check_integer("steps", steps), check_number("step_size", step_size, above=0)
        self.cutoff, self.coupling = check_number("cutoff", cutoff, least=0, below=1), check_integer("coupling", coupling)
        self.l2, self.condition = check_number("l2", l2, least=0), condition

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss. Its scalars: `flow`; then also `diverged` and those of `ContrastiveDivergence`, with the `magnitude` of $V$."""
        energy, warm = require_energy(model), batch.step <= self.warm_up
        if energy.support is not None:
            raise OptionError(f"Energy matching moves normal points to data, outside of the support of {energy}: take another objective.")
        conditions = get_conditions(energy, batch, self.condition)
        flow = self._flow(energy, batch, conditions, warm) if warm or self.flow else batch.x.new_zeros(())
        if warm:
            return Loss(flow, {"flow": flow.detach()})
        copy = twin(energy).given(**conditions) if conditions else twin(energy)
        keyed = batch.noise.child(f"chains {batch.step}")
        at_data = torch.tensor([row % 2 == 1 for row in batch.noise.chains], device=batch.x.device)
        start = torch.where(unsqueeze_to(at_data, batch.x), batch.x, keyed.child("start").normal(batch.x))
        chains, diverged = run_langevin(lambda x: energy_and_gradient(copy, x)[1], start, keyed, self._factors(at_data))
        value, contrasted = contrast(model, batch.x, chains, conditions, self.l2)
        scalars = {**contrasted, "magnitude": self.temperature * contrasted["magnitude"], "flow": flow.detach(), "diverged": diverged}
        return Loss(self.flow * flow + self.weight * self.temperature * value, scalars)

    def _flow(self, energy: Energy, batch: Batch, conditions: dict[str, Tensor], warm: bool) -> Tensor:
        data, keyed = batch.x, batch.noise.child("flow")
        start, time = self._couple(keyed.normal(data), batch), keyed.child("time").uniform(data).to(data.dtype)
        weight = torch.ones_like(time) if warm else ((1 - time) / (1 - self.cutoff)).clamp_max(1)
        x = torch.lerp(start, data, unsqueeze_to(time, data))
        gradient = differentiable_gradient(energy, x, **conditions)[1]
        return (weight * as_float32(self.temperature * gradient + data - start).square().view(len(x), -1).mean(1)).mean()

    def _couple(self, start: Tensor, batch: Batch) -> Tensor:
        """Returns the starts in the order of the data that they go to, by optimal transport within groups of rows."""
        if self.coupling == 1:
            return start
        first, count = batch.noise.chains[0], len(start)
        if first % self.coupling or count % self.coupling:
            way = "make the rows of each process a multiple of `coupling`, or set coupling=1."
            raise OptionError(f"Rows {first} to {first + count - 1} cannot be divided into groups of {self.coupling}: {way}")
        assign = import_extra("scipy.optimize", "metrics").linear_sum_assignment
        data, noise = (part.detach().reshape(len(part), -1).double().unflatten(0, (-1, self.coupling)) for part in (batch.x, start))
        costs = torch.cdist(data, noise).square().cpu().numpy()
        order = torch.stack([torch.from_numpy(assign(cost)[1]) + i * self.coupling for i, cost in enumerate(costs)]).flatten()
        return start[order.to(start.device)]

    def _factors(self, at_data: Tensor) -> Iterator[tuple[Factor, Factor]]:
        drift = self.step_size * self.temperature
        for number in range(1, self.steps + 1):
            rising = min(max((number * self.step_size - self.cutoff) / (1 - self.cutoff), 0.0), 1.0)
            yield drift, math.sqrt(2 * drift) * torch.where(at_data, 1.0, math.sqrt(rising))
