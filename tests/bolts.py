"""Drawings of a part that lies at any angle on an empty background."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

SIDE = 128


def bolt(
    angle: float, shift: tuple[int, int] = (0, 0), *, long: float = 40, wide: float = 10, light: float = 0.0
) -> np.ndarray:
    """Draw a bolt, uint8 SIDE×SIDE×3: a shaft with a head at one end, at an angle in degrees, on a light background."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    x, y = x - shift[0], y - shift[1]
    u, v = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along, across = x * u + y * v, -x * v + y * u
    shaft = (np.abs(along) < long) & (np.abs(across) < wide / 2)
    head = (np.abs(along + long) < wide / 2) & (np.abs(across) < wide)
    grey = ndimage.gaussian_filter(np.where(shaft | head, 90.0, 200.0), 0.7) + light
    noise = np.random.default_rng(int(angle)).normal(0, 2, grey.shape)
    return np.clip(grey + noise, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def bolts(angles, **more) -> np.ndarray:
    shifts = np.random.default_rng(0).integers(-6, 7, (len(angles), 2))
    return np.stack([bolt(angle, tuple(shift), **more) for angle, shift in zip(angles, shifts, strict=True)])
