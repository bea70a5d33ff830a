r"""One component swapped between two rooms: which factors move with it, and what makes each factor move with one component alone.

    pip install -e '.[scenes,metrics]' -c constraints.txt
    python benchmarks/papers/comet_2021/swaps.py [--write] [--seed 0 1] [--seconds 150] [--data FOLDER] [--parts FOLDER]

For 500 pairs of test pictures A, B, component k of A is replaced by that of B and decoded. A regressor reads the factors from pictures; it
is fitted on the model's own reconstructions of 4,000 training pictures, for 20 s, and its R2 on those of test pictures is given. Entry
(j, k) of the matrix is the share of factor j's way from A to B that component k goes: the slope $\langle m w \rangle / \langle w^2 \rangle$
of the moves $m = f_j(\text{swap}_k) - f_j(A)$ over the whole ways $w = f_j(B) - f_j(A)$, all read from the model's own pictures. Rows sum
to 1 if components add up.

How well components isolate factors is scored from the rows $p(k \mid j)$, negative shares cut to 0 and rows scaled to sum to 1:

- **isolation**: the mutual information of factor and component, $\bigl(H(\bar p) - \langle H(p_j) \rangle_j\bigr) / \ln K$, each factor
  with the same weight. It is 0 if all factors are spread evenly, and also if one component has them all; seven in four reach .98;
- **largest share**: the mean over factors; one component that has them all would reach 1, so it says nothing alone;
- **components used**: $e^{H(\bar p)}$, and **moved**: the mean number of factors of which a component has a share above a quarter;
- **sum**: of a row, the mean over factors. Far from 1, components do not add up, and the other scores say little.

The models have the same networks, start and budget, and see 8,000 pictures each:

- **paper**: the objective of the paper, on 8,000 single pictures;
- **told**: on 4,000 pairs that differ in one factor, `Exchange`: a picture is to come out of its partner's components and its own one of
  the factor that differs. Which factor that is is told, its values are not. Components own lamp intensity; the lamp's place; camera x;
  camera y and z;
- **untold**: the same where nobody says what differs: it is taken to be the component whose latents are the furthest apart.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import encoder
from comet_common import CACHE, PICTURES, RESULTS, Budget, Room, about, fit, room, show, strip, write
from factors import COMPONENTS, FACTORS, MODELS, SQUARED, comet, kept, learnt, model_of, reconstructed
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_comet import Comet, ConvEnergy, Decomposition
from composable_energy_training import Batch, Loss, Objective

__all__ = ["Exchange", "exchanged", "isolation", "shares"]

OWNERS = (0, 1, 1, 1, 2, 3, 3)
"""Which component each factor belongs to where that is told."""

PAIRS, SWAPS, READ, READING = 4000, 500, 4000, 20.0


class Exchange(Objective):
    r"""The error of pictures that are decoded from their partner's components and one of their own, where both differ in one factor.

    Rows 2i and 2i + 1 of a batch are partners. If component k holds what differs, and no other does, nothing is lost by the exchange.

    Args:
        inner: How a picture is made of components, and compared.
        owners: For each factor its component, with shape $(F,)$; a batch then has the label `changed`, the factor in which rows differ from
            their partners. If None, the component that differs most is taken.
    """

    def __init__(self, inner: Decomposition, owners: Tensor | None = None) -> None:
        self.inner, self.owners = inner, owners

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Returns the loss; its scalar is `error`.

        Raises:
            OptionError: The model is no `Comet`.
        """
        if not isinstance(model, Comet):
            raise OptionError(f"Exchange trains a Comet, got {type(model).__name__}.")
        z = model.encoder(batch.x)
        if self.owners is None:
            own = (z - z.view(-1, 2, *z.shape[1:]).flip(1).view_as(z)).detach().square().sum(2).argmax(1)
        else:
            own = self.owners[batch.labels["changed"].repeat_interleave(2)]
        z = exchanged(z, own)
        if isinstance(model.energy, ConvEnergy):
            value = self.inner.descent_loss(model.energy, z, batch.x, batch.noise)
        else:
            value = self.inner.reconstruction(model.energy.minimum(z), batch.x).mean()
        return Loss(value, {"error": value.detach()})


def exchanged(z: Tensor, own: Tensor) -> Tensor:
    """Returns latents in which all components but one are the partner's, with shape $(2B, K, D)$.

    Args:
        z: Rows 2i and 2i + 1 are partners, with shape $(2B, K, D)$.
        own: The component that each row keeps, with shape $(2B,)$.
    """
    partners = z.view(-1, 2, *z.shape[1:]).flip(1).view_as(z)
    keeps = torch.arange(z.shape[1], device=z.device) == own[:, None]
    return torch.where(keeps[:, :, None], z, partners)


def shares(a: Tensor, b: Tensor, swapped: Tensor) -> Tensor:
    """Returns which share of each factor's way from A to B each component goes, with shape $(F, K)$.

    Args:
        a: The factors of A, with shape $(N, F)$.
        b: Those of B.
        swapped: Those of A with component k of B, with shape $(N, K, F)$.
    """
    whole = b - a
    return (((swapped - a[:, None]) * whole[:, None]).sum(0) / whole.square().sum(0)).T


def isolation(matrix: Tensor) -> dict[str, float]:
    """Returns how well components, the columns of `shares`, isolate factors, its rows; see the head of this file."""
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


