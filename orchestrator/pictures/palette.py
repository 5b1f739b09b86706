"""The one palette of all pictures and the report page, and the figures they are drawn on.

Colours: Okabe and Ito's palette for colour-blind readers (jfly.uni-koeln.de/color); lines differ by their dash as well.
Figures are made without pyplot, so that no global state or display is needed and threads may draw.
"""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#595959",
)  # fmt: skip
MISSING, LONGEST_NAME = "\u25a1", 60
ERROR_TEXT = "#A63C00"  # vermilion, dark enough for words on white
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
# Cividis (Núñez et al., PLoS ONE 13(7), 2018) looks alike to colour-blind and other readers. Light is low and dark is
# high; its lightest end is left away, because it would vanish on white.
VALUES = LinearSegmentedColormap.from_list("values", matplotlib.colormaps["cividis"](np.linspace(0.92, 0.0, 256)))


def value_colours(value: float, low: float, high: float) -> tuple[str, str]:
    """Return the colour of a value between two others, and black or white, whichever reads better on it, as hex."""
    ground = to_hex(VALUES((value - low) / (high - low) if high > low else 1.0))
    return ground, max(("#000000", "#ffffff"), key=lambda text: contrast(text, ground))


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours as WCAG 2 defines it, in [1, 21]; text needs 4.5."""
    lighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches with a layout that keeps labels apart."""
    return Figure(figsize=(width, height), layout="constrained", dpi=140)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; folders are made, the frame's top and right side left away."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def drawable(name: str) -> str:
    """Return what people have named as a picture's text, shortened where it is long.

    A dollar begins no formula, and what the font lacks, such as an emoji, is a box; Matplotlib would warn of it
    whenever it measures the text.
    """
    known = _signs()
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return "".join(sign if ord(sign) in known else MISSING for sign in name).replace("$", r"\$")


@functools.cache
def _signs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
