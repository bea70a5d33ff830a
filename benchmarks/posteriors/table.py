"""The verdict on a run, and its line in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OURS, NUTS = "composable-energy", "NumPyro NUTS"
Rows = Sequence[Mapping[str, Any]]


def verdict(row: Mapping[str, Any]) -> str:
    """Returns `right`, `wrong`, `undecided` or `error`."""
    if "error" in row:
        return "error"
    return "wrong" if row["wrong"] else "undecided" if row["undecided"] else "right"


def print_rows(rows: Rows, *, head: bool = True) -> None:
    """Prints one line for each run."""
    if head:
        titles = f"{'mean error':>18}{'sd ratio':>15}{'ESS':>8}{'grad/ESS':>10}{'all/ESS':>10}{'seconds':>9}"
        print(f"{'row':18}{'sampler':18}{'seed':>4} {'start':8}{titles}  verdict    warnings")
    for row in rows:
        line = f"{row['row']:18}{row['sampler']:18}{row['seed']:4} {row['start']:8}"
        if "error" in row:
            print(f"{line}{row['error'][:100]}  {' '.join(row['warnings'])}", flush=True)
            continue
        errors = [f" ({'-' if row[name] is None else format(row[name], '.2f')})" for name in ("mean_error", "ratio_error")]
        line += f"{row['mean']:+11.3f}{errors[0]}{row['ratio']:8.3f}{errors[1]}{row['ess']:8.0f}"
        line += f"{row['gradients_per_effective']:10.1f}{row['all_gradients_per_effective']:10.1f}{row['seconds']:9.1f}"
        print(f"{line}  {verdict(row):10} {' '.join(row['warnings'])}", flush=True)
