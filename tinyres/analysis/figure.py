"""What all figures share: a canvas that needs no display and has no global state, and a PNG written whole."""

from __future__ import annotations

import io
import warnings
from typing import Any

from tinyres.files import PathLike, write_atomically


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Any, path: PathLike, dpi: int = 110) -> None:
    """Draw a figure into a PNG file. Signs that the font lacks are drawn as boxes, without a warning."""
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(png, format="png", dpi=dpi)
    write_atomically(path, png.getvalue())
