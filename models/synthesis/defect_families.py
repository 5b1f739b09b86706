"""Six kinds of synthetic defects for validation, none of them used to corrupt training images.

Training corrupts with opaque or transparent stains, Perlin masks filled with textures and rectangles cut and pasted;
a validation made of the same would call every model perfect (Fung et al., arXiv 2310.10461, choose models by synthetic
anomalies). So these move, blend, blur, shade and take away what is there, and draw lines.

Shapes: a patch is float32 h×w×3 in grey levels 0..255; alpha is float32 h×w in [0, 1]. A family takes
`(patch, donor, size, strength, grey, rng)` and returns the changed patch; the defect is centred in the patch and lies
within `reach(family, size)` pixels of the centre.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Family = Callable[[np.ndarray, np.ndarray, float, float, bool, np.random.Generator], np.ndarray]


def irregular_alpha(shape: tuple[int, int], radius: float, softness: float, rng: np.random.Generator) -> np.ndarray:
    """Draw an irregular, elongated disc in the centre: 1 inside, falling to 0 over `softness` × radius, float32 h×w."""
    y, x = np.indices(shape, dtype=np.float32)
    y -= (shape[0] - 1) / 2
    x -= (shape[1] - 1) / 2
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    u = np.cos(turn) * x + np.sin(turn) * y
    v = (np.cos(turn) * y - np.sin(turn) * x) / stretch
    angle = np.arctan2(v, u)
    contour = np.ones(shape, dtype=np.float32)
    for harmonic in range(2, 6):
        contour += rng.uniform(0, 0.3 / harmonic) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    distance = np.hypot(u, v) / (radius * contour / 1.2)
    return np.clip((1 - distance) / max(softness, 1e-3), 0, 1).astype(np.float32)


def scratch(
    patch: np.ndarray, donor: np.ndarray, size: float, strength: float, grey: bool, rng: np.random.Generator
) -> np.ndarray:
    """Draw a thin curved line of uneven pressure, lighter, darker or coloured; `strength` in grey levels."""
    from scipy import ndimage
    from scipy.spatial import cKDTree

    steps = max(8, int(4 * size))
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 1.5 / steps**0.5, steps) / steps**0.5)
    heading += np.linspace(0, rng.uniform(-1.2, 1.2), steps)
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0) * (2 * size / steps)
    path += (np.array(patch.shape[:2]) - 1) / 2 - path.mean(axis=0)
    pressure = np.clip(ndimage.gaussian_filter1d(rng.normal(1, 2, steps), steps / 12), 0.5, 1.3)
    pressure *= np.minimum(1, 6 * (0.5 - np.abs(np.linspace(-0.5, 0.5, steps))) + 0.3)
    distance, nearest = cKDTree(path).query(np.indices(patch.shape[:2]).reshape(2, -1).T)
    width = max(0.6, size * rng.uniform(0.015, 0.03))
    alpha = np.exp(-0.5 * (distance / width) ** 2) * pressure[nearest]
    return patch + alpha.reshape(*patch.shape[:2], 1) * _shift(patch, strength, grey, rng)


def blend(
    patch: np.ndarray, donor: np.ndarray, size: float, strength: float, grey: bool, rng: np.random.Generator
) -> np.ndarray:
    """Blend an irregular piece of another place in seamlessly; `strength` in (0, 1] is its opacity.

    After NSA (Schlüter et al., ECCV 2022, arXiv 2109.15222): Poisson blending, that is the donor plus the harmonic
    membrane that meets the image on the contour. Changed: one irregular piece instead of rectangles, and a share of
    the donor's own brightness is kept at high opacity, so that a plain defect does not vanish on smooth products.
    """
    donor = np.rot90(donor, rng.integers(4)) if donor.shape[0] == donor.shape[1] else donor
    donor = donor[:, ::-1] if rng.random() < 0.5 else donor
    alpha = irregular_alpha(patch.shape[:2], size, 0.25, rng)
    inside = alpha > 0
    inside[[0, -1]] = inside[:, [0, -1]] = False
    seamless = donor + (1 - 0.4 * strength**2) * _membrane(patch - donor, inside)
    return patch + (strength * alpha * inside)[..., None] * (seamless - patch)


def warp(
    patch: np.ndarray, donor: np.ndarray, size: float, strength: float, grey: bool, rng: np.random.Generator
) -> np.ndarray:
    """Push, twist or squeeze the surface locally; `strength` is the largest displacement in pixels."""
    from scipy import ndimage

    alpha = irregular_alpha(patch.shape[:2], size, 1.0, rng)
    alpha = alpha**2 * (3 - 2 * alpha)
    alpha /= alpha.max()
    y, x = np.indices(patch.shape[:2], dtype=np.float32)
    v, u = (y - y.mean()) / size, (x - x.mean()) / size
    kind = rng.integers(3)
    if kind == 0:
        angle = rng.uniform(0, 2 * np.pi)
        dy, dx = np.full_like(y, np.sin(angle)), np.full_like(x, np.cos(angle))
    else:
        sign = 2 * rng.choice([-1.0, 1.0])
        dy, dx = (sign * u, -sign * v) if kind == 1 else (sign * v, sign * u)
    where = np.stack([y + strength * alpha * dy, x + strength * alpha * dx])
    moved = [ndimage.map_coordinates(patch[..., c], where, order=1, mode="nearest") for c in range(3)]
    return np.where(alpha[..., None] > 0, np.stack(moved, axis=2), patch)


def blur(
    patch: np.ndarray, donor: np.ndarray, size: float, strength: float, grey: bool, rng: np.random.Generator
) -> np.ndarray:
    """Lose detail inside an irregular region, or roughen it; `strength` is the Gaussian's sigma in pixels.

    A negative `strength` triples the detail below |sigma| instead: a roughened spot on a surface too smooth to blur.
    """
    from scipy import ndimage

    alpha = irregular_alpha(patch.shape[:2], size, 0.4, rng)[..., None]
    detail = patch - ndimage.gaussian_filter(patch, (abs(strength), abs(strength), 0), mode="nearest")
    return patch - alpha * (detail if strength > 0 else -2 * detail)


def fade(
    patch: np.ndarray, donor: np.ndarray, size: float, strength: float, grey: bool, rng: np.random.Generator
) -> np.ndarray:
    """Shift brightness, colour and contrast under a border without an edge; `strength` in grey levels.

    Unlike a transparent stain it keeps the texture (a stain mixes everything towards one colour).
    """
    from scipy import ndimage

    alpha = irregular_alpha(patch.shape[:2], size, 1.0, rng)
    alpha = (alpha**2 * (3 - 2 * alpha))[..., None]
    detail = patch - ndimage.gaussian_filter(patch, (size / 2, size / 2, 0), mode="nearest")
    contrast = rng.uniform(-0.2, 0.5)
    return patch + alpha * (_shift(patch, strength, grey, rng) + contrast * detail)


def missing(
    patch: np.ndarray, donor: np.ndarray, size: float, strength: float, grey: bool, rng: np.random.Generator
) -> np.ndarray:
    """Take away what is there: its surroundings grow over it without a seam; `strength` in (0, 1] is the opacity.

    The filling is the harmonic membrane over the contour, so that a broken-off corner becomes background, a print or a
    fibre vanishes. It stands for parts that lack, which no painted-on defect does.
    """
    alpha = irregular_alpha(patch.shape[:2], size, 0.02, rng)
    inside = alpha > 0
    inside[[0, -1]] = inside[:, [0, -1]] = False
    return patch + (strength * inside)[..., None] * (_membrane(patch, inside) - patch)


def _shift(patch: np.ndarray, strength: float, grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Choose a colour offset of `strength` grey levels that the patch's own brightness leaves room for."""
    h, w = patch.shape[:2]
    level = float(patch[h // 3 : -(h // 3), w // 3 : -(w // 3)].mean())
    sign = 1.0 if level < strength else -1.0 if level > 255 - strength else rng.choice([-1.0, 1.0])
    tint = np.ones(3)
    if not grey:
        tint = 1 - rng.uniform(0, 1) * rng.uniform(0, 1, 3)
        tint /= tint.max()
    return (sign * strength * tint).astype(np.float32)


def _membrane(difference: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Solve Laplace's equation inside the region with `difference` on its contour, per channel (zero elsewhere)."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    count = int(inside.sum())
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(count)
    rows, columns = np.nonzero(inside)
    known = np.zeros((count, 3))
    pairs = []
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        neighbour = number[rows + dy, columns + dx]
        outer = neighbour < 0
        known[outer] += difference[rows[outer] + dy, columns[outer] + dx]
        pairs.append((np.arange(count)[~outer], neighbour[~outer]))
    i, j = (np.concatenate(part) for part in zip(*pairs, strict=True))
    laplace = sparse.coo_matrix((-np.ones(len(i)), (i, j)), shape=(count, count)) + 4 * sparse.eye(count)
    membrane = np.zeros_like(difference)
    membrane[inside] = splu(laplace.tocsc()).solve(known)
    return membrane


FAMILY_FUNCTIONS: dict[str, Family] = {
    "scratch": scratch,
    "blend": blend,
    "warp": warp,
    "blur": blur,
    "fade": fade,
    "missing": missing,
}
