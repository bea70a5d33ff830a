r"""Seven factors of the room: how much of them codes without labels contain, for COMET and for baselines, at equal time.

    python -m benchmarks.papers.comet_2021.factors [--only comet-coarse ...] [--seed 5 6 7] [--share 1] [--data FOLDER] [--parts FOLDER]
    python -m benchmarks.papers.comet_2021.factors --gather [--seed 5 6 7] [--write]

The first trains and scores models in one thread, by default all of them for seeds 5, 6 and 7, on which no setting was chosen; weights and
figures go to the folder of parts, and existing ones are used again. The second prints the table of the parts of these seeds. The protocol:

- **Data**: the world `room`, 32 x 32: 8,000 training pictures with random factors (seed 1), 2,000 test pictures (seed 3), and the grid of
  4 values (0, 1/3, 2/3, 1) of each of 7 factors, 16,384 pictures.
- **Time**: numbers of steps that take equally long; the time of a step is that of one processor, the fastest of rounds in which all models
  take turns. See `factor_rows.py`.
- **Codes** have 64 numbers: for COMET those of its components one after another, for the beta-VAE the mean of its posterior. `beta-0.25-10`
  has 10 numbers; slot attention four slots of 48, from the same first noise for each picture; pixels are pictures averaged to 16 x 16,
  768 numbers.
- **Training**: Adam, whose rate falls to 0 as half a cosine, except for slots. The error of COMET and the autoencoder is `charbonnier`,
  that of the beta-VAE squared and summed, that of slots squared.
- Each model is scored twice. **raw** takes codes as they are. **PCA 64** (the paper's protocol for COMET) takes principal components of
  the codes, fitted on the first 5,000 training pictures, centered and not scaled: for 64 numbers it is a rotation.
- **BetaVAE** (Higgins et al., 2017), on the grid: 200 + 200 points for each factor, each the mean over 64 pairs that share the factor of
  |z1 - z2|, each code divided by its standard deviation on the grid; the accuracy of logistic regression on the second 200.
- **MIG** (Chen et al., 2018), on the grid: 20 bins of equal width for each code; (largest - second largest mutual information) / ln 4,
  mean over factors.
- **MCC**, on the test pictures: Pearson correlations of codes and factors, matched one to one; the mean of the 7 matched ones.
- **R2**, on the test pictures: of each factor by least squares from all raw codes, fitted on the training pictures.
- **pictures**: the MCC of principal components of codes whose distances are those of pictures, see `picture_metric`.

Figures are means over seeds with standard errors. The seed is that of weights, batches and noise, and of the pairs of the BetaVAE score.
InfoGAN is not run: adversarial training needs settings of its own. Slot attention stands for decoders with masks such as MONet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.baselines import codes_of, fit_principal_components
from benchmarks.papers.comet_2021.factor_metric import measure_pictures
from benchmarks.papers.comet_2021.factor_models import FACTORS
from benchmarks.papers.comet_2021.factor_rows import ROWS, codes_of_row, reconstruct_row, scaled_steps, time_steps, train_row
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.worlds import Room, render_room
from benchmarks.papers.experiment import COMET, print_table, write_rounded

PAIRS, FITTED = 64, 5000


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
        rebuilt = reconstruct_row(model, data.test)
        error = {} if rebuilt is None else {"MSE": float((rebuilt - data.test).square().mean())}
        result = {"model": name, "seed": seed, **figures, **error, **score(codes_of_row(name, model), data, seed)}
        write_rounded(path, result)
    return read_json(path)


def part_of(parts: Path, name: str, seed: int, share: float) -> Path:
    """Returns the file of the figures of a row and seed."""
    return parts / f"{'-'.join(map(str, (name, seed, *scaled_steps(name, share))))}.json"


def summarize(results: Sequence[Mapping[str, Any]], times: Mapping[str, Sequence[float]], share: float = 1.0) -> list[dict[str, Any]]:
    """Returns a row for each model, in the order of `ROWS`: means over seeds, and standard errors of the mean.

    Args:
        results: The figures of each model and seed.
        times: Seconds of a step of each stage of each model.
        share: Share of the steps.
    """
    rows = []
    for name in ROWS:
        some = [result for result in results if result["model"] == name]
        if not some:
            continue
        stages = zip(scaled_steps(name, share), times[name], strict=True) if ROWS[name] else ()
        row: dict[str, Any] = {"model": name, "seeds": len(some), "seconds": round(sum(steps * each for steps, each in stages))}
        for key in ("steps", "MSE", "R2"):
            if all(key in result for result in some):
                row[key] = mean_and_error([result[key] for result in some])
        for protocol in ("raw", "PCA 64"):
            for score in ("BetaVAE", "MIG", "MCC"):
                row[f"{score}, {protocol}"] = mean_and_error([result[protocol][score] for result in some])
        rows.append(row)
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of some numbers and its standard error, None for one alone."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else None


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    digits = {"steps": 0, "MSE": 4, "R2": 3, "difference": 3 if row.get("score") == "R2" else 1}
    texts = {}
    for key, value in row.items():
        if isinstance(value, tuple):
            places, (mean, error) = digits.get(key, 1), value
            value = f"{mean:.{places}f}" + ("" if error is None else f"±{error:.{places}f}")
        texts[key.replace("BetaVAE", "Beta")] = value
    return texts


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns how COMET compares with the other rows: R2, and MCC after PCA with the better MCC of the other, raw or after PCA.

    `higher` is True or False if the difference exceeds two of its standard errors, else None.
    """
    by, found = {row["model"]: row for row in rows}, []
    ours = by.pop("comet-coarse", None)
    if ours is None:
        return found
    for other in (row for name, row in by.items() if name != "untrained"):
        best = max(("raw", "PCA 64"), key=lambda protocol: other[f"MCC, {protocol}"][0])
        for name, mine, its in (("R2", ours["R2"], other["R2"]), ("MCC", ours["MCC, PCA 64"], other[f"MCC, {best}"])):
            known = mine[1] is not None and its[1] is not None
            difference, error = mine[0] - its[0], (mine[1] ** 2 + its[1] ** 2) ** 0.5 if known else None
            clear = error is not None and abs(difference) > 2 * error
            label = other["model"] if name == "R2" else f"{other['model']}, {best}"
            found.append({"score": name, "against": label, "difference": (difference, error), "higher": difference > 0 if clear else None})
    return found


