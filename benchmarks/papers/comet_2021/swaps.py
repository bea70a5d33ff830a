r"""One component swapped between two rooms: which factors change with it, and training that isolates factors in components.

    python -m benchmarks.papers.comet_2021.swaps [--write] [--seed 5 6 7] [--steps 1850] [--data FOLDER] [--parts FOLDER]

For 500 pairs of test pictures A, B, component k of A is replaced by that of B and decoded. A regressor reads the factors from pictures; it
is fitted on the model's own reconstructions of 4,000 training pictures, for 20 s, and its R2 on those of test pictures is reported. Entry
(j, k) of the matrix is the share of the change of factor j from A to B that component k causes: the slope $\langle m w \rangle / \langle
w^2 \rangle$ of the moves $m = f_j(\text{swap}_k) - f_j(A)$ over the whole changes $w = f_j(B) - f_j(A)$, all read from the model's own
pictures. Rows sum to 1 if components are additive.

How well components isolate factors is scored from the rows $p(k \mid j)$, with negative shares set to 0 and rows scaled to sum to 1:

- **isolation**: the mutual information of factor and component, $\bigl(H(\bar p) - \langle H(p_j) \rangle_j\bigr) / \ln K$, each factor
  with the same weight. It is 0 if all factors are spread evenly, and also if one component has them all; seven in four reach .98;
- **largest share**: the mean over factors; one component that has them all would reach 1, so it means nothing alone;
- **components used**: $e^{H(\bar p)}$, and **moved**: the mean number of factors of which a component has a share above a quarter;
- **sum**: of a row, the mean over factors. Far from 1, components are not additive, and the other scores mean little.

The models have the same networks, start and budget, and train on 8,000 pictures each:

- **paper**: the objective of the paper, on 8,000 single pictures;
- **labelled**: on 4,000 pairs that differ in one factor, `Exchange`: a picture is reconstructed from its partner's components and its own
  component of the factor that differs. The label is the factor that differs, without its values. The components are assigned to lamp
  intensity, the lamp's place, camera x, and camera y and z.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.baselines import encoder
from benchmarks.papers.comet_2021.factor_models import (
    COMPONENTS,
    FACTORS,
    SQUARED,
    create_comet,
    reconstruct,
    train_comet,
    train_or_load,
)
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.training import PRECISION, Budget, fit
from benchmarks.papers.comet_2021.worlds import Room, render_room
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_rounded
from composable_energy.errors import OptionError
from composable_energy_comet import Comet, ConvEnergy, Decomposition
from composable_energy_training import Batch, Loss, Objective

OWNERS = (0, 1, 1, 1, 2, 3, 3)
"""The component of each factor, for training with labels."""

STEPS = 1_850
PAIRS, SWAPS, READ, READING = 4000, 500, 4000, 20.0
KINDS = ("paper", "labelled")


class Exchange(Objective):
    r"""The reconstruction error of pictures from their partner's components and one of their own; partners differ in one factor.

    Rows 2i and 2i + 1 of a batch are partners. The exchange loses nothing if one component alone holds the factor that differs.

    Args:
        inner: The objective that decodes components and compares pictures.
        owners: The component of each factor, with shape $(F,)$; batches need the label `changed`, the factor in which rows differ
            from their partners.
    """

    def __init__(self, inner: Decomposition, owners: Tensor) -> None:
        self.inner, self.owners = inner, owners

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalar is `error`.

        Raises:
            OptionError: The model is not a `Comet`.
        """
        if not isinstance(model, Comet):
            raise OptionError(f"Exchange trains a Comet, got {type(model).__name__}.")
        z = exchange(model.encoder(batch.x), self.owners[batch.labels["changed"].repeat_interleave(2)])
        if isinstance(model.energy, ConvEnergy):
            value = self.inner.descent_loss(model.energy, z, batch.x, batch.noise)
        else:
            value = self.inner.reconstruction(model.energy.minimum(z), batch.x).mean()
        return Loss(value, {"error": value.detach()})


def exchange(z: Tensor, own: Tensor) -> Tensor:
    """Returns latents with one component of each row and all others of its partner, with shape $(2B, K, D)$.

    Args:
        z: Rows 2i and 2i + 1 are partners, with shape $(2B, K, D)$.
        own: The component that each row keeps, with shape $(2B,)$.
    """
    partners = z.view(-1, 2, *z.shape[1:]).flip(1).view_as(z)
    keeps = torch.arange(z.shape[1], device=z.device) == own[:, None]
    return torch.where(keeps[:, :, None], z, partners)


def shares(a: Tensor, b: Tensor, swapped: Tensor) -> Tensor:
    """Returns the share of each factor's change from A to B that each component causes, with shape $(F, K)$.

    Args:
        a: The factors of A, with shape $(N, F)$.
        b: The factors of B.
        swapped: The factors of A with component k of B, with shape $(N, K, F)$.
    """
    whole = b - a
    return (((swapped - a[:, None]) * whole[:, None]).sum(0) / whole.square().sum(0)).T


def isolation(matrix: Tensor) -> dict[str, float]:
    """Returns how well components, the columns of `shares`, isolate factors, its rows; see the module's docstring."""
    rows = matrix.clamp(min=0)
    rows = rows / rows.sum(1, keepdim=True).clamp(min=1e-12)
    used = _entropy(rows.mean(0))
    return {
        "isolation": float(used - _entropy(rows).mean()) / math.log(matrix.shape[1]),
        "largest share": float(rows.max(1).values.mean()),
        "components used": math.exp(float(used)),
        "moved": float((matrix > 0.25).sum(0).float().mean()),
        "sum": float(matrix.sum(1).mean()),
    }


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum(-1)


