r"""Seven factors of the room: how much of them codes without labels contain, for COMET and for baselines, at equal time.

    python -m benchmarks.papers.comet_2021.factors [--only comet-coarse ...] [--seed 5 6 7] [--share 1] [--write]

Models train in one thread, by default for seeds 5, 6 and 7, on which no setting was chosen; weights and figures go to the folder of parts,
and existing ones are used again. The protocol:

- **Data**: the world `room`, 32 x 32: 8,000 training pictures with random factors (seed 1), 2,000 test pictures (seed 3), and the grid of
  4 values (0, 1/3, 2/3, 1) of each of 7 factors, 16,384 pictures.
- **Time**: numbers of steps that take equally long; see `factor_rows.py`.
- **Codes** have 64 numbers: for COMET those of its components one after another, for the beta-VAE the mean of its posterior. `beta-0.25-10`
  has 10 numbers; pixels are pictures averaged to 16 x 16, 768 numbers.
- **Training**: Adam, whose rate falls to 0 as half a cosine. The error of COMET and the autoencoder is `charbonnier`, that of the beta-VAE
  squared and summed.
- Each model is scored twice. **raw** takes codes as they are. **PCA 64** (the paper's protocol for COMET) takes principal components of
  the codes, fitted on the first 5,000 training pictures, centered and not scaled: for 64 numbers it is a rotation.
- **BetaVAE** (Higgins et al., 2017), on the grid: 200 + 200 points for each factor, each the mean over 64 pairs that share the factor of
  |z1 - z2|, each code divided by its standard deviation on the grid; the accuracy of logistic regression on the second 200.
- **MIG** (Chen et al., 2018), on the grid: 20 bins of equal width for each code; (largest - second largest mutual information) / ln 4,
  mean over factors.
- **MCC**, on the test pictures: Pearson correlations of codes and factors, matched one to one; the mean of the 7 matched ones.
- **R2**, on the test pictures: of each factor by least squares from all raw codes, fitted on the training pictures.

Figures are means over seeds with standard errors. The seed is that of weights, batches and noise, and of the pairs of the BetaVAE score.
InfoGAN is not run: adversarial training needs settings of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.factor_rows import ROWS, codes_of, codes_of_row, fit_principal_components, scaled_steps, train_row
from benchmarks.papers.comet_2021.worlds import SEEDS, Room, read_experiment, render_room
from benchmarks.papers.experiment import COMET, print_table, write_rounded

PAIRS, FITTED = 64, 5000
FACTORS = ("lamp intensity", "lamp x", "lamp y", "lamp z", "camera x", "camera y", "camera z")


def score(encode: Callable[[Tensor], Tensor], data: Room, seed: int) -> dict[str, Any]:
    """Returns the scores of codes, raw and as principal components, and the R2 of each factor."""
    from composable_energy_comet.metrics import linear_r2

    train, test, grid = (codes_of(encode, images) for images in (data.train, data.test, data.grid))
    turn = fit_principal_components(train[:FITTED])
    r2 = linear_r2(train, data.train_factors, test, data.test_factors)
    return {
        "R2": float(r2.mean()),
        "R2 of each": dict(zip(FACTORS, r2.tolist(), strict=True)),
        "raw": _disentanglement(grid, test, data, seed),
        "PCA 64": _disentanglement(turn(grid), turn(test), data, seed),
    }


def _disentanglement(grid: Tensor, test: Tensor, data: Room, seed: int) -> dict[str, float]:
    from composable_energy_comet.metrics import beta_vae_score, mean_correlation, mutual_information_gap

    return {
        "BetaVAE": 100 * float(beta_vae_score(grid, data.levels, pairs=PAIRS, seed=seed)),
        "MIG": 100 * float(mutual_information_gap(grid, data.levels, bins=20, points=None)),
        "MCC": 100 * float(mean_correlation(test, data.test_factors)),
    }


def train_and_score(name: str, seed: int, data: Room, parts: Path, share: float) -> dict[str, Any]:
    """Trains and scores the model of a row, and writes its figures; or reads them."""
    path = part_of(parts, name, seed, share)
    if not path.exists():
        model, figures = train_row(name, seed, data.train, parts, share)
        result = {"model": name, "seed": seed, **figures, **score(codes_of_row(name, model), data, seed)}
        write_rounded(path, result)
    return read_json(path)


def part_of(parts: Path, name: str, seed: int, share: float) -> Path:
    """Returns the file of the figures of a row and seed."""
    return parts / f"{'-'.join(map(str, (name, seed, *scaled_steps(name, share))))}.json"


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each model, in the order of `ROWS`: means over seeds, and standard errors of the mean."""
    rows = []
    for name in ROWS:
        some = [result for result in results if result["model"] == name]
        if not some:
            continue
        row: dict[str, Any] = {"model": name, "seeds": len(some)}
        row |= {key: mean_and_error([result[key] for result in some]) for key in ("steps", "R2") if key in some[0]}
        for protocol in ("raw", "PCA 64"):
            for score in ("BetaVAE", "MIG", "MCC"):
                row[f"{score}, {protocol}"] = mean_and_error([result[protocol][score] for result in some])
        rows.append(row)
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of some numbers and its standard error, None for one alone."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else None


def main(arguments: Sequence[str] | None = None) -> None:
    args = read_experiment("factors", __doc__, arguments, only=list(ROWS), seed=SEEDS, share=1.0)
    parts, data, results = args.parts / "factors", render_room(args.data), []
    for name, seed in ((name, seed) for seed in args.seed for name in args.only):
        results.append(train_and_score(name, seed, data, parts, args.share))
        print(name, seed, {key: value for key, value in results[-1].items() if key not in ("model", "seed", "R2 of each")}, flush=True)
    rows = summarize(results)
    print_table("Seven factors of the room: means over seeds and standard errors", rows)
    if args.write:
        COMET.write("factors", {"table": rows, "runs": results}, seeds=list(args.seed))


if __name__ == "__main__":
    main()
