"""The good images that the others find most unusual, each with what is unusual in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from msad.bundle.heatmaps import overlay
from msad.pictures.palette import ERROR_TEXT, GREY, drawable, save_figure
from msad.training.suspects import Suspects

_COLUMNS = 4  # of pairs
_SIDE, _GAP, _CAPTION, _HEAD = 1.5, 0.06, 0.26, 0.5  # inches


def save_suspects(suspects: Suspects, path: Path, count: int = 16) -> None:
    """Draw the first images, most unusual first, each beside itself with its map laid over it.

    The colour scale is one for all; those that stand out have their number in another colour.
    """
    shown = min(count, len(suspects.images))
    rows, wide = -(-shown // _COLUMNS), 2 * _SIDE + _GAP
    width, height = _COLUMNS * (wide + 0.2) + 0.2, _HEAD + rows * (_SIDE + _CAPTION) + 0.1
    figure = Figure(figsize=(width, height), dpi=110)
    # Half of the images shown have something above it, so the scale shows where the unusual is in each of them.
    level = float(np.median([one.max() for one in suspects.maps[:shown]]))
    for place in range(shown):
        left = 0.2 + (wide + 0.2) * (place % _COLUMNS)
        bottom = height - _HEAD - (place // _COLUMNS + 1) * (_SIDE + _CAPTION)
        image = suspects.images[place]
        anomaly_map = np.asarray(Image.fromarray(suspects.maps[place]).resize(image.shape[1::-1]))
        for column, picture in enumerate((image, overlay(image, anomaly_map, level, []))):
            x = left + column * (_SIDE + _GAP)
            axes = figure.add_axes((x / width, bottom / height, _SIDE / width, _SIDE / height))
            axes.imshow(picture)
            axes.set_axis_off()
        out = suspects.stands_out[place]
        caption = f"{place + 1}. {drawable(suspects.paths[place].name)}: {suspects.deviations[place]:.1f}"
        y = (bottom + _SIDE + 0.06) / height
        figure.text(left / width, y, caption, color=ERROR_TEXT if out else GREY, weight="bold" if out else "normal")
    title = f"{drawable(suspects.category)}: the most unusual of {len(suspects.paths)} good images, in deviations"
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=13)
    save_figure(figure, path)
