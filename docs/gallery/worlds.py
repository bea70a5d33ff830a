"""Draws the first pictures of each world, with the masks of objects below.

python docs/gallery/worlds.py
"""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import composable_energy as ce

IMG = Path(__file__).parent.parent / "img"
COLUMNS, GAP, SIZE, NAMES = 8, 4, 96, 120
INK = "#303f9f"
WORLDS = {
    "one-object": {},
    "objects": {},
    "room": {},
    "sprites": {},
    "colored-sprites": {},
    "tetris": {"cells": 8},
}
MASKED = ("objects", "colored-sprites", "tetris")


def in_colors(masks):
    """Returns masks with a color for each object, with shape (N, 3, H, W)."""
    tones = [colorsys.hsv_to_rgb(k / 6, 0.55, 0.95) for k in range(6)]
    palette = (np.array([(0.15, 0.15, 0.15), *tones]) * 255).astype(np.uint8)
    return palette[masks].transpose(0, 3, 1, 2)


def rows():
    """Yields the name of each row with its pictures; masks have no name."""
    for name, options in WORLDS.items():
        world = ce.get("world", name, size=SIZE, **options)
        scenes = world.draw(COLUMNS, seed=0, masks=True)
        yield name, scenes.images
        if name in MASKED:
            yield "", in_colors(scenes.masks)


def draw(path):
    """Writes the image."""
    found = list(rows())
    height, width = len(found) * (SIZE + GAP) - GAP, COLUMNS * (SIZE + GAP) - GAP
    sheet = Image.new("RGB", (NAMES + width, height), "white")
    font, pen = ImageFont.load_default(size=14), ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(found):
        top = row * (SIZE + GAP)
        pen.text((0, top + SIZE // 2 - 8), name, fill=INK, font=font)
        for column, image in enumerate(images):
            tile = np.broadcast_to(image, (3, SIZE, SIZE)).transpose(1, 2, 0)
            left = NAMES + column * (SIZE + GAP)
            sheet.paste(Image.fromarray(np.ascontiguousarray(tile)), (left, top))
    sheet.save(IMG / path, optimize=True)


if __name__ == "__main__":
    draw("worlds.png")
