r"""Trains the concepts of `one-object`, reproducibly from seeds.

    python -m composable_energy_scenes.train --out FOLDER [--effort 1.0] [--install]

The steps: render; train the judge; train, without labels, an autoencoder and a base energy of its codes; train each concept on pictures of
its own, in which everything else is random. Results are kept in FOLDER, and after an interruption the same command resumes. Weights are in
`FOLDER/weights`, the costs of each training in `FOLDER/report.json`; `--install` copies both into the package.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from composable_energy_image import CodeEnergy
from composable_energy_image.network_training import run_command
from composable_energy_scenes import weights
from composable_energy_scenes.concepts import CODE, HEADS_WIDTH, SIGMAS
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.network_trainer import RunFolder
from composable_energy_scenes.one_object import COLORS, OneObject
from composable_energy_scenes.renderer import KINDS

SEEDS = {"train": 1, "judge": 2, "test": 3, "light": 4}
"""Seeds of the renders. The judge and the energies train on different renders; experiments score on a third set."""

COUNTS = {"train": 96_000, "judge": 16_000, "test": 4_000, "light": 24_000}
"""Numbers of renders."""

_STEPS = {"judge": 2_500, "autoencoder": 6_000, "decoder": 16_000, "base": 30_000, "refining": 10_000, "head": 5_000, "conditional": 8_000}
_PER_CONCEPT = 24_000  # pictures
_SHARES = {"position": 0, "color": 1, "shape": 2, "size": 3}  # the quarter of the training renders for each concept


def train_concepts(run: RunFolder) -> None:
    """Trains all networks in a run folder with the world `OneObject` and `SEEDS`, or resumes."""
    run.save(run.trainer.train_judge(run.render("judge"), _STEPS["judge"]), "judge")
    coder = run.trainer.train_autoencoder(run.render("train").images, CODE, _STEPS["autoencoder"], _STEPS["decoder"])
    run.save(coder, "autoencoder")
    with run.trainer.seeded("base"):
        base = CodeEnergy(64, code=CODE, sigma_min=SIGMAS[0], sigma_max=SIGMAS[1])
    base.autoencoder.load_state_dict(coder.state_dict())
    run.trainer.train_base(base, run.encode(coder, "train"), _STEPS["base"], _STEPS["refining"])
    run.save(base.net, "base")
    for name, classes in (("position", 0), ("color", len(COLORS)), ("shape", len(KINDS)), ("size", 0), ("light", 0)):
        codes, labels = _concept_data(run, base, name)
        if classes:
            head = run.trainer.train_classifier(base, codes, labels, classes, name, _STEPS["head"], HEADS_WIDTH)
        else:
            head = run.trainer.train_regressor(base, codes, labels, name, _STEPS["head"], HEADS_WIDTH)
        run.save(head, name)
    for name, options in (("color", {"classes": len(COLORS)}), ("position", {"dims": 2})):
        energy = ConditionalEnergy(base, **options)
        run.trainer.train_conditional(energy, *_concept_data(run, base, name), f"of_{name}", SIGMAS, _STEPS["conditional"])
        run.save(energy.net, f"of_{name}")
    run.write_report()


def _concept_data(run: RunFolder, base: CodeEnergy, name: str) -> tuple[Tensor, Tensor]:
    """Returns the codes and the labels on which a concept is trained."""
    use, parts = ("light", 1) if name == "light" else ("train", len(_SHARES))
    codes, labels = run.encode(base.autoencoder, use), run.render(use).labels
    first = _SHARES.get(name, 0) * len(codes) // parts
    rows = slice(first, first + min(_PER_CONCEPT, len(codes) // parts))
    return codes[rows], torch.from_numpy(labels[name][rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with arguments; those of the command line if None."""
    run_command(lambda folder, effort: train_concepts(RunFolder(folder, OneObject(), SEEDS, COUNTS, effort)), weights.FOLDER, arguments)


if __name__ == "__main__":
    main()
