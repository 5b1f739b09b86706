"""Pictures as Jupyter takes them: PNG bytes, or HTML with the picture inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image


def png(picture: np.ndarray | Path, size: tuple[int, int]) -> bytes:
    """Return a picture (uint8 H×W×3, or a file) as PNG, reduced to at most this width and height in pixels."""
    image = Image.open(picture) if isinstance(picture, Path) else Image.fromarray(picture)
    image.thumbnail(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def image_tag(picture: np.ndarray | Path, size: tuple[int, int]) -> str:
    """Return an HTML image that needs no other file; see `png`."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png(picture, size)).decode()}">'
