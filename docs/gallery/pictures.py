"""Draws rows of clothes and letters, one expression per row, unselected.

python docs/gallery/pictures.py
"""

from faces import draw

import composable_energy as ce


def rows():
    """Returns the energies by their printed expressions."""
    footwear, dress, trousers, bag, bright, wide = (
        ce.load(f"fashion/{name}")
        for name in ("footwear", "dress", "trousers", "bag", "bright", "wide")
    )
    a, g, k, capital, bold, italic, serif = (
        ce.load(f"type/{name}")
        for name in (
            *(f"letter={letter}" for letter in "agk"),
            *("capital", "bold", "italic", "serif"),
        )
    )
    return [
        dress & ~wide,
        (footwear | bag) & ~bright,
        2 * (trousers | bag),
        a & capital,
        (g | k) & italic & ~bold,
        2 * (bold & italic & serif),  # which no training picture shows
    ]


if __name__ == "__main__":
    draw(rows(), "pictures.jpg")
