"""Two drawn objects of the demo dataset, with the variation a camera over a belt sees: pose, lighting, grain.

Shapes are signed distances in pixels (negative inside), turned into coverage over one pixel, which antialiases them.

Legend of shapes: S side of the picture in pixels; pictures are float32 S×S×3 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

TEETH = 14
TABLETS = (2, 3)


@dataclass(frozen=True)
class Pose:
    """How one example lies: all that is drawn at random about it, so that it can be drawn again with a defect."""

    x: float
    y: float
    scale: float
    turn: float
    seed: int


def random_pose(rng: np.random.Generator) -> Pose:
    """A pose within the tolerances of a belt: lengths in fractions of the side, the turn in radians."""
    x, y = rng.uniform(-0.02, 0.02, 2)
    return Pose(x, y, rng.uniform(0.97, 1.03), rng.uniform(-np.pi, np.pi), int(rng.integers(2**31)))


def draw_gear(pose: Pose, size: int, lost: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A turned steel gear on a dark belt.

    Parameters
    ----------
    pose : how it lies; any turn.
    size : side in pixels.
    lost : how much of one tooth is broken off, in [0, 1].

    Returns
    -------
    picture : float32 S×S×3.
    body : float32 S×S, 1 where the gear is.
    """
    rng = np.random.default_rng(pose.seed)
    x, y = _grid(pose, size)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    tooth = np.clip(0.5 + 2.2 * np.cos(TEETH * angle), 0, 1)
    if lost:
        first = np.abs(angle - 2 * np.pi / TEETH * round(TEETH / 5)) < np.pi / TEETH
        tooth = np.where(first, np.minimum(tooth, 1 - lost), tooth)
    outer = radius - size * (0.335 + 0.065 * tooth)
    holes = [radius - size * 0.085]
    for spoke in range(5):
        turn = 2 * np.pi * spoke / 5
        holes.append(np.hypot(x - size * 0.2 * np.cos(turn), y - size * 0.2 * np.sin(turn)) - size * 0.05)
    body = _coverage(np.maximum(outer, -np.minimum.reduce(holes)))
    # Turning leaves rings, and rings reflect in two opposite sectors that stay with the lamp, not with the gear.
    rings = np.interp(radius, np.arange(size), gaussian_filter(rng.normal(size=size), 0.7))
    sheen = np.cos(2 * (angle + pose.turn - rng.normal(0.6, 0.1)))
    steel = 0.56 + 0.09 * sheen + 0.018 * rings - 0.10 * np.exp(-np.abs(outer) / (0.012 * size))
    picture = _belt(rng, size, (0.12, 0.14, 0.17))
    picture = _over(picture, steel[..., None] * np.array([1.0, 0.99, 0.96]), body)
    return _lit(picture, rng, size), body


def draw_tablets(pose: Pose, size: int, lost: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A blister card with six coloured tablets in foil, nearly upright.

    Parameters and returns as `draw_gear`; `lost` is the part of one tablet that is missing; the body is the card.
    """
    rng = np.random.default_rng(pose.seed)
    pose = replace(pose, turn=pose.turn * 0.02)
    x, y = _grid(pose, size)
    card = _coverage(np.maximum(np.abs(x) - 0.43 * size, np.abs(y) - 0.3 * size) - 0.02 * size)
    foil = 0.66 + 0.03 * np.sin(x * 2 * np.pi / (0.035 * size)) * np.sin(y * 2 * np.pi / (0.035 * size))
    picture = _belt(rng, size, (0.16, 0.22, 0.19))
    picture = _over(picture, foil[..., None] * np.array([0.97, 1.0, 1.04]), card)
    broken = int(rng.integers(TABLETS[0] * TABLETS[1]))
    for index in range(TABLETS[0] * TABLETS[1]):
        row, column = divmod(index, TABLETS[1])
        dx, dy = rng.normal(0, 0.006, 2) * size
        u = x - (column - 1) * 0.27 * size
        v = y - (row - 0.5) * 0.28 * size
        radius = np.hypot(u, v)
        picture = _over(picture, np.full(3, 0.45), _coverage(radius - 0.118 * size))
        hue = np.array([0.88, 0.52, 0.36]) * rng.uniform(0.97, 1.03)
        tilt, slope = rng.uniform(0, np.pi, 2)
        s, t = u - dx, v - dy
        pill = np.hypot(s, t) - 0.097 * size
        if lost and index == broken:
            pill = np.maximum(pill, s * np.cos(slope) + t * np.sin(slope) - (0.097 - 0.194 * lost) * size)
        groove = np.exp(-(((s * np.cos(tilt) + t * np.sin(tilt)) / (0.012 * size)) ** 2))
        dome = 1.04 - 0.16 * (np.hypot(s, t) / (0.1 * size)) ** 2 - 0.14 * groove
        picture = _over(picture, dome[..., None] * hue, _coverage(pill))
        glint = np.exp(-((u + 0.05 * size) ** 2 + (v + 0.05 * size) ** 2) / (0.014 * size) ** 2)
        picture = _over(picture, np.ones(3), 0.45 * glint)
    return _lit(picture, rng, size), card


def smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Noise S×S with structures of about `sigma` pixels, of mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _grid(pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the pixels in the object's own frame."""
    line = (np.arange(size) + 0.5 - size / 2) / pose.scale
    x, y = np.meshgrid(line - pose.x * size, line - pose.y * size)
    cosine, sine = np.cos(pose.turn), np.sin(pose.turn)
    return x * cosine + y * sine, y * cosine - x * sine


def _coverage(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance, 0, 1)


def _over(picture: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return picture + (colour - picture) * coverage[..., None]


def _belt(rng: np.random.Generator, size: int, colour: tuple[float, float, float]) -> np.ndarray:
    weave = 0.012 * smooth_noise(rng, size, 1.0) + 0.008 * smooth_noise(rng, size, size / 10)
    return np.asarray(colour) + weave[..., None]


def _lit(picture: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A lamp whose brightness and side vary a little, and the camera's grain."""
    line = np.linspace(-1, 1, size)
    slope_x, slope_y = rng.normal(0, 0.03, 2)
    lamp = rng.uniform(0.95, 1.05) + slope_x * line[None, :] + slope_y * line[:, None]
    grain = rng.normal(0, 0.012, (size, size, 3))
    return np.clip(picture * lamp[..., None] + grain, 0, 1).astype(np.float32)