def render_pairs(data: Room, folder: Path) -> tuple[Tensor, Tensor]:
    """Returns pairs of pictures, with shape $(4000, 2, 3, 32, 32)$, and the one factor in which each differs, with shape $(4000,)$."""
    changed, path = torch.arange(PAIRS) % len(FACTORS), folder / "room-pairs.npy"
    if not path.exists():
        factors = data.train_factors[:PAIRS].numpy().copy()
        factors[np.arange(PAIRS), changed] = np.random.default_rng(4).uniform(0, 1, PAIRS)
        np.save(path, ce.get("world", "room", size=32).render({"factors": factors.astype("float32")}).images)
    return torch.stack([data.train[:PAIRS], torch.from_numpy(np.load(path)).float() / 255], 1), changed


def train_kind(kind: str, seed: int, data: Room, args: argparse.Namespace) -> tuple[Any, dict[str, float]]:
    """Returns a COMET that was trained in one of the two ways, and the figures of its training."""
    model, path = create_comet("conv", seed), args.parts / "factors" / f"swaps-{kind}-{seed}-{args.steps}.pt"
    if kind == "paper":
        return model, train_or_load(path, model, lambda: train_comet(model, data.train, args.steps, seed, precision="auto"))
    images, changed = render_pairs(data, args.data)
    objective = Exchange(SQUARED, torch.tensor(OWNERS))
    return model, train_or_load(
        path, model, lambda: train_comet(model, images, args.steps, seed, objective, {"changed": changed}, precision="auto")
    )


def train_regressor(images: Tensor, factors: Tensor, seed: int, seconds: float = READING) -> nn.Module:
    """Returns a network that reads factors from such pictures."""
    torch.manual_seed(seed)
    network = encoder(factors.shape[1])
    fit(
        lambda rows, _: (network(images[rows]) - factors[rows]).square().mean(),
        network.parameters(),
        len(images),
        Budget(seconds=seconds, batch=64),
        seed,
    )
    return network.eval()


@torch.no_grad()
def swapped(model: Any, a: Tensor, b: Tensor) -> Tensor:
    """Returns A with each component of B in turn, with shape $(N, K, 3, S, S)$."""
    return torch.stack([model.swap(a, b, k) for k in range(model.components)], 1)


def measure(model: Any, data: Room, seed: int) -> dict[str, Any]:
    """Returns the matrix of shares, its scores, the R2 of the regressor, and the error of reconstructions."""
    own, rebuilt = reconstruct(model, data.train[:READ]), reconstruct(model, data.test)
    read = train_regressor(own, data.train_factors[:READ], seed)
    with torch.no_grad():
        found = read(rebuilt)
        half = len(rebuilt) // 2
        a, b = found[:SWAPS], found[half : half + SWAPS]
        mixed = swapped(model, data.test[:SWAPS], data.test[half : half + SWAPS])
        moved = read(mixed.flatten(0, 1)).unflatten(0, mixed.shape[:2])
    r2 = 1 - (found - data.test_factors).square().mean(0) / data.test_factors.var(0, unbiased=False)
    matrix = shares(a, b, moved)
    return {
        "MSE": float((rebuilt - data.test).square().mean()),
        **isolation(matrix),
        "matrix": matrix.tolist(),
        "R2 of the regressor": r2.tolist(),
    }


def sheet(models: Mapping[str, Any], data: Room, columns: int = 6) -> Tensor:
    """Returns rows for each model, one model beside another: A, B, both reconstructions, and A with component 1, ... of B.

    The pairs are those with the largest differences of factors.
    """
    half = len(data.test) // 2
    far = (data.test_factors[:SWAPS] - data.test_factors[half : half + SWAPS]).norm(dim=1).topk(columns).indices
    a, b = data.test[far], data.test[half + far]
    sheets = []
    for model in models.values():
        with torch.no_grad():
            rows = [a, b, model.decode(model.encode(a)), model.decode(model.encode(b)), *swapped(model, a, b).unbind(1)]
        sheets.append(arrange_rows(rows))
    return torch.cat([part for sheet in sheets for part in (sheet, torch.ones(3, sheet.shape[1], 24))][:-1], 2)


def main() -> None:
    parser = experiment_parser("swaps", __doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training of each model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, runs, models = render_room(args.data), [], {}
    for kind, seed in ((kind, seed) for kind in args.kinds for seed in args.seed):
        model, figures = train_kind(kind, seed, data, args)
        path = args.parts / "factors" / f"swaps-{kind}-{seed}-{args.steps}.json"
        if not path.exists():
            write_rounded(path, {"objective": kind, "seed": seed, **figures, **measure(model, data, seed)})
        found = read_json(path)
        runs.append(found)
        models.setdefault(kind, model)
        columns = [f"component {k + 1}" for k in range(COMPONENTS)]
        rows = zip(FACTORS, found["matrix"], found["R2 of the regressor"], strict=True)
        table = [{"factor": name, **dict(zip(columns, row, strict=True)), "R2 of the regressor": r2} for name, row, r2 in rows]
        print_table(f"{kind}, seed {seed}: share of each factor's change that a component causes", table)
    hidden = ("matrix", "R2 of the regressor")
    print_table("Isolation", [{key: value for key, value in run.items() if key not in hidden} for run in runs])
    if args.write:
        COMET.write("swaps", {"runs": runs}, sheet(models, data), factors=FACTORS, owners=OWNERS, pairs=SWAPS, precision=PRECISION)


if __name__ == "__main__":
    main()
