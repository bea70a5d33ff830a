"""Draws rows of scenes, one expression per row, at weight 4 and without selection.

python docs/gallery/scenes.py
"""

from faces import draw

from composable_energy_scenes import load_concepts

WEIGHT = 4


def rows():
    """Returns the energies by their printed expressions."""
    scenes = load_concepts()
    left = scenes.position.near((-0.6, 0.0), 0.2)
    right = scenes.position.near((0.6, 0.0), 0.2)
    red, blue = scenes.color("red"), scenes.color("blue")
    return [
        energy.sharpened(WEIGHT)
        for energy in (
            left & ~red,
            ~right & scenes.color("yellow"),
            (left & red) | (right & blue),
            scenes.shape("box", "cylinder") & scenes.size.between(0.55, 0.7),
            left & scenes.shape("sphere") & scenes.color("green"),
        )
    ]


if __name__ == "__main__":
    draw(rows(), "scenes.jpg")
