"""Figures of Matplotlib without `pyplot`: nothing global changes, nothing opens a window, notebooks show what a function returns."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import OptionError
from composable_energy.files import replace_file
from composable_energy.options import import_extra
from composable_energy_viz.files import check_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, DOT, BAR, MUTED = "#303f9f", "#d84315", "#5c6bc0", "#9fa8da"
SHADES = ("#ffffff", "#c5cae9", "#7986cb", INK)
LINES = ("#d84315", "#00796b", "#6a1b9a", "#f9a825", "#0277bd", "#558b2f", "#ad1457", "#4e342e")
_DPI = 150


def open_axes(ax: Axes | None, path: str | Path | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Returns the figure and the axes to draw on, those of the caller or new ones of a size in inches; checks the file to write."""
    figure = _figure_class()(figsize=(width, height), layout="constrained")
    if path is not None:
        known = Path(path).suffix[1:].lower() in figure.canvas.get_supported_filetypes()
        check_path(path, known, ".png, .pdf or .svg, or another format of Matplotlib")
    if ax is None:
        return figure, figure.subplots()
    if not isinstance(ax, import_extra("matplotlib.axes", "viz").Axes):
        raise OptionError(f"ax takes axes of Matplotlib, such as `figure.subplots()`, got {type(ax).__name__}.")
    found: Any = ax.figure
    return found, ax


def finish(figure: Figure, path: str | Path | None) -> Figure:
    """Writes a figure to a file, if one is wanted, and returns it."""
    if path is not None:
        path = Path(path)
        file = BytesIO()
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=_DPI)
        replace_file(path, file.getvalue())
    return figure


def shorten(text: str, length: int) -> str:
    """Returns a text of at most a length; the middle of a longer one is left out. Matplotlib reads `$` as maths, so it is escaped."""
    if len(text) > length:
        text = f"{text[: length - length // 3 - 5]} ... {text[-(length // 3) :]}"
    return text.replace("$", r"\$")


@cache
def _figure_class() -> type[Figure]:
    """Returns a class of figures that notebooks show; those of `pyplot` are shown by its own hooks."""
    base: Any = import_extra("matplotlib.figure", "viz").Figure

    class Picture(base):
        """A figure that notebooks show."""

        def _repr_png_(self) -> bytes:
            file = BytesIO()
            self.savefig(file, format="png", dpi=_DPI / 1.5)
            return file.getvalue()

    return Picture