def gather(parts: Path, seeds: Sequence[int], share: float, write: bool) -> None:
    """Prints the table of the parts of some seeds, and writes it."""
    files = [part_of(parts, name, seed, share) for name in ROWS for seed in seeds]
    results = [read_json(file) for file in files if file.exists()]
    times, metric = (read_json(parts / f"{name}.json") for name in ("times", "metric"))
    rows = summarize(results, times, share)
    print_table("Seven factors of the room: means over seeds ± standard errors", [_line(row) for row in rows])
    print_table(f"R2 of each factor, seed {seeds[0]}", [{"model": r["model"], **r["R2 of each"]} for r in results if r["seed"] == seeds[0]])
    reached = goals(rows)
    print_table("COMET and the others: difference ± its standard error", [_line(row) for row in reached])
    print_table("Codes with the distances of pictures", [{"MCC": metric["MCC"]}])
    if write:
        COMET.write("factors", {"table": rows, "goals": reached, "pictures": metric, "times": times, "runs": results}, seeds=list(seeds))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("factors", __doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, nargs="+", default=SEEDS, help="of training, and of the table")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps of each model")
    parser.add_argument("--gather", action="store_true", help="train nothing, and print the table of what exists")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = args.parts / "factors"
    if not args.gather:
        data = render_room(args.data)
        for name, measure in (("times", lambda: time_steps(data.train[:512])), ("metric", measure_pictures)):
            if not (parts / f"{name}.json").exists():
                write_rounded(parts / f"{name}.json", measure())
        for name, seed in ((name, seed) for seed in args.seed for name in args.only):
            result = train_and_score(name, seed, data, parts, args.share)
            print(name, seed, {key: value for key, value in result.items() if key not in ("model", "seed", "R2 of each")}, flush=True)
    gather(parts, args.seed, args.share, args.write)


if __name__ == "__main__":
    main()
