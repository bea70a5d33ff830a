r"""Objects of two worlds in one picture, from two models that were trained separately: solids, and toys of several solids.

    python -m benchmarks.papers.comet_2021.two_worlds [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

The model of solids is the plan `solids-window` of `objects.py`. The model of toys has the same recipe and settings, and 12,000 pictures of
two to four pins, trucks, tables and snowmen (world `toys-64`, half widths .22 to .40, seed 1). Neither model saw an object of the other.

Pairs of a picture A of three solids and a picture B of three toys whose objects stand apart (seed 3). `recombine` joins the ground and the
solids of A, energies of one model, with the toys of B, energies of the other. The detector of `window_objects.py`, trained on solids and
toys in one picture, looks for all six. The ceiling are renders of all six under the light of A, the floor the places of another pair.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from benchmarks.papers.comet_2021.objects import SHOWN, train_plan, train_windows
from benchmarks.papers.comet_2021.window_objects import Joined, join_objects, render_both, separate_pairs, train_detector
from benchmarks.papers.comet_2021.worlds import WORLDS, Scenes, render_objects, run_experiment
from benchmarks.papers.compositional_2020.several_objects import scores
from benchmarks.papers.experiment import arrange_rows
from composable_energy_comet import Comet
from composable_energy_scenes.judge import Detector, detect_objects

SOLIDS, TOYS, BOTH, TRAINED = "three-64", "three-toys-64", "solids-toys-64", "toys-64"
PICTURES, PAIRS = 500, 200


def render_pairs(solids: Scenes, toys: Scenes, n: int) -> Joined:
    """Returns pairs of pictures whose objects stand apart, and renders of all objects of each, under the light of the solids."""
    a, b = separate_pairs(solids.labels, n, toys.labels).unbind(1)
    pictures = (some.mul(255).round().byte().numpy() for some in (solids.images[a], toys.images[b]))
    return render_both(*pictures, solids.labels, toys.labels, (a, b), WORLDS[BOTH][1])


def measure(solids: Comet, toys: Comet, detector: Detector, pairs: Joined) -> tuple[list[dict[str, Any]], Tensor]:
    """Returns a row of figures for each kind of picture, and the joined pictures."""
    joined = join_objects(solids, pairs.first, pairs.second, toys)
    versions = {"renders": pairs.rendered, "joined": joined, "another pair": joined.roll(1, 0)}
    return [{"pictures": name, **scores(detect_objects(x, detector), pairs.places)} for name, x in versions.items()], joined


def run(args: Any) -> Iterator[dict[str, Any]]:
    parts, joins, pictures = args.parts / "objects", [], {}
    detector = train_detector(parts, args.judges, "detector-toys", WORLDS[BOTH][1])
    pairs = render_pairs(render_objects(SOLIDS, PICTURES, "test", args.data), render_objects(TOYS, PICTURES, "test", args.data), PAIRS)
    for seed in args.seed:
        toys, _ = train_windows(TRAINED, seed, parts / f"toys-window-{seed}", args.data, {})
        rows, joined = measure(train_plan("solids-window", seed, parts, args.data)[0], toys, detector, pairs)
        joins += [{"seed": seed, **row} for row in rows]
        shown = [some[:SHOWN] for some in (pairs.first, pairs.second, joined, pairs.rendered)]
        pictures = pictures or {"two-worlds": arrange_rows(shown, 4)}
        yield {"joined": joins, "pictures": pictures}


if __name__ == "__main__":
    run_experiment("two-worlds", __doc__, run, seed=[5], judges=150.0)