def pairs(data: Room, folder: Path) -> tuple[Tensor, Tensor]:
    """Returns pictures in pairs that differ in one factor, with shape $(4000, 2, 3, 32, 32)$, and which, in turn, with shape $(4000,)$."""
    changed, kept_at = torch.arange(PAIRS) % len(FACTORS), folder / "room-pairs.npy"
    if not kept_at.exists():
        factors = data.train_factors[:PAIRS].numpy().copy()
        factors[np.arange(PAIRS), changed] = np.random.default_rng(4).uniform(0, 1, PAIRS)
        np.save(kept_at, ce.get_world("room", size=32).render({"factors": factors.astype("float32")}).images)
    return torch.stack([data.train[:PAIRS], torch.from_numpy(np.load(kept_at)).float() / 255], 1), changed


def trained(kind: str, seed: int, data: Room, told: argparse.Namespace) -> tuple[Any, dict[str, float]]:
    """Returns a COMET that was trained by one of the three ways, and what that measured."""
    if kind == "paper" and told.seconds == MODELS["comet"]:
        return model_of("comet", seed, data.train, told.parts)
    model = comet("conv", seed)
    if kind == "paper":
        return model, kept(told.parts / f"paper-{seed}-{told.seconds:.0f}.pt", model, lambda: learnt(model, data.train, told.seconds, seed))
    images, changed = pairs(data, told.data)
    objective = Exchange(SQUARED, torch.tensor(OWNERS) if kind == "told" else None)
    path = told.parts / f"exchange-{kind}-{seed}-{told.seconds:.0f}.pt"
    return model, kept(path, model, lambda: learnt(model, images, told.seconds, seed, objective, {"changed": changed}))


def reader(images: Tensor, factors: Tensor, seed: int, seconds: float = READING) -> nn.Module:
    """Returns a network that reads factors from pictures like these."""
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


def measured(model: Any, data: Room, seed: int) -> dict[str, Any]:
    """Returns the matrix of shares, its scores, the R2 of the regressor, and the error of reconstructions."""
    own, seen = reconstructed(model, data.train[:READ]), reconstructed(model, data.test)
    read = reader(own, data.train_factors[:READ], seed)
    with torch.no_grad():
        found = read(seen)
        half = len(seen) // 2
        a, b = found[:SWAPS], found[half : half + SWAPS]
        mixed = swapped(model, data.test[:SWAPS], data.test[half : half + SWAPS])
        moved = read(mixed.flatten(0, 1)).unflatten(0, mixed.shape[:2])
    r2 = 1 - (found - data.test_factors).square().mean(0) / data.test_factors.var(0, unbiased=False)
    matrix = shares(a, b, moved)
    return {
        "MSE": float((seen - data.test).square().mean()),
        **isolation(matrix),
        "matrix": matrix.tolist(),
        "R2 of the regressor": r2.tolist(),
    }


def picture(models: Mapping[str, Any], data: Room, columns: int = 6) -> Tensor:
    """Returns a strip for each model, one beside another: A, B, both reconstructed, and A with component 1, ... of B.

    Shown are those of the pairs whose factors differ most.
    """
    half = len(data.test) // 2
    far = (data.test_factors[:SWAPS] - data.test_factors[half : half + SWAPS]).norm(dim=1).topk(columns).indices
    a, b = data.test[far], data.test[half + far]
    sheets = []
    for model in models.values():
        with torch.no_grad():
            rows = [a, b, model.decode(model.encode(a)), model.decode(model.encode(b)), *swapped(model, a, b).unbind(1)]
        sheets.append(strip(rows))
    return torch.cat([part for sheet in sheets for part in (sheet, torch.ones(3, sheet.shape[1], 24))][:-1], 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=("paper", "told", "untold"), default=["paper", "told", "untold"])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=MODELS["comet"], help="of the processor, for each model")
    parser.add_argument("--data", type=Path, default=CACHE, help="where pictures are rendered to")
    parser.add_argument("--parts", type=Path, default=CACHE / "factors", help="where weights and figures of each run are kept")
    parser.add_argument("--write", action="store_true", help="write figures and picture into the repository")
    told = parser.parse_args()
    data, runs, shown = room(told.data), [], {}
    for kind in told.kinds:
        for seed in told.seed:
            model, trained_for = trained(kind, seed, data, told)
            path = told.parts / f"swaps-{kind}-{seed}-{told.seconds:.0f}.json"
            if not path.exists():
                write(path, {"objective": kind, "seed": seed, **trained_for, **measured(model, data, seed)})
            found = json.loads(path.read_text())
            runs.append(found)
            shown.setdefault(kind, model)
            columns = [f"component {k + 1}" for k in range(COMPONENTS)]
            rows = zip(FACTORS, found["matrix"], found["R2 of the regressor"], strict=True)
            table = [{"factor": name, **dict(zip(columns, row, strict=True)), "R2 of the regressor": r2} for name, row, r2 in rows]
            show(f"{kind}, seed {seed}: share of each factor's way that a component goes", table)
    hidden = ("matrix", "R2 of the regressor")
    show("Isolation", [{key: value for key, value in run.items() if key not in hidden} for run in runs])
    if told.write:
        write(RESULTS / "swaps.json", about(factors=FACTORS, owners=OWNERS, pairs=SWAPS, runs=runs))
        write(PICTURES / "swaps.png", picture(shown, data))


if __name__ == "__main__":
    main()
