"""Rendered worlds with labels and masks, and trained energies of their contents."""

from composable_energy_scenes.colored_sprites import FULL_COLORS, ColoredSprites
from composable_energy_scenes.concepts import Concepts, load_concepts, load_judge
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.detector import Detector, detect_objects
from composable_energy_scenes.family import SceneFamily
from composable_energy_scenes.judge import Judge, Verdict, judge_images
from composable_energy_scenes.multi_object import MultiObjectEnergies, load_detector, load_multi_object, multi_object_world
from composable_energy_scenes.objects import Objects
from composable_energy_scenes.one_object import COLORS, PALETTE, SIZES, OneObject
from composable_energy_scenes.presence import Presence
from composable_energy_scenes.renderer import KINDS
from composable_energy_scenes.room import ROOM_FACTORS, Room
from composable_energy_scenes.sprites import SPRITE_FACTORS, SPRITES, Sprites
from composable_energy_scenes.tetris import PIECES, Tetris
from composable_energy_scenes.toys import TOYS

__all__ = [
    "COLORS",
    "FULL_COLORS",
    "KINDS",
    "PALETTE",
    "PIECES",
    "ROOM_FACTORS",
    "SIZES",
    "SPRITES",
    "SPRITE_FACTORS",
    "TOYS",
    "ColoredSprites",
    "Concepts",
    "ConditionalEnergy",
    "Detector",
    "Judge",
    "MultiObjectEnergies",
    "Objects",
    "OneObject",
    "Presence",
    "Room",
    "SceneFamily",
    "Sprites",
    "Tetris",
    "Verdict",
    "detect_objects",
    "judge_images",
    "load_concepts",
    "load_detector",
    "load_judge",
    "load_multi_object",
    "multi_object_world",
]
