"""Drawn faces at 32 pixels: a pipeline of diffusers that was trained on them, its classes, and a judge."""

from composable_energy_small_faces.pipeline import ANY_FACE, CLASSES, PIPELINE, class_of, judge_small, load_small_judge, shrink

__all__ = ["ANY_FACE", "CLASSES", "PIPELINE", "class_of", "judge_small", "load_small_judge", "shrink"]
