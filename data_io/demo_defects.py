"""Surface defects of the demo dataset: scratch, stain, hole, each from faint to plain, with exact masks.

These make test images to look at and to be measured on; they share no code with the corruptions a model trains on.

Legend of shapes: S side of the picture in pixels; pictures are float32 S×S×3 in [0, 1], opacities S×S in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from msad.data_io.demo_objects import smooth_noise

Defect = Callable[[np.ndarray, np.ndarray, np.random.Generator, float], tuple[np.ndarray, np.ndarray]]
# Opacity below this is cut to nothing, so that pixels outside the mask are exactly those of the good image.
_FAINTEST = 0.08


def scratch(
    picture: np.ndarray, body: np.ndarray, rng: np.random.Generator, severity: float
) -> tuple[np.ndarray, np.ndarray]:
    """A thin curved line, lighter or darker than what it crosses.

    Parameters
    ----------
    picture : float32 S×S×3.
    body : float S×S, where the defect may lie.
    severity : 0 (faint) to 1 (plain).

    Returns
    -------
    picture : float32 S×S×3.
    mask : bool S×S; outside of it the picture is unchanged.
    """
    size = len(picture)
    start = _place(body, rng)
    turn, length = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.18, 0.4)
    along = np.array([np.sin(turn), np.cos(turn)]) * length
    bend = np.array([along[1], -along[0]]) * rng.uniform(-0.35, 0.35)
    time = np.linspace(0, 1, 4 * size)[:, None]
    curve = start + (time - 0.5) * along + 4 * time * (1 - time) * bend
    inside = np.all((curve >= 0) & (curve < size), axis=1)
    line = np.ones((size, size), bool)
    rows, columns = curve[inside].astype(int).T
    line[rows, columns] = False
    width = size / 128 * (0.5 + 0.6 * severity)
    opacity = np.clip(width + 0.7 - distance_transform_edt(line), 0, 1) * (0.3 + 0.6 * severity)
    around = picture[rows, columns].mean() if len(rows) else picture.mean()
    return _paint(picture, opacity * body, np.full(3, 0.95 if around < 0.55 else 0.08))


def stain(
    picture: np.ndarray, body: np.ndarray, rng: np.random.Generator, severity: float
) -> tuple[np.ndarray, np.ndarray]:
    """An irregular translucent blot that lets the surface show through; parameters and returns as `scratch`."""
    size = len(picture)
    radius = size * (rng.uniform(0.05, 0.08) + 0.04 * severity)
    opacity = _blot(body, rng, radius, ragged=0.35) * (0.25 + 0.5 * severity)
    brown = np.array([0.34, 0.24, 0.12]) * rng.uniform(0.6, 1.1)
    return _paint(picture, opacity * body, brown)


def hole(
    picture: np.ndarray, body: np.ndarray, rng: np.random.Generator, severity: float
) -> tuple[np.ndarray, np.ndarray]:
    """A pit with a dark bottom and a lit rim; parameters and returns as `scratch`."""
    size = len(picture)
    radius = size * (rng.uniform(0.018, 0.028) + 0.04 * severity)
    pit = _blot(body, rng, radius, ragged=0.15)
    slope = np.gradient(gaussian_filter(pit, radius / 4))
    depth = 0.06 + 0.5 * np.clip((slope[0] + slope[1]) * radius, 0, 1)
    return _paint(picture, pit * (0.55 + 0.4 * severity) * body, depth[..., None] * np.ones(3))


def _place(body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random pixel on the body, away from the rim of the picture."""
    margin = len(body) // 8
    inner = np.zeros_like(body, dtype=bool)
    inner[margin:-margin, margin:-margin] = True
    candidates = np.argwhere(inner & (body > 0.99))
    return candidates[rng.integers(len(candidates))].astype(float)


def _blot(body: np.ndarray, rng: np.random.Generator, radius: float, ragged: float) -> np.ndarray:
    size = len(body)
    middle = _place(body, rng)
    rows, columns = np.ogrid[:size, :size]
    stretch, turn = rng.uniform(0.7, 1.4), rng.uniform(0, np.pi)
    u = (rows - middle[0]) * np.cos(turn) + (columns - middle[1]) * np.sin(turn)
    v = (columns - middle[1]) * np.cos(turn) - (rows - middle[0]) * np.sin(turn)
    distance = np.hypot(u * stretch, v / stretch) / radius + ragged * smooth_noise(rng, size, radius / 2.5)
    # Beyond three radii nothing is left, however deep the noise dips there.
    return np.where(np.hypot(u, v) < 3 * radius, np.clip((1.15 - distance) / 0.3, 0, 1), 0)


def _paint(picture: np.ndarray, opacity: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    opacity = np.where(opacity >= _FAINTEST, opacity, 0)
    painted = picture + (colour - picture) * opacity[..., None]
    return painted.astype(np.float32), opacity > 0
