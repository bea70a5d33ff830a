"""Generators controlled in their latent space, beside the tests of LACE: `python -m benchmarks.lace --write`.

Sections, each of which can be run alone (`--only closed faces costs edits unseen`):

- closed: a Gaussian prior and a logistic attribute in 1 to 32 dimensions, moments against quadrature;
- faces: expressions over the generator of drawn faces, 1,000 pictures each, seen by a judge that is not used in sampling;
- costs: evaluations that the flow of the paper and Langevin dynamics need for the same share of pictures;
- edits: four edits one after another, beside conditioning afresh;
- unseen: a generator in a file of TorchScript with uniform latents, by the same calls.

One thread. Attributes of faces are fitted by the labels of the judge on 40,000 pictures, half of them in two rounds.
Latent points of seeds 1 to 17 are those of the training of the generator, and are not used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.blob_world import LATENTS, blob_base, blob_labels
from benchmarks.harness import argument_parser, environment, read_json, write_json
from benchmarks.lace_faces import PICTURES, SAMPLERS, attributes, costs, decode, edits, faces, joined, sample
from benchmarks.lace_page import PAGE, PATH, blocks
from benchmarks.pages import write_page
from composable_energy.sampling import Sampler
from composable_energy_latent import LACE, attribute, edit, fit_attributes, latent
from composable_energy_mcmc import ChEES
from plugins.latent.tests.closed_case import direction, moments

CHAINS = 4000


def closed() -> list[dict[str, Any]]:
    """Returns errors of moments by attribute, sampler and number of dimensions."""
    rows = []
    variants: dict[str, tuple[Sampler, int | None]] = {
        "chees": (ChEES(), 15),
        "lace, draws=256": (LACE(draws=256), None),
        "lace": (LACE(), None),
        "lace, draws=16": (LACE(draws=16), None),
        "lace, draws=0": (LACE(draws=0), None),
    }
    for slope, offset in ((2.0, 0.0), (5.0, -2.5), (5.0, -5.0)):
        mean, variance, fourth = moments(slope, offset)
        for label, setting in variants.items():
            found = []
            for d in (1, 2, 8, 32):
                a = direction(d)
                base = latent(torch.nn.Linear(d, 1), d)
                E = attribute(base, lambda z, a=a, slope=slope, offset=offset: slope * (z @ a) + offset, "A")
                z, evaluations, seconds = sample(E, CHAINS, 0, *setting)
                along = z @ a
                of_mean = (along.mean().item() - mean) / (variance / CHAINS) ** 0.5
                of_variance = (along.var().item() - variance) / ((fourth - variance**2) / CHAINS) ** 0.5
                found.append(
                    {
                        "d": d,
                        "mean": of_mean,
                        "variance": of_variance,
                        "shift": along.mean().item() - mean,
                        "ratio": along.var().item() / variance,
                        "evaluations": evaluations,
                        "seconds": seconds,
                    }
                )
            rows.append({"slope": slope, "offset": offset, "sampler": label, "dimensions": found})
            print(slope, offset, label, [(f"{r['mean']:.1f}", f"{r['variance']:.1f}") for r in found], flush=True)
    return rows


def unseen() -> dict[str, Any]:
    """Returns figures of attributes and of an edit of the blobs, and the report of the attributes."""
    with tempfile.TemporaryDirectory() as folder:
        found = fit_attributes(blob_base(Path(folder)), blob_labels, count=80_000, layers=3, steps=6000, seed=0)
        rows = []
        red, bright, left = (found[name] for name in ("red", "bright", "left"))
        checks: list[tuple[str, ce.Energy, Callable[[dict[str, Tensor]], Tensor]]] = [
            ("red", red, lambda t: t["red"]),
            ("red & ~bright", red & ~bright, lambda t: t["red"] & ~t["bright"]),
            (
                "(red & left) | (~red & bright)",
                (red & left) | (~red & bright),
                lambda t: (t["red"] & t["left"]) | (~t["red"] & t["bright"]),
            ),
        ]
        for text, E, holds in checks:
            pictures = E.sample(PICTURES, seed=0)
            rows.append({"expression": text, "accuracy": holds(blob_labels(pictures)).float().mean().item()})
            print(rows[-1], flush=True)
        z = 2 * torch.rand(PICTURES, LATENTS, generator=torch.Generator().manual_seed(1)) - 1
        changed = edit(z, red, keep=found)
        before, after = blob_labels(decode(found.base, z)), blob_labels(changed.images)
        rows.append(
            {
                "expression": "edit: red",
                "accuracy": after["red"].float().mean().item(),
                "kept": min((after[name] == before[name]).float().mean().item() for name in ("bright", "left")),
            }
        )
        print(rows[-1], flush=True)
        return {"report": [vars(row) for row in found.report.rows], "rows": rows}


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--only", nargs="+", choices=("closed", "faces", "costs", "edits", "unseen"), help="sections to measure")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="samplers of the section faces")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = set(args.only or ("closed", "faces", "costs", "edits", "unseen"))
    sections: dict[str, Callable[[], Any]] = {}
    if wanted & {"faces", "costs", "edits"}:
        found = attributes()
        print(found.report)
        sections["fit"] = lambda: [vars(row) for row in found.report.rows]
        sections |= {"edits": lambda: edits(found), "costs": lambda: costs(found), "faces": lambda: faces(found, args.samplers)}
    sections |= {"closed": closed, "unseen": unseen}
    for name, measure in sections.items():
        if name not in wanted and name != "fit":
            continue
        measured = measure()
        if args.write:  # after each section, as some take long
            before = read_json(PATH) if PATH.exists() else {}
            if name == "faces":
                measured = joined(before.get("faces", []), measured)
            write_json(PATH, {**before, **environment(), "pictures": PICTURES, name: measured})
    if args.write:
        write_page(PAGE, blocks())


if __name__ == "__main__":
    main()
